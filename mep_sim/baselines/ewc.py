"""Elastic weight consolidation, with one quadratic for all tasks, and its online form."""

from __future__ import annotations

import torch
from torch import Tensor

from mep_sim.baselines.anchored import Anchored
from mep_sim.baselines.base import check_task
from mep_sim.baselines.fisher import FISHERS, diagonal_fisher
from mep_sim.baselines.gradients import Gradients
from mep_sim.optimizers.strategies.update import check_choice, check_count


class EWC(Anchored):
    """Kirkpatrick et al. 2017, eq. 3, a penalty per task: strength/2 sum_t F_t (w - w_t)^2, F_t the diagonal Fisher
    information of task t at the weights w_t that it ended with.

    A sum of quadratics is one: with F = sum_t F_t and the mean anchor a = sum_t F_t w_t / F it is F (w - a)^2 +
    const, so that two numbers per weight hold any number of tasks. As a task comes, a moves by F_t / F of the way to
    w_t and const grows by F_t (F - F_t) / F (w_t - a)^2. Earlier penalties were part of the loss that w_t minimises,
    so that they count twice in a Bayesian reading (Huszar 2018); `OnlineEWC` mends that.

    fisher: how F_t is found, one of FISHERS, see `diagonal_fisher`. samples: over how many of the task's samples, drawn
    without replacement where there is an rng and else the first ones; None: all. batch_size: of that mean.
    """

    def __init__(
        self,
        gradients: Gradients,
        strength: float = 100.0,
        fisher: str = "empirical",
        samples: int | None = None,
        batch_size: int = 256,
        pull: str = "implicit",
        rng: torch.Generator | None = None,
    ):
        super().__init__(gradients, strength, pull, rng)
        check_choice("fisher", fisher, FISHERS)
        check_count(batch_size=batch_size)
        if samples is not None:
            check_count(samples=samples)
        if fisher == "sampled" and rng is None:
            raise ValueError("fisher = 'sampled' draws labels: give it an rng, or choose fisher = 'exact'")
        self.fisher, self.samples, self.batch_size = fisher, samples, batch_size

    @torch.no_grad()
    def end_task(self, x: Tensor, y: Tensor) -> None:
        check_task(x, y)
        x, y = self._chosen(x, y)
        new = diagonal_fisher(self.gradients, x, y, self.fisher, self.batch_size, self.rng)
        if self.importance:
            self._merge(new, self._weights())
        else:
            self.importance, self.anchor = new, self._weights()

    def _merge(self, new: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
        """Add the quadratic of a further task."""
        for name, fisher in new.items():
            old, way = self.importance[name], weights[name] - self.anchor[name]
            total = old + fisher
            share = fisher / total.clamp(min=torch.finfo(total.dtype).tiny)  # 0 where neither has any
            self.offset = self.offset + (old * share * way.square()).sum()
            self.anchor[name] = self.anchor[name] + share * way
            self.importance[name] = total

    def _chosen(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.samples is None:
            return x, y
        if self.samples > len(x):
            raise ValueError(
                f"samples = {self.samples} of a task of {len(x)}; choose at most as many, or None for all"
            )
        if self.rng is None:
            return x[: self.samples], y[: self.samples]
        order = torch.randperm(len(x), generator=self.rng, device=self.rng.device)
        order = order[: self.samples].to(y.device)
        return x[order], y[order]


class OnlineEWC(EWC):
    """Schwarz et al. 2018, section 3.2: one anchor, the latest weights, and a running F <- decay F + F_t.

    decay: gamma in (0, 1]; below 1 old tasks fade. The paper's penalty has another factor gamma, here part of
    strength. Other settings as of `EWC`.
    """

    def __init__(self, gradients: Gradients, strength: float = 100.0, *, decay: float = 1.0, **settings):
        super().__init__(gradients, strength, **settings)
        if not 0 < decay <= 1:
            raise ValueError(f"decay = {decay}; choose 0 < decay <= 1, such as 0.95 (1: nothing fades)")
        self.decay = decay

    def _merge(self, new: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
        self.importance = {name: self.decay * self.importance[name] + f for name, f in new.items()}
        self.anchor = weights

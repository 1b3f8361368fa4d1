"""Gradient episodic memory, by its quadratic programme and by averages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from scipy.optimize import nnls
from torch import Tensor

from mep_sim.baselines.base import check_finite
from mep_sim.baselines.gradients import Gradients
from mep_sim.baselines.rehearsal import Rehearsal
from mep_sim.optimizers.strategies.update import check_count


class _Projecting(Rehearsal, ABC):
    """Turns the gradient so that it does not raise the loss on stored samples; the first task's is left alone.

    samples_per_task: kept of each task, >= 1.
    """

    def __init__(self, gradients: Gradients, samples_per_task: int, rng: torch.Generator):
        super().__init__(gradients, rng)
        check_count(samples_per_task=samples_per_task)
        self.samples_per_task = samples_per_task

    def end_task(self, x: Tensor, y: Tensor) -> None:
        if len(x) and self.samples_per_task > len(x):
            raise ValueError(
                f"samples_per_task = {self.samples_per_task} of a task of {len(x)}; choose at most as many"
            )
        self.memory.append(self._store(x, y, self.samples_per_task))

    @torch.no_grad()
    def before_step(self) -> None:
        super().before_step()
        if not self.memory:
            return
        params = self.gradients.parameters
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in params.values()]
        turned = self._turned(_flat(pieces))
        for p, piece in zip(params.values(), turned.split([p.numel() for p in params.values()]), strict=True):
            p.grad = piece.view_as(p)

    @abstractmethod
    def _turned(self, g: Tensor) -> Tensor:
        """What is learnt in place of a gradient g (P,) of all parameters in a row."""


class GEM(_Projecting):
    """Lopez-Paz & Ranzato 2017, eqs. 10 and 11: the nearest gradient that has no negative inner product with the
    gradient of any earlier task's memory, found anew at each step.

    margin: least weight of each memory gradient in the step once any is violated, finite, >= 0 (the paper's gamma).
    Their samples are the task's last; here they are drawn.
    """

    def __init__(
        self, gradients: Gradients, samples_per_task: int, margin: float = 0.0, *, rng: torch.Generator
    ):
        super().__init__(gradients, samples_per_task, rng)
        check_finite(margin=margin)
        self.margin = margin

    def _turned(self, g: Tensor) -> Tensor:
        return project(
            g, torch.stack([_flat(self._gradient_of(t).values()) for t in self.memory]), self.margin
        )


class AGEM(_Projecting):
    """Chaudhry et al. 2019a, eq. 11: where g and the gradient r of a batch drawn from all memories disagree,
    g - (g'r / r'r) r.

    batch_size: of that batch, >= 1; all stored samples where there are fewer.
    """

    def __init__(self, gradients: Gradients, samples_per_task: int, batch_size: int, rng: torch.Generator):
        super().__init__(gradients, samples_per_task, rng)
        check_count(batch_size=batch_size)
        self.batch_size = batch_size

    def _turned(self, g: Tensor) -> Tensor:
        r = _flat(self._drawn_gradient(self.batch_size).values())
        overlap = torch.dot(g, r).clamp(max=0) / r.square().sum().clamp(min=torch.finfo(r.dtype).tiny)
        return g - overlap * r


def project(g: Tensor, memories: Tensor, margin: float = 0.0) -> Tensor:
    """g + G'v for a gradient g (P,) and rows G (T, P) that it has a negative inner product with any of, else g.

    v solves the dual min 1/2 v'GG'v + g'G'v over v >= margin. With u = v - margin that is least squares over
    u >= 0, 1/2 |G'u + (g + margin G'1)|^2, and with G' = QR of T rows, 1/2 |Ru + Q'(g + margin G'1)|^2: what Q leaves
    out does not depend on u. Rows of length 1 bring u to one scale and do not change its sign.
    """
    if bool((memories @ g >= 0).all()):
        return g
    length = memories.norm(dim=1).clamp(min=torch.finfo(g.dtype).tiny)
    columns = (memories / length[:, None]).T
    start = g + margin * memories.sum(0)
    q, r = torch.linalg.qr(columns)
    u, _ = nnls(r.double().cpu().numpy(), -(q.T @ start).double().cpu().numpy())
    return start + columns @ torch.from_numpy(u).to(g)


def _flat(pieces: Iterable[Tensor]) -> Tensor:
    return torch.cat([piece.flatten() for piece in pieces])

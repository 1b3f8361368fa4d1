"""The diagonal of the Fisher information of a task, by the ways that are in use (van de Ven 2025, arXiv:2502.11756)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mep_sim.baselines.gradients import Gradients

FISHERS = ("empirical", "sampled", "exact", "batched")


@torch.no_grad()
def diagonal_fisher(
    gradients: Gradients,
    x: Tensor,
    y: Tensor,
    kind: str = "empirical",
    batch_size: int = 256,
    rng: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Mean over samples x (N, ...) of the squared gradient of -log p(label | x), by parameter name.

    kind, by which label: "exact" takes the expectation over the model's own p, "sampled" one draw from it (needs rng;
    unbiased), and "empirical" the true label y (N,), which is the Fisher information only where the model is right
    about the labels' distribution (Kunstner et al. 2019). "batched" squares the gradients of batch means, times the
    batch's size: their noise is as the empirical Fisher, and batch_size - 1 times the squared mean gradient comes on
    top, 0 only at an optimum. Otherwise batch_size is how many samples are held at once.
    """
    totals = {name: torch.zeros_like(p) for name, p in gradients.parameters.items()}
    for part in range(0, len(x), batch_size):
        batch, labels = x[part : part + batch_size], y[part : part + batch_size]
        for found in _squares(gradients, batch, labels, kind, rng):
            for name, total in totals.items():
                total.add_(found[name], alpha=len(batch) / len(x))
    return totals


def _squares(
    gradients: Gradients, x: Tensor, y: Tensor, kind: str, rng: torch.Generator | None
) -> Iterator[dict[str, Tensor]]:
    """Terms of one batch's mean."""
    if kind == "batched":
        yield {name: len(x) * g.square() for name, g in gradients.gradient(x, y).items()}
    elif kind == "empirical":
        yield gradients.squares(x, y)
    elif kind == "sampled":
        drawn = torch.multinomial(_predicted(gradients, x, y).to(rng.device), 1, generator=rng)
        yield gradients.squares(x, drawn[:, 0].to(y.device))
    else:
        p = _predicted(gradients, x, y)
        for label in p.any(0).nonzero()[:, 0].tolist():  # a class that the task leaves out has no gradient
            yield gradients.squares(x, torch.full_like(y, label), p[:, label])


def _predicted(gradients: Gradients, x: Tensor, y: Tensor) -> Tensor:
    """The model's distribution over labels (B, C). A cross-entropy's gradient is p - y, also where it is over some of
    the classes only, so that p follows from it."""
    output, c = gradients.outputs(x), gradients.cost
    p = c.gradient(output, c.target(y, output)) + F.one_hot(y, output.shape[1])
    if not ((p >= -1e-5).all() and ((p.sum(1) - 1).abs() < 1e-3).all()):
        raise ValueError(
            f"under {c} the outputs are no distribution over labels; use fisher = 'empirical', or a cross-entropy"
        )
    return p.clamp(min=0)

"""Faster fixed points, sample by sample: what sweeps and bounds of the feedforward energy are driven by."""

from __future__ import annotations

import torch
from torch import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of rows, (B, 1), of complex numbers as of their pairs of real ones."""
    return (a.conj() * b).real.sum(1, keepdim=True)


class Secant:
    """Solves x = g(x) for rows x (B, n): Anderson acceleration of depth one (Walker & Ni 2011, eq. 2.2), damped.

    It goes to the point of least residual on the line through the last two, and from there along the residual,
    by 1 / a, where a is the steepest slope of x - g(x) that the row has shown so far: a full step overshoots
    where g expands.
    """

    def __init__(self) -> None:
        self.x: Tensor | None = None
        self.residual: Tensor | None = None
        self.steepest: Tensor | float = 1.0

    def next(self, x: Tensor, image: Tensor) -> Tensor:
        """The next x, given one and its image g(x)."""
        residual = image - x
        proposal = image
        if self.x is not None:
            dx, dr = x - self.x, residual - self.residual
            slope = -dot(dr, dx) / dot(dx, dx).clamp(min=1e-38)
            # an old estimate fades: slopes change on the way
            self.steepest = (0.9 * self.steepest) * torch.ones_like(slope)
            self.steepest = torch.maximum(self.steepest, slope.clamp(1, 1e4))
            weight = dot(dr, residual) / dot(dr, dr).clamp(min=1e-38)
            proposal = x - weight * dx + (residual - weight * dr) / self.steepest
        self.x, self.residual = x, residual
        return proposal


class UnitSecant:
    """Solves x = g(x) where every unit answers mostly to itself: a secant step of its own for each.

    A unit whose image falls by q as it rises by one moves 1 / (1 + q) of the way; one whose image rises goes all.
    """

    first = 0.4  # of the way before there is a secant

    def __init__(self) -> None:
        self.x: Tensor | None = None
        self.before: tuple[Tensor, Tensor] | None = None

    def next(self, image: Tensor, damping: Tensor | float = 1.0) -> Tensor:
        """The next x, given the image of the one before; begins with the first image itself. `damping` shortens
        the steps of a sample: 1, or (B, 1)."""
        if self.x is None:
            self.x = image
            return image
        share: Tensor | float = self.first
        if self.before is not None:
            moved = self.x - self.before[0]
            slope = (image - self.before[1]) / torch.where(moved.abs() < 1e-30, 1e-30, moved)
            share = 1 / (1 - slope.real.clamp(-9, 0))
        if isinstance(damping, Tensor):
            share = share * damping.view(-1, *(1,) * (image.ndim - 1))
        self.before = (self.x, image)
        self.x = self.x + share * (image - self.x)
        return self.x


class Patience:
    """Damping for samples that get nowhere: 1 at first, and from the second window of sweeps on 0.7 of what
    it was whenever a sample's least change has not halved since the window before, but 1/16 at least."""

    window = 6

    def __init__(self) -> None:
        self.damping: Tensor | float = 1.0
        self.count = 0
        self.least: Tensor | None = None
        self.before: Tensor | None = None

    def observe(self, change: Tensor) -> None:
        """`change` (B,) of a sweep."""
        self.count += 1
        self.least = change if self.least is None else torch.minimum(self.least, change)
        if self.count % self.window:
            return
        if self.before is not None:
            stuck = (self.least > 0.5 * self.before)[:, None]
            self.damping = torch.where(stuck, 0.7, 1.0) * self.damping
            self.damping = self.damping.clamp(min=1 / 16).to(change)
        self.before, self.least = self.least, None


def largest_eigenvalue(operator, like: Tensor, steps: int = 12) -> float:
    """The largest eigenvalue over a batch of positive operators (B, C) -> (B, C), by Lanczos with full
    reorthogonalisation: exact where C <= steps, else from below (Golub & Van Loan 2013, section 10.1)."""
    rng = torch.Generator().manual_seed(0)
    v = torch.randn(like.shape[1], generator=rng, dtype=torch.float64).to(like).expand_as(like)
    basis = [v / v.norm(dim=1, keepdim=True)]
    tridiagonal = like.new_zeros(len(like), steps, steps)
    for k in range(min(steps, like.shape[1])):
        w = operator(basis[k])
        rounding = 100 * torch.finfo(w.dtype).eps * w.norm(dim=1, keepdim=True)
        tridiagonal[:, k, k] = (w * basis[k]).sum(1)
        for _ in range(2):  # twice is enough
            for u in basis:
                w = w - (w * u).sum(1, keepdim=True) * u
        size = w.norm(dim=1, keepdim=True)
        size = torch.where(size > rounding, size, 0)  # else all directions that it can find are found
        if k + 1 < steps:
            tridiagonal[:, k, k + 1] = tridiagonal[:, k + 1, k] = size[:, 0]
        basis.append(torch.where(size > 0, w / size, 0))
    used = min(steps, like.shape[1])
    return torch.linalg.eigvalsh(tridiagonal[:, :used, :used])[:, -1].max().item()

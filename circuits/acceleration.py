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

    def next(self, image: Tensor) -> Tensor:
        """The next x, given the image of the one before; begins with the first image itself."""
        if self.x is None:
            self.x = image
            return image
        share: Tensor | float = self.first
        if self.before is not None:
            moved = self.x - self.before[0]
            slope = (image - self.before[1]) / torch.where(moved.abs() < 1e-30, 1e-30, moved)
            share = 1 / (1 - slope.real.clamp(-9, 0))
        self.before = (self.x, image)
        self.x = self.x + share * (image - self.x)
        return self.x


class Anderson:
    """Solves x = g(x) for rows x (B, n) by Anderson's method (Walker & Ni 2011, eq. 2.2, damped).

    It goes to the point of least residual in the affine hull of the last `depth` + 1 points, and from there along the
    residual by a share of it. A row whose least residual has not halved in a window of steps halves its share, and
    after the least one begins with the first again: what breaks one cycle may be long steps or short ones.
    """

    depth = 5
    window = 16
    shares = (0.5, 0.125)  # the first and the least

    def __init__(self) -> None:
        self.points: list[tuple[Tensor, Tensor]] = []  # (x, g(x) - x), the last ones
        self.share: Tensor | float = self.shares[0]
        self.count = 0
        self.least: Tensor | None = None  # residual of every row in this window, and in the one before
        self.before: Tensor | None = None

    def next(self, x: Tensor, image: Tensor) -> Tensor:
        """The next x, given one and its image g(x)."""
        residual = image - x
        self._watch(residual)
        self.points = [*self.points[-self.depth :], (x, residual)]
        if len(self.points) == 1:
            return x + self.share * residual
        dx, dr = (torch.stack(values).diff(dim=0).movedim(0, 2) for values in zip(*self.points, strict=True))
        precise = torch.complex128 if x.is_complex() else torch.float64
        gram = (dr.mH @ dr).to(precise)
        size = gram.diagonal(dim1=1, dim2=2).real.sum(1, keepdim=True)
        # dependent differences share the work; a row that has arrived has none
        gram = gram + torch.diag_embed((1e-10 * size + 1e-60).expand(gram.shape[:2]))
        weights = torch.linalg.solve(gram, (dr.mH @ residual[:, :, None]).to(precise)).to(x.dtype)
        return x - (dx @ weights)[:, :, 0] + self.share * (residual - (dr @ weights)[:, :, 0])

    def _watch(self, residual: Tensor) -> None:
        size = residual.abs().amax(1, keepdim=True)
        self.least = size if self.least is None else torch.minimum(self.least, size)
        self.count += 1
        if self.count % self.window:
            return
        if self.before is not None:
            first, least = self.shares
            shorter = 0.5 * self.share * torch.ones_like(size)
            shorter = torch.where(shorter < least, first, shorter)
            self.share = torch.where(self.least > 0.5 * self.before, shorter, self.share)
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

"""Operator norms: of matrices, of matrices of blocks, of convolutions."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

OVERSAMPLING = 8  # frequencies sampled per kernel tap, in each direction


def block_norm(norms: np.ndarray) -> float:
    """A bound of a block matrix's norm from the norms of its blocks; inf where one is."""
    return float(np.linalg.norm(norms, 2)) if np.isfinite(norms).all() else math.inf


def chain_bound(norms: np.ndarray, last: float = 0.0) -> float:
    """A bound of lambda_max of a chain's symmetric coupling, with `last` times the identity in its last block.

    norms (N - 1,): of the blocks that couple each of N layers to the next, >= 0; inf where one is. The chain's
    quadratic form is at most that of the tridiagonal matrix of these norms at the layers' |v_l|; for equal norms
    sigma and last = 0 this is 2 cos(pi / (N + 1)) sigma.
    """
    if not np.isfinite(norms).all():
        return math.inf
    small = np.diag(norms, 1) + np.diag(norms, -1)
    small[-1, -1] = last
    return float(np.linalg.eigvalsh(small)[-1])


def spectral_norm(weight: Tensor) -> float:
    """The largest singular value, exactly, from the smaller Gram matrix; inf where an entry is not finite."""
    w = weight.detach()
    if w.dtype.itemsize < 4:  # LAPACK has no decompositions in half precision
        w = w.float()
    gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    if not torch.isfinite(gram.sum()):
        return math.inf
    return math.sqrt(max(torch.linalg.eigvalsh(gram)[-1].item(), 0.0))


def conv_norm(
    weight: Tensor, stride: tuple[int, int] = (1, 1), groups: int = 1, dilation: tuple[int, int] = (1, 1)
) -> float:
    """An upper bound, tight to 4 %, of a zero-padded convolution's operator norm, whatever the input's size.

    weight (out, in / groups, kh, kw), as in `nn.Conv2d`; inf where an entry is not finite. The convolution is a part
    of the one on an infinite grid, whose norm is the supremum over frequencies w of the largest singular value
    of the transfer matrix K(w) = sum_k W_k exp(i k w) (Sedghi, Gupta & Long 2019, theorem 6, for a torus).

    From N samples in a direction to the supremum M: u* K(w) v exp(-i w (k - 1) / 2), with u, v and the phase
    such that it is M at the maximum, has frequencies up to (k - 1) / 2. So its real part is at least
    M cos(d (k - 1) / 2) at a distance d (M. Riesz's lemma; Duffin & Schaeffer 1938), and a sample is within
    d = pi / N. Two directions give two such factors.
    """
    kernel = _unstrided(weight.detach(), stride, dilation)
    out, channels, *taps = kernel.shape
    samples = [OVERSAMPLING * k if k > 1 else 1 for k in taps]
    # half of the plane is enough: a real kernel has K(-w) = conj(K(w))
    transfer = torch.fft.rfft2(kernel, s=samples).view(groups, out // groups, channels, -1)
    transfer = transfer.permute(0, 3, 1, 2)  # (groups, frequencies, out / groups, channels)
    gram = transfer @ transfer.mH if out // groups <= channels else transfer.mH @ transfer
    if not torch.isfinite(gram.abs().sum()):
        return math.inf
    sampled = math.sqrt(max(torch.linalg.eigvalsh(gram)[..., -1].max().item(), 0.0))
    return sampled / math.prod(
        math.cos(math.pi * (k - 1) / (2 * n)) for k, n in zip(taps, samples, strict=True)
    )


def _unstrided(weight: Tensor, stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """The kernel that does the same with stride 1 to the phases of the input, one of every stride pixels, as
    channels: (out, c s_h s_w, ceil(kh / s_h), ceil(kw / s_w)).

    Dilated taps that share a factor with the stride meet fewer phases; else dilation permutes frequencies.
    """
    steps = [s // math.gcd(s, d) for s, d in zip(stride, dilation, strict=True)]
    # what a stride beyond the kernel leaves out meets no tap
    sh, sw = (min(s, k) for s, k in zip(steps, weight.shape[-2:], strict=True))
    padded = nn.functional.pad(weight, (0, -weight.shape[3] % sw, 0, -weight.shape[2] % sh))
    phases = padded.unflatten(3, (-1, sw)).unflatten(2, (-1, sh))  # (out, c, kh / sh, sh, kw / sw, sw)
    return phases.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)

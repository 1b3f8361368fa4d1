"""The root of a straight line plus an exponential: what a diode and a resistor make of a voltage or a current.

It is Wright's omega function, w + ln w = x (Lawrence, Corless & Jeffrey, ACM TOMS 38:20, 2012), written for ln w: the
root of a t + e^t - 1 = b is ln a + ln w at x = (b + 1) / a - ln a. A table of ln w comes near enough for one step of
Halley's method. No element is chosen by `torch.where`, which takes a CPU longer than an exponential does.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from scipy.special import wrightomega
from torch import Tensor

LEAST = -7.0  # the x below which ln w is x, to 0.001
OCTAVES, PER_OCTAVE = 128, 512  # of the table over x - LEAST + 1, from 1
FORMATS = {torch.float32: (torch.int32, 23, 127), torch.float64: (torch.int64, 52, 1023)}
"""Of numbers: the integers of their size, the bits of their mantissa, the exponent that stands for that of 1."""


def exponential_root(a: Tensor, b: Tensor) -> Tensor:
    """The t with a t + e^t - 1 = b, for a > 0, of float32 or float64. Of the digits of b a small t keeps all."""
    differentiates = torch.is_grad_enabled()
    with torch.no_grad():
        t = _halley(_start(a, b), a, b)
        if t.dtype == torch.float64:
            t = _newton(t, a, b)
    return _newton(t, a, b) if differentiates else t


def _newton(t: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A step of Newton's method with t held: at the root its derivatives in a and b are those of the root."""
    exponential = torch.expm1(t)
    return t - torch.addcmul(exponential - b, a, t) / (exponential + 1 + a).detach()


def _start(a: Tensor, b: Tensor) -> Tensor:
    """The root, to 0.004 and to about as little of it."""
    shift = a.log()
    x = torch.addcmul(1 - LEAST - shift, b + 1, 1 / a)  # from where the table begins, at 1
    t = x.clamp(max=1).add_(shift - 1)
    integers, mantissa, one = FORMATS[x.dtype]
    # the first bits of a number of at least 1 count octaves, and parts of them
    bits = x.clamp_(min=1).view(integers).bitwise_right_shift_(mantissa - PER_OCTAVE.bit_length() + 1)
    entry = bits.sub_(one * PER_OCTAVE).clamp_(0, OCTAVES * PER_OCTAVE - 1)
    t += _table(x.dtype, x.device).index_select(0, entry.flatten()).view_as(t)
    # it is below the root without curvature; far below only where that is large, or negative and the line all there is
    most = b * (1 / (1 + a))
    far = (4 * most).square_()
    least = (most - far).sub_(far.square_())
    return torch.maximum(t, least, out=least).minimum(most)


def _halley(t: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A step of Halley's method: an error of 0.004 becomes one of 1e-8."""
    exponential = torch.expm1(t)
    newton = torch.addcmul(b - exponential, a, t, value=-1)
    exponential += 1
    slope = exponential + a
    newton /= slope
    bend = exponential.mul_(newton).div_(slope).mul_(0.5).add_(1)
    return t.add_(newton.div_(bend))


@functools.cache
def _table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """ln w in the middle of every part of every octave."""
    octave, part = np.divmod(np.arange(OCTAVES * PER_OCTAVE), PER_OCTAVE)
    x = 2.0**octave * (1 + (part + 0.5) / PER_OCTAVE) + (LEAST - 1)
    return torch.from_numpy(np.log(wrightomega(x).real)).to(device, dtype)

"""The Wright omega function of real numbers, and the exponential equation that it solves."""

from __future__ import annotations

import torch
from torch import Tensor


def wright_omega(x: Tensor) -> Tensor:
    """The w > 0 with w + ln w = x, to the precision of x (Lawrence, Corless & Jeffrey, ACM TOMS 38:20, 2012)."""
    near = x.clamp(-1, 3) - 1
    w = 1 + near * (1 / 2 + near * (1 / 16 - near / 192))
    far = x.clamp(min=3)
    log = far.log()
    w = torch.where(x > 3, far - log + log / far, w)
    small = x.clamp(max=0).exp()
    w = torch.where(x < -1, small / (1 + small), w)
    for _ in range(2):  # each quadruples the digits (theirs, eq. 4)
        miss = x - w - w.clamp(min=torch.finfo(w.dtype).tiny).log()
        share, doubled = miss / (1 + w), 2 * (1 + w + 2 / 3 * miss)
        better = w * (1 + share * (doubled - share) / (doubled - 2 * share))
        w = torch.where(x < -40, w, better)  # there w = e^x to the last digit, and may be no more than 0
    return w


def exponential_root(a: Tensor, b: Tensor) -> Tensor:
    """The t with a t + e^t - 1 = b, for a > 0: what a diode and a resistor in series make of a voltage or a current.

    Of the digits of b a small t keeps all: a last step of Newton's method sees no difference of large numbers.
    """
    with torch.no_grad():
        linear = (b + 1) / a
        w = wright_omega(linear - a.log())  # e^t / a
        t = torch.where(w > 1, (a * w).log(), linear - w)
        slope = a + t.exp()
    # at the root its derivatives are also those of t, with the slope held
    return t - (a * t + torch.expm1(t) - b) / slope

"""Polynomials by Horner's rule."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def polynomial(coefficients: Sequence[float], x: Tensor | float) -> Tensor | float:
    """`c0 + c1 x + c2 x^2 + ...`, shaped like `x`; the constant comes first."""
    total = 0.0 * x
    for c in reversed(coefficients):
        total = total * x + c
    return total

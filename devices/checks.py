"""Checks shared by all devices: every complaint names the value, the allowed range and the way out."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def check_number(
    name: str, value: object, low: float, high: float, way_out: str, whole: bool = False
) -> None:
    """Raise ValueError unless `value` is a number (an int, if `whole`) with low <= value <= high.

    name     what the user wrote, e.g. "SoftBoundsPulses.steps"
    way_out  a sentence that tells what to do instead
    """
    kind = int if whole else (int, float)
    if isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high:
        return
    noun = "a whole number" if whole else "a number"
    raise ValueError(
        f"{name} = {value!r} is not allowed: it must be {noun} from {low:g} to {high:g}. {way_out}"
    )


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        allowed = ", ".join(map(repr, choices))
        raise ValueError(f"{name} = {value!r} is not allowed: choose one of {allowed}.")


def check_shape(shape: object) -> tuple[int, int]:
    """Return `shape` as (rows, cols), both at least 1; raise ValueError otherwise."""
    sizes = tuple(shape) if isinstance(shape, tuple | list) else ()
    if len(sizes) != 2 or not all(isinstance(n, int) and n >= 1 for n in sizes):
        raise ValueError(
            f"shape = {shape!r} is not allowed: an array is (rows, cols), two integers of 1 or more."
        )
    return sizes


def check_dtype(dtype: torch.dtype) -> None:
    """Conductances of microsiemens need an exponent range and precision that half types lack."""
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype = {dtype} is not allowed: choose torch.float32 or torch.float64.")


def check_target(g_target: Tensor, like: Tensor, g_min: float, g_max: float) -> Tensor:
    """Return the conductances to program, (rows, cols) S, detached and in the dtype of `like`; NaN stays NaN.

    Values beyond the window [g_min, g_max] by more than rounding (1e-5 of its span) raise ValueError;
    closer ones are rounding of the caller's arithmetic and are put on the edge.
    """
    if tuple(g_target.shape) != tuple(like.shape):
        raise ValueError(
            f"g_target has shape {tuple(g_target.shape)}, the array {tuple(like.shape)}: give one "
            "conductance per cell, NaN where a cell is to be left alone."
        )
    g = g_target.detach()
    slack = 1e-5 * (g_max - g_min)
    outside = (g < g_min - slack) | (g > g_max + slack)
    if outside.any():
        raise ValueError(
            f"g_target holds {int(outside.sum())} value(s) outside the window, first "
            f"{g[outside][0].item():.6g} S: allowed are {g_min:g} to {g_max:g} S, or NaN for a cell to be "
            "left alone. Clamp or rescale the weights before programming."
        )
    return g.to(like.dtype).clamp(g_min, g_max).contiguous()


def check_counts(counts: Tensor, like: Tensor) -> Tensor:
    """Return pulse counts (rows, cols) as int32 or int64; ValueError for another shape or a non-integer dtype."""
    if counts.dtype not in _INTEGERS:
        raise ValueError(
            f"counts has dtype {counts.dtype}: pulses are whole, give an integer tensor, e.g. "
            "counts.round().to(torch.int64)."
        )
    if tuple(counts.shape) != tuple(like.shape):
        raise ValueError(
            f"counts has shape {tuple(counts.shape)}, the array {tuple(like.shape)}: give one count per "
            "cell, 0 for no pulse."
        )
    return counts if counts.dtype.itemsize >= 4 else counts.to(torch.int32)

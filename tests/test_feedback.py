"""The two carries: of the gradient, and of the write."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import devices
from circuits import FeedforwardCircuit
from circuits.chip import Chip
from circuits.crossbar import Crossbar
from mep_sim.optimizers import (
    CompositeOptimizer,
    ErrorFeedback,
    MixedPrecision,
    NoFeedback,
    NoWriteFeedback,
    WriteResidual,
)
from tests.device_conformance import generator

few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**31)
SHAPE = (6, 5)


def normal(seed: int, steps: int) -> list[Tensor]:
    rng = generator(seed)
    return [torch.randn(SHAPE, generator=rng, dtype=torch.float64) for _ in range(steps)]


@few
@given(seed=seeds, beta=st.floats(0, 0.99), share=st.floats(0, 1))
def test_the_carry_is_the_sum_of_what_was_not_kept(seed, beta, share):
    """Unrolled: b_t = sum_k (1 - (1 - beta) share)^(t - k) g_k, if a constant share of b is kept."""
    feedback, state, history = ErrorFeedback(beta), {}, normal(seed, 6)
    for t, g in enumerate(history):
        b = feedback.signal(g, state)
        decay = 1 - (1 - beta) * share
        expected = sum(decay ** (t - k) * past for k, past in enumerate(history[: t + 1]))
        assert torch.allclose(b, expected, rtol=1e-10, atol=1e-12)
        feedback.keep(b, share * b, state)


def test_without_feedback_nothing_is_carried():
    (g,), state = normal(0, 1), {}
    assert NoFeedback().signal(g, state) is g
    NoFeedback().keep(g, 0 * g, state)
    assert state == {}
    assert NoWriteFeedback().wanted(g, state) is g
    NoWriteFeedback().written(g, 0 * g, state)
    assert state == {}


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_a_carry_that_grows_for_ever_is_refused(beta):
    with pytest.raises(ValueError, match=f"beta = {beta}; choose 0 <= beta < 1"):
        ErrorFeedback(beta)


def write_all(crossbar: Crossbar, wanted: list[Tensor], feedback) -> tuple[Tensor, dict]:
    """The sum of what was nominally written, and the feedback's state."""
    state, total = {}, torch.zeros(SHAPE, dtype=torch.float64)
    for delta in wanted:
        ask = feedback.wanted(delta, state)
        written = crossbar.write(ask, crossbar.read())
        feedback.written(ask, written, state)
        total += written
    return total, state


def crossbar(device: str = "soft-bounds-6bit", rounding: str = "truncate", seed: int = 0) -> Crossbar:
    return Crossbar(
        SHAPE, devices.preset(device), 1.0, generator(seed), rounding=rounding, dtype=torch.float64
    )


@few
@given(
    seed=seeds,
    scale=st.floats(1e-4, 0.1),
    rounding=st.sampled_from(["truncate", "nearest", "stochastic"]),
    device=st.sampled_from(["soft-bounds-6bit", "levels-4bit", "rpu", "pcm", "ideal"]),
)
def test_what_is_written_and_the_residual_make_up_what_was_wanted(seed, scale, rounding, device):
    """Nothing is lost and nothing invented, whatever the device; a step is left at most (half of one if rounded to the
    nearest), or what is too little for a direct write."""
    array = crossbar(device, rounding, seed)
    wanted = [scale * delta for delta in normal(seed, 30)]
    total, state = write_all(array, wanted, WriteResidual())
    residual = state["write_residual"]
    assert torch.allclose(total + residual, sum(wanted), rtol=0, atol=1e-12)
    most = array.threshold if array.step is None else array.step * (0.5 if rounding == "nearest" else 1.0)
    assert residual.abs().max() <= most + 1e-12


def test_the_residual_writes_what_plain_rounding_never_does():
    """100 changes of a tenth of a pulse: 10 pulses with the residual, none without."""
    array = crossbar("levels-8bit")
    array.program(torch.zeros(SHAPE, dtype=torch.float64))
    tenths = [torch.full(SHAPE, 0.1 * array.step, dtype=torch.float64)] * 100
    total, _ = write_all(array, tenths, NoWriteFeedback())
    assert total.abs().max() == 0
    before = array.read()
    total, state = write_all(array, tenths, WriteResidual())
    assert torch.allclose(
        total + state["write_residual"], torch.full(SHAPE, 10 * array.step, dtype=torch.float64), atol=1e-12
    )
    assert torch.allclose(array.read() - before, total, rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", ["ideal", "levels-8bit", "soft-bounds-6bit"])
def test_the_residual_does_not_wind_up_at_the_end_of_the_range(device):
    """Pushed against w_max for 100 steps, a weight leaves at the first step back."""
    quiet = devices.preset(device)
    if device == "soft-bounds-6bit":
        quiet = dataclasses.replace(quiet, read_noise=None)
    array = Crossbar(SHAPE, quiet, 1.0, generator(), dtype=torch.float64)
    array.program(torch.ones(SHAPE, dtype=torch.float64))
    outwards = [torch.full(SHAPE, 0.3, dtype=torch.float64)] * 100
    feedback = WriteResidual()
    _, state = write_all(array, outwards, feedback)
    step = array.step or 0.0
    assert state["write_residual"].abs().max() <= step + 1e-12
    ask = feedback.wanted(torch.full(SHAPE, -0.3, dtype=torch.float64), state)
    array.write(ask, array.read())
    assert array.read().mean() < 0.9


@pytest.mark.parametrize("fraction", [0.1, 0.5, -0.3, 2.75])
def test_stochastic_rounding_is_unbiased(fraction):
    """Counts are floor(f) or floor(f) + 1, with mean f and variance {f} (1 - {f}): 5 standard errors."""
    n = (200, 200)
    array = Crossbar(
        n, devices.preset("levels-8bit"), 1.0, generator(), rounding="stochastic", dtype=torch.float64
    )
    counts = array.write(torch.full(n, fraction * array.step, dtype=torch.float64), array.read()) / array.step
    part = fraction % 1
    variance = part * (1 - part)
    error = 5 * (variance / 40_000) ** 0.5
    assert set(counts.round().unique().tolist()) == {fraction // 1, fraction // 1 + 1}
    assert abs(counts.mean().item() - fraction) < error
    assert abs(counts.var().item() - variance) < 5 * (variance * (1 - 3 * variance) / 40_000) ** 0.5 + 1e-4


# -- mixed precision ---------------------------------------------------------------------------------


def test_the_accumulator_hands_over_whole_pulses_towards_zero():
    """Step 2 / 255 of w_max = 1: of 2.7, -0.9, 0.6 and -3.2 steps the pulses are 2, 0, 0, -3; chi keeps the rest, and
    another time the same makes 5.4 - 2, -1.8, 1.2, -6.4 + 3 steps: 3, -1, 1, -3."""
    crossbar = Crossbar(
        (1, 4), devices.preset("levels-8bit"), 1.0, generator(), rounding="truncate", dtype=torch.float64
    )
    crossbar.program(torch.zeros(1, 4, dtype=torch.float64))
    feedback, state = MixedPrecision(), {}
    delta = torch.tensor([[2.7, -0.9, 0.6, -3.2]], dtype=torch.float64) * crossbar.step
    for pulses in ([2, 0, 0, -3], [3, -1, 1, -3]):
        wanted = feedback.wanted(delta, state)
        written = crossbar.write(wanted, crossbar.read())
        feedback.written(wanted, written, state)
        assert torch.allclose(written / crossbar.step, torch.tensor([pulses]).double(), rtol=0, atol=1e-9)
    left = torch.tensor([[0.4, -0.8, 0.2, -0.4]], dtype=torch.float64)
    assert torch.allclose(state["chi"] / crossbar.step, left, rtol=0, atol=1e-9)


def test_between_transfers_the_array_is_left_alone():
    feedback, state, history = MixedPrecision(every=3), {}, normal(1, 6)
    for t, delta in enumerate(history):
        wanted = feedback.wanted(delta, state)
        if (t + 1) % 3:
            assert wanted is None
        else:
            assert torch.allclose(wanted, sum(history[: t + 1]) * 1.0, rtol=1e-12)
            feedback.written(wanted, torch.zeros_like(wanted), state)


def test_mixed_precision_needs_a_chip_that_truncates():
    circuit = FeedforwardCircuit.from_sizes((3, 2), rng=generator())
    chip = Chip(circuit, devices.preset("levels-8bit"), generator(), rounding="nearest")
    with pytest.raises(
        ValueError, match="this chip's rounding is 'nearest': make it with rounding='truncate'"
    ):
        CompositeOptimizer(circuit.parameters(), model=circuit, chip=chip, write_feedback=MixedPrecision())
    with pytest.raises(ValueError, match="every = 0; choose a transfer after 1 step or more"):
        MixedPrecision(0)

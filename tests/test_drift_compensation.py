"""Gains at the outputs against drift: what they undo exactly, what they cannot, and when they are forgotten."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import devices
from circuits import FeedforwardCircuit
from circuits.chip import Chip
from circuits.crossbar import Crossbar
from circuits.mapping import DifferentialPair, OneSidedPair
from devices import Leak, LevelPulses, MemoryCell, PowerLawDrift
from tests.device_conformance import generator

# (1023 s + 1 s) / 1 s to the power of -0.1 is a half
HALVED = 1023.0
FALLING = MemoryCell(0.0, 25e-6, drift=PowerLawDrift(nu=0.1, t0_seconds=1.0))
WEIGHT = torch.tensor([[0.4, -0.2], [0.1, 0.3]], dtype=torch.float64)  # mean |w| of its lines 0.3 and 0.2
PAIRS = [DifferentialPair(), OneSidedPair()]


def programmed(cell=FALLING, weight=WEIGHT, mapping=None, seed=0) -> Crossbar:
    shape = tuple(weight.shape)
    crossbar = Crossbar(shape, cell, 0.5, generator(seed), mapping=mapping, dtype=torch.float64)
    crossbar.program(weight)
    crossbar.calibrate()
    return crossbar


def with_exponents(crossbar: Crossbar, nu: torch.Tensor) -> Crossbar:
    """Its output lines drift with exponents nu (rows, 1)."""
    for cells in crossbar.cells.values():
        cells.params["nu_drift"] = nu.expand(cells.shape).clone()
    return crossbar


def close(a, b) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("per", ["global", "column"])
@pytest.mark.parametrize("mapping", PAIRS)
def test_uniform_drift_is_undone_exactly(mapping, per):
    crossbar = programmed(mapping=mapping)
    close(crossbar.read(HALVED), WEIGHT / 2)
    crossbar.compensate(HALVED, per)
    close(crossbar.gain, torch.full_like(crossbar.gain, 2.0))
    close(crossbar.read(HALVED), WEIGHT)


def test_gains_stay_as_they_are_while_the_array_drifts_on():
    # 1024^2 - 1 s: a quarter is left, of which the gain makes a half
    crossbar = programmed()
    crossbar.compensate(HALVED)
    close(crossbar.read(1024.0**2 - 1), WEIGHT / 2)
    crossbar.compensate(1024.0**2 - 1)  # anew from what the array gives, not from what its gain makes of it
    close(crossbar.gain, torch.full_like(crossbar.gain, 4.0))
    close(crossbar.read(1024.0**2 - 1), WEIGHT)


def test_a_gain_per_line_undoes_drift_by_line_and_a_global_one_its_mean_only():
    crossbar = with_exponents(programmed(), torch.tensor([[0.1], [0.2]], dtype=torch.float64))
    close(crossbar.read(HALVED), WEIGHT / torch.tensor([[2.0], [4.0]]))
    crossbar.compensate(HALVED, "column")
    close(crossbar.gain, torch.tensor([[2.0], [4.0]], dtype=torch.float64))
    close(crossbar.read(HALVED), WEIGHT)
    # mean |w| was (0.3 + 0.2) / 2, and is (0.15 + 0.05) / 2 now: a gain of 2.5
    crossbar.compensate(HALVED, "global")
    close(crossbar.gain, torch.full_like(crossbar.gain, 2.5))
    close(crossbar.read(HALVED), WEIGHT * torch.tensor([[2.5 / 2], [2.5 / 4]]))


@settings(max_examples=25, deadline=None)
@given(
    nus=st.lists(st.floats(-0.2, 0.4), min_size=3, max_size=3),
    t=st.floats(0, 1e9),
    mapping=st.sampled_from(PAIRS),
    seed=st.integers(0, 99),
)
def test_gains_per_line_undo_any_drift_by_line(nus, t, mapping, seed):
    weight = torch.rand((3, 7), generator=generator(seed), dtype=torch.float64) - 0.5
    crossbar = programmed(weight=weight, mapping=mapping)
    with_exponents(crossbar, torch.tensor(nus, dtype=torch.float64).unsqueeze(1))
    crossbar.compensate(t)
    torch.testing.assert_close(crossbar.read(t), weight, rtol=1e-9, atol=1e-12)


def test_a_leak_to_mid_window_is_undone_in_a_pair():
    """Both cells relax to the same rest, so that their difference falls by exp(-t / tau): to a third at tau ln 3."""
    cell = MemoryCell(1e-6, 100e-6, drift=Leak(tau_seconds=10.0))
    crossbar = programmed(cell)
    t = 10 * math.log(3)
    close(crossbar.read(t), WEIGHT / 3)
    crossbar.compensate(t, "global")
    close(crossbar.gain, torch.full_like(crossbar.gain, 3.0))


def test_a_line_without_weights_has_gain_one():
    weight = WEIGHT * torch.tensor([[1.0], [0.0]])
    crossbar = programmed(weight=weight)
    crossbar.compensate(HALVED)
    close(crossbar.gain, torch.tensor([[2.0], [1.0]], dtype=torch.float64))
    close(crossbar.read(HALVED), weight)


@pytest.mark.parametrize("how", ["program", "pulse", "calibrate"])
def test_a_write_or_a_calibration_forgets_the_gains(how):
    cell = MemoryCell(0.0, 25e-6, levels=256, pulses=LevelPulses(), drift=FALLING.drift)
    crossbar = programmed(cell)
    crossbar.compensate(HALVED)
    if how == "program":
        crossbar.program(WEIGHT, HALVED)
    elif how == "pulse":
        crossbar.pulse([torch.ones(2, 2, dtype=torch.int64)], HALVED)
    else:
        crossbar.calibrate(HALVED)
    assert crossbar.gain is None
    if how == "calibrate":  # what it has drifted to is the new reference: nothing to compensate now
        crossbar.compensate(HALVED)
        close(crossbar.gain, torch.ones_like(crossbar.gain))
    else:
        with pytest.raises(ValueError, match="calibrate"):
            crossbar.compensate(HALVED)


def test_unknown_compensations_are_refused():
    with pytest.raises(ValueError, match="unknown drift compensation 'row'; choose global or column"):
        programmed().compensate(HALVED, "row")


# -- of a chip ------------------------------------------------------------------------------------------


def chip() -> Chip:
    circuit = FeedforwardCircuit.from_sizes((4, 6, 3), "relu", rng=generator(1)).double()
    with torch.no_grad():
        for name, p in circuit.named_parameters():
            if name not in circuit.weights:
                p.fill_(0.5)
    made = Chip(circuit, FALLING, generator(2))
    made.calibrate()
    return made


def outputs(made: Chip) -> torch.Tensor:
    x = torch.randn(5, 4, generator=generator(3), dtype=torch.float64)
    return torch.func.functional_call(made.circuit, made.read(), (x,))


@pytest.mark.parametrize("per", ["global", "column"])
def test_a_compensated_chip_answers_as_on_the_first_day(per):
    made = chip()
    fresh = outputs(made)
    biases = {n: p.clone() for n, p in made.circuit.named_parameters() if n not in made.circuit.weights}
    made.t_seconds = HALVED
    assert not torch.allclose(outputs(made), fresh, rtol=0.1)
    made.compensate(per)
    for name, target in made.targets.items():
        close(made.circuit.params()[name].detach(), target)  # mirrors the compensated read
    close(outputs(made), fresh)
    for name, bias in biases.items():
        assert torch.equal(made.circuit.params()[name], bias)


def test_gains_and_their_reference_are_saved():
    made, other = chip(), Chip(chip().circuit, FALLING, generator(9))
    made.t_seconds = HALVED
    made.compensate()
    other.load_state_dict(made.state_dict())
    for name, target in made.targets.items():
        close(other.read()[name], target)
    other.t_seconds = 1024.0**2 - 1
    other.compensate("global")  # towards a reference that it has only been told
    for crossbar in other.crossbars.values():
        close(crossbar.gain, torch.full_like(crossbar.gain, 4.0))


def test_gains_are_set_by_averaged_reads():
    """A pair reads 0.25 with a deviation of 0.02 sqrt(2) w_max, w_max = 0.5; a response is the mean of 8 x 400 such
    reads, and a gain the quotient of two responses."""
    cell = MemoryCell(0.0, 25e-6, read_noise=devices.WhiteReadNoise(0.02))
    weight = torch.full((200, 400), 0.25, dtype=torch.float64)
    crossbar = programmed(cell, weight)
    crossbar.compensate(0.0)
    sigma = math.sqrt(2) * (0.02 * math.sqrt(2) * 0.5 / 0.25) / math.sqrt(8 * 400)
    assert crossbar.gain.std().item() == pytest.approx(sigma, rel=4 / math.sqrt(2 * 200))
    assert crossbar.gain.mean().item() == pytest.approx(1, abs=4 * sigma / math.sqrt(200))

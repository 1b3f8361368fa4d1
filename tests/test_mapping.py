"""Mappings of weights on arrays of cells: pairs, one-sided pairs, offset columns, symmetry points."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import devices
from circuits.crossbar import Crossbar
from circuits.mapping import (
    DifferentialPair,
    Mapping,
    OffsetColumn,
    OneCell,
    OneSidedPair,
    SymmetryReference,
    default_mapping,
)
from devices import (
    ConstantStepPulses,
    Device,
    FlickerReadNoise,
    Ideal,
    MemoryCell,
    Operation,
    ProgramVerify,
    SoftBoundsPulses,
    StuckCells,
    WhiteReadNoise,
    WindowProgrammingNoise,
)
from tests.device_conformance import generator

LOW, HIGH, SPAN = 10e-6, 110e-6, 100e-6
STEPS = MemoryCell(LOW, HIGH, pulses=ConstantStepPulses(100))  # 1 uS
ONE_SIDED = MemoryCell(LOW, HIGH, pulses=ConstantStepPulses(100, one_sided=True))


def crossbar(device: Device, mapping: Mapping | None, shape=(2, 3), w_max=1.0, seed=0, **options) -> Crossbar:
    options = {"dtype": torch.float64, **options}
    return Crossbar(shape, device, w_max, generator(seed), mapping=mapping, **options)


def micro(array: Crossbar, name: str) -> list:
    """Conductances in uS."""
    return (1e6 * array.cells[name].conductance).tolist()


def weights(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# -- conductances, by hand ---------------------------------------------------------------------------


def test_an_offset_column_compares_a_cell_with_the_middle():
    """w = 0.5 of w_max = 2: a quarter of half the span above 60 uS; one reference cell for each input line."""
    array = crossbar(STEPS, OffsetColumn(), w_max=2.0)
    wanted = weights([0.5, -2.0, 0.0], [2.0, 1.0, -1.0])
    array.program(wanted)
    assert torch.allclose(
        array.cells["plus"].conductance, 1e-6 * weights([72.5, 10.0, 60.0], [110.0, 85.0, 35.0]), rtol=1e-12
    )
    assert micro(array, "reference") == [pytest.approx([60.0, 60.0, 60.0])]
    assert torch.allclose(array.read(), wanted, atol=1e-12)
    assert array.cell_count == 9


def test_a_one_sided_pair_keeps_one_cell_at_the_bottom():
    array = crossbar(ONE_SIDED, None, (1, 3))
    assert array.mapping == OneSidedPair()
    array.program(weights([0.5, -0.2, 0.0]))
    assert micro(array, "plus") == [pytest.approx([60.0, 10.0, 10.0])]
    assert micro(array, "minus") == [pytest.approx([10.0, 30.0, 10.0])]


@pytest.mark.parametrize("mapping", [DifferentialPair(), OneSidedPair(), OffsetColumn()])
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    w_max=st.floats(1e-3, 1e3),
    low=st.floats(0, 50e-6),
    span=st.floats(1e-6, 1e-3),
)
def test_every_mapping_reads_what_was_programmed(mapping, seed, w_max, low, span):
    array = crossbar(Ideal(low, low + span), mapping, (4, 5), w_max)
    wanted = w_max * (2 * torch.rand(4, 5, generator=generator(seed), dtype=torch.float64) - 1)
    array.program(wanted)
    assert torch.allclose(array.read(), wanted, rtol=0, atol=1e-12 * w_max * (low + span) / span)


def test_what_is_common_to_a_line_has_one_error():
    """A reference cell's error of 2 % of the span shifts all weights of its input by the same 2 x 2 % of w_max."""
    device = MemoryCell(LOW, HIGH, programming=WindowProgrammingNoise(0.02))
    array = crossbar(device, OffsetColumn(), (400, 300))
    array.program(torch.zeros(400, 300, dtype=torch.float64))
    error = array.read()
    common = error.mean(0)
    assert common.std().item() == pytest.approx(0.04, rel=5 / math.sqrt(2 * 300))
    assert (error - common).std().item() == pytest.approx(0.04, rel=5 / math.sqrt(2 * 120_000))
    pair = crossbar(device, DifferentialPair(), (400, 300))
    pair.program(torch.zeros(400, 300, dtype=torch.float64))
    assert pair.read().std().item() == pytest.approx(0.02 * math.sqrt(2), rel=5 / math.sqrt(2 * 120_000))


# -- pulses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "mapping", "step"),
    [(STEPS, DifferentialPair(), 0.02), (ONE_SIDED, OneSidedPair(), 0.01), (STEPS, OffsetColumn(), 0.02)],
)
def test_constant_steps_move_the_weight_by_what_is_said_to_be_written(device, mapping, step):
    """w_max = 3: a pulse of 1 uS is 1 % of the span. Two cells of a pair move, one of an offset column counts twice."""
    array = crossbar(device, mapping, (1, 4), w_max=3.0, rounding="nearest")
    start = weights([0.3, -0.3, 0.0, 0.6])
    array.program(start)
    assert array.step == pytest.approx(3 * step)
    wanted = 3 * step * weights([4.4, -7.0, 2.6, 0.4])
    written = array.write(wanted, array.read())
    assert torch.allclose(written, 3 * step * weights([4, -7, 3, 0]), rtol=1e-12)
    assert torch.allclose(array.read(), start + written, rtol=1e-9, atol=1e-12)
    each = 2 if mapping == DifferentialPair() else 1
    assert array.pulses == 14 * each


@pytest.mark.parametrize(
    ("rounding", "counts"),
    [("nearest", [2.0, -2.0, 1.0, 0.0, -0.0]), ("truncate", [1.0, -1.0, 0.0, 0.0, -0.0])],
)
def test_roundings_by_hand(rounding, counts):
    array = crossbar(STEPS, OffsetColumn(), (1, 5), rounding=rounding)
    array.program(torch.zeros(1, 5, dtype=torch.float64))
    written = array.write(array.step * weights([1.7, -1.7, 0.7, 0.3, -0.3]), array.read())
    assert torch.allclose(written, array.step * weights(counts), rtol=1e-12)


def test_one_sided_pairs_fill_up_and_a_refresh_makes_room():
    """w = 0.2 by 30 and 10 uS up and down pulses of 1 uS. After 25 up and 20 down: G+ at 55, G- at 30; after as many
    again 80 and 50: above 0.65 of the window (75 uS), so both are reset, to 40 and 10 uS, w = 0.3."""
    array = crossbar(ONE_SIDED, OneSidedPair(refresh_at=0.65, refresh_every=4), (1, 2))
    array.program(weights([0.2, 0.0]))
    for count, plus, minus in ((25, 55, 10), (-20, 55, 30), (25, 80, 30)):
        array.write(array.step * weights([count, 0]), array.read())
        assert [micro(array, "plus")[0], micro(array, "minus")[0]] == [
            pytest.approx([plus, 10]),
            pytest.approx([minus, 10]),
        ]
    reads = array.reads
    array.write(array.step * weights([-20, 3]), array.read())
    assert array.reads == reads + 2  # the refresh looks as well
    assert micro(array, "plus")[0] == pytest.approx([40, 13])  # the other pair has room and is left alone
    assert micro(array, "minus")[0] == pytest.approx([10, 10])
    assert torch.allclose(array.read(), weights([0.3, 0.03]), rtol=1e-9)
    assert array.writes == 4


def test_with_refreshes_a_one_sided_weight_keeps_moving_both_ways():
    """80 pulses up and 80 down, ten times: 1600 of 100 that fit in a cell. Without a refresh both cells are full."""
    for every, ends in ((1, True), (10**9, False)):
        array = crossbar(ONE_SIDED, OneSidedPair(0.75, every), (1, 1))
        array.program(weights([0.0]))
        for _ in range(10):
            for count in (80, -80):
                array.write(array.step * weights([count]), array.read())
        array.write(array.step * weights([30]), array.read())
        assert (array.read().item() == pytest.approx(0.3)) == ends
        if not ends:
            assert [micro(array, "plus"), micro(array, "minus")] == [[[pytest.approx(110)]]] * 2


def test_the_mapping_that_is_taken_unless_one_is_given():
    assert default_mapping(STEPS) == DifferentialPair()
    assert default_mapping(ONE_SIDED) == OneSidedPair()
    assert default_mapping(devices.preset("ideal")) == DifferentialPair()


# -- symmetry points ---------------------------------------------------------------------------------


@pytest.mark.parametrize("asymmetry", [0.0, 0.3, -0.4])
def test_the_symmetry_point_of_soft_bounds_is_found(asymmetry):
    """Up (1 + a)(1 - x) and down (1 - a) x are equal at x = (1 + a) / 2 of each cell's own range. The mean of the two
    places it alternates between is off by a (1 - a^2) / (2 steps) only: 0.1 % of the range here."""
    pulses = SoftBoundsPulses(100, asymmetry=asymmetry, sigma_bounds=0.2, sigma_dtod=0.1)
    array = crossbar(MemoryCell(LOW, HIGH, pulses=pulses), SymmetryReference(200, 4), (30, 20))
    params, reference = array.cells["plus"].params, array.cells["reference"]
    width = params["g_hi"] - params["g_lo"]
    expected = params["g_lo"] + width * (1 + asymmetry) / 2
    expected = expected.clamp(
        reference.params["g_lo"], reference.params["g_hi"]
    )  # a cell with bounds of its own
    inside = (expected > LOW) & (expected < HIGH)
    assert inside.double().mean() > 0.95
    assert ((reference.conductance - expected).abs()[inside] < 0.004 * SPAN).all()
    assert (array.cells["plus"].pulses == 400).all()  # they count


def test_coarse_steps_do_not_shift_the_symmetry_point():
    """15 steps: a cell alternates between q / (1 + q) = 0.464 and 0.536 of its range, q = 1 - 2/15; their mean is the
    middle, and an alternating cell reads +-0.0714 around w = 0."""
    array = crossbar(MemoryCell(LOW, HIGH, pulses=SoftBoundsPulses(15)), SymmetryReference(60, 3), (2, 2))
    assert torch.allclose(
        array.cells["reference"].conductance, torch.tensor(60e-6, dtype=torch.float64), rtol=1e-9
    )
    assert torch.allclose(array.read(), torch.full((2, 2), -1 / 14, dtype=torch.float64), rtol=1e-6)
    array.write(torch.full((2, 2), array.step, dtype=torch.float64), array.read())
    assert torch.allclose(array.read(), torch.full((2, 2), 1 / 14, dtype=torch.float64), rtol=1e-6)


def test_noise_of_pulses_and_reads_is_averaged_out_of_the_symmetry_point():
    """30 % from pulse to pulse and 2 % per read: single reads scatter by more than 2.5 %, the mean of 2 x 64 by less
    than 1.5 % (the state, of spread 0.3 / sqrt(4 x 63) = 1.9 %, forgets in 63 / 4 pairs of pulses)."""
    pulses = SoftBoundsPulses(63, asymmetry=0.2, sigma_c2c=0.3)
    device = MemoryCell(LOW, HIGH, pulses=pulses, read_noise=WhiteReadNoise(0.02))
    found = crossbar(device, SymmetryReference(150, 64), (40, 30)).cells["reference"].conductance
    assert found.mean().item() == pytest.approx(LOW + 0.6 * SPAN, abs=0.003 * SPAN)
    assert found.std().item() < 0.015 * SPAN


def test_weights_are_programmed_relative_to_the_symmetry_point():
    """x = 0.65 of the window, 75 uS: w = 0.4 is 95 uS, w = -0.5 50 uS; w = 0.9 would be 120 and ends at 110 uS."""
    device = MemoryCell(LOW, HIGH, pulses=SoftBoundsPulses(100, asymmetry=0.3))
    array = crossbar(device, SymmetryReference(150, 2), (1, 4))
    array.program(weights([0.0, 0.4, -0.5, 0.9]))
    assert array.read()[0, :3].tolist() == pytest.approx([0.0, 0.4, -0.5], abs=1e-9)
    assert micro(array, "plus")[0] == pytest.approx([75, 95, 50, 110], abs=0.3)
    assert array.step == pytest.approx(2 / 100)


def test_random_pulses_pull_a_weight_to_zero_that_is_its_symmetry_point():
    """From w = -0.6: 150 pairs of pulses of 1/100 leave exp(-6) of it, and the half step of the last pulse."""
    device = MemoryCell(LOW, HIGH, pulses=SoftBoundsPulses(100, asymmetry=0.3))
    array = crossbar(device, SymmetryReference(150, 2), (1, 2))
    array.program(weights([-0.6, 0.3]))
    for _ in range(150):
        for sign in (1, -1):
            array.pulse([torch.full((1, 2), sign)])
    assert array.read().abs().max() < 0.01 + 0.6 * math.exp(-6)


# -- state, costs ------------------------------------------------------------------------------------

NOISY = MemoryCell(
    LOW,
    HIGH,
    pulses=SoftBoundsPulses(40, sigma_dtod=0.2, sigma_c2c=0.3),
    programming=WindowProgrammingNoise(0.01),
    read_noise=FlickerReadNoise(0.02),
)
NOISY_ONE_SIDED = MemoryCell(
    LOW,
    HIGH,
    pulses=SoftBoundsPulses(40, sigma_dtod=0.2, sigma_c2c=0.3, one_sided=True),
    read_noise=WhiteReadNoise(0.02),
)


@pytest.mark.parametrize(
    ("device", "mapping"),
    [
        (NOISY, DifferentialPair()),
        (NOISY_ONE_SIDED, OneSidedPair(refresh_every=3)),
        (NOISY, OffsetColumn()),
        (NOISY, SymmetryReference(20, 2)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_every_mapping_goes_on_bit_for_bit(device, mapping):
    array, other = (
        crossbar(device, mapping, (5, 4), w, s, rounding="stochastic") for w, s in ((1.0, 1), (7.0, 2))
    )
    delta = 0.2 * torch.randn(6, 5, 4, generator=generator(3), dtype=torch.float64)
    array.program(0.5 * delta[0])
    for k in range(2):
        array.write(delta[k], array.read(float(k)), float(k))
    other.load_state_dict(array.state_dict())
    other.rng.set_state(array.rng.get_state())
    for k in range(2, 6):  # with a refresh of the one-sided pair on the way
        written = [a.write(delta[k], a.read(float(k)), float(k)) for a in (array, other)]
        assert torch.equal(*written)
    assert torch.equal(array.read(9.0), other.read(9.0))
    assert (array.pulses, array.writes, array.reads) == (other.pulses, other.writes, other.reads)


def test_a_state_of_other_arrays_is_refused():
    pair, offset = (crossbar(STEPS, mapping) for mapping in (DifferentialPair(), OffsetColumn()))
    with pytest.raises(
        ValueError, match=r"state is of arrays .*'minus'.*this crossbar has .*'reference'.*same mapping"
    ):
        offset.load_state_dict(pair.state_dict())
    with pytest.raises(ValueError, match=r"'plus': \(2, 3\).*this crossbar has .*'plus': \(3, 2\)"):
        crossbar(STEPS, DifferentialPair(), (3, 2)).load_state_dict(pair.state_dict())


def test_energy_by_hand():
    """G+ 75 and 60, G- 45 and 60 uS after 5 pulses on each cell of the first pair: 2 V, 100 ns: 4e-7 J/S each, 240 pJ.
    Two reads of all 240 uS at 0.1 V for 10 ns (1e-10 J/S): 48 fJ."""
    device = MemoryCell(LOW, HIGH, pulses=ConstantStepPulses(100), operation=Operation(2.0, 1e-7))
    array = crossbar(device, DifferentialPair(), (1, 2))
    array.program(weights([0.2, 0.0]))
    array.write(array.step * weights([5, 0]), array.read())
    array.read()
    write, read = array.joules
    assert write == pytest.approx(4e-7 * 5 * (75e-6 + 45e-6))
    assert write == pytest.approx(240e-12)
    assert read == pytest.approx(48e-15)
    assert crossbar(STEPS, None).joules is None


def test_verified_programming_says_how_many_cells_it_gave_up():
    device = MemoryCell(LOW, HIGH, pulses=ConstantStepPulses(100), faults=StuckCells(fraction_at_min=0.2))
    array = crossbar(device, OffsetColumn(), (20, 10), programming=ProgramVerify(0.01))
    assert array.failed == 0
    array.program(torch.full((20, 10), 0.3, dtype=torch.float64))
    stuck = sum(int((cells.params["stuck"] != 0).sum()) for cells in array.cells.values())
    assert array.failed == stuck / 210
    assert (array.read()[array.cells["plus"].params["stuck"] == 0] != 0).all()


# -- one cell ----------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), low=st.floats(0, 50e-6), span=st.floats(1e-6, 1e-3))
def test_one_cell_holds_a_conductance_as_it_is(seed, low, span):
    """In siemens, within the window of the device, and at its ends what is outside."""
    array = crossbar(Ideal(low, low + span), OneCell(), (4, 5), low + span)
    wanted = low + span * (2 * torch.rand(4, 5, generator=generator(seed), dtype=torch.float64) - 0.5)
    array.program(wanted)
    expected = wanted.clamp(low, low + span)
    assert torch.allclose(array.read(), expected, rtol=1e-12, atol=0)
    assert torch.allclose(array.cells["plus"].conductance, expected, rtol=1e-12, atol=0)
    assert set(array.cells) == {"plus"}
    assert array.cell_count == 20


def test_one_cell_is_scaled_by_its_device_not_by_the_weights():
    for weight in (torch.full((2, 2), 1e-6), torch.rand(2, 2, generator=generator(0))):
        assert OneCell().full_scale(weight, 5.0, STEPS) == HIGH
    assert OneCell().scale(STEPS) == pytest.approx(1 / HIGH)


def test_a_pulse_of_one_cell_is_a_step_of_conductance():
    """100 steps of 1 uS: in siemens, up to where the window ends."""
    array = crossbar(STEPS, OneCell(), (1, 3), HIGH, rounding="nearest")
    array.program(1e-6 * weights([20.0, 30.0, 109.0]))
    assert array.step == pytest.approx(1e-6)
    written = array.write(1e-6 * weights([4.4, -7.0, 3.0]), array.read())
    assert torch.allclose(written, 1e-6 * weights([4.0, -7.0, 3.0]), rtol=1e-9)
    assert micro(array, "plus") == [pytest.approx([24.0, 23.0, 110.0])]


def test_cells_without_pulses_are_programmed_by_what_changed():
    array = crossbar(Ideal(LOW, HIGH), OneCell(), (1, 3), HIGH)
    array.program(1e-6 * weights([20.0, 30.0, 109.0]))
    array.write(1e-6 * weights([4.5, -7.25, 3.0]), array.read())
    assert micro(array, "plus") == [pytest.approx([24.5, 22.75, 110.0])]


# -- complaints --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: crossbar(ONE_SIDED, DifferentialPair()),
            "DifferentialPair pulses cells down.*choose OneSidedPair",
        ),
        (lambda: crossbar(ONE_SIDED, OffsetColumn()), "OffsetColumn pulses cells down"),
        (lambda: crossbar(ONE_SIDED, SymmetryReference()), "SymmetryReference pulses cells down"),
        (lambda: crossbar(ONE_SIDED, OneCell()), "OneCell pulses cells down.*choose a device of both"),
        (lambda: crossbar(Ideal(), SymmetryReference()), "without pulses has no symmetry point"),
        (lambda: crossbar(STEPS, "offset"), "mapping = 'offset'; choose a Mapping"),
        (lambda: OneSidedPair(refresh_every=0), "refresh_every = 0; choose a whole number of at least 1"),
        (lambda: OneSidedPair(refresh_every=2.5), "refresh_every = 2.5; choose a whole number"),
        (
            lambda: OneSidedPair(refresh_at=1.5),
            r"refresh_at = 1.5; choose a share of the window in \[0.1, 1\]",
        ),
        (lambda: SymmetryReference(alternations=0), "alternations = 0; choose a whole number"),
        (lambda: SymmetryReference(10, 20), "reads = 20 of 10 alternations; choose at most as many"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""Diodes at a node against their textbook curves, written here once more and solved by scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor

from circuits.diodes import Diode, IdealDiode, PiecewiseLinearDiode, ShockleyDiode

F64 = torch.float64
THERMAL = 1.380649e-23 / 1.602176634e-19  # k/q, V/K

some = settings(max_examples=40, deadline=None)
arrangements = st.sampled_from(["alternating", "pair"])
offsets = st.sampled_from([0.0, 0.05, 0.4])
shockley = st.builds(
    ShockleyDiode,
    arrangement=arrangements,
    offset_volts=offsets,
    saturation_amperes=st.sampled_from([1e-15, 1e-11, 1e-8, 1e-6]),
    ideality=st.floats(1, 2),
    series_ohm=st.sampled_from([0.0, 10.0, 1e4]),
    kelvin=st.floats(250, 400),
)
linear = st.builds(
    PiecewiseLinearDiode,
    arrangement=arrangements,
    offset_volts=offsets,
    on_siemens=st.floats(1e-5, 1e-1),
    off_siemens=st.sampled_from([0.0, 1e-9, 1e-6]),
)
junctions = st.one_of(shockley, linear)
ideal = st.one_of(
    st.builds(IdealDiode, offset_volts=offsets),
    st.builds(IdealDiode, arrangement=st.just("pair"), offset_volts=st.sampled_from([0.05, 0.4])),
)
siemens = st.floats(-7, -2).map(lambda power: 10**power)
milliamperes = st.floats(-5, 5)


# -- the textbook ------------------------------------------------------------------------------------


def amperes(diode: Diode, y: float) -> float:
    """Of one diode with y volts across it."""
    if isinstance(diode, PiecewiseLinearDiode):
        return (diode.on_siemens if y > 0 else diode.off_siemens) * y
    volts = diode.ideality * THERMAL * diode.kelvin

    def through(junction: float) -> float:
        return diode.saturation_amperes * math.expm1(min(junction / volts, 700))

    if not diode.series_ohm:
        return through(y)
    low, high = min(y, 0.0) - 1e-12, max(y, 0.0) + 1e-12  # the series resistor takes some of it
    return through(
        brentq(lambda j: j + diode.series_ohm * through(j) - y, low, high, xtol=1e-16, maxiter=500)
    )


def signs(diode: Diode, n: int) -> list[tuple[int, ...]]:
    """Of the diodes at each node."""
    if diode.arrangement == "pair":
        return [(1, -1)] * n
    return [(-1,) if k % 2 == 0 else (1,) for k in range(n)]  # even nodes do not go below


def node_amperes(diode: Diode, of: tuple[int, ...], v: float) -> float:
    return sum(sign * amperes(diode, sign * v - diode.offset_volts) for sign in of)


def rest(diode: Diode, of: tuple[int, ...], current: float, conductance: float) -> float:
    """Where a node with diodes of these signs comes to rest."""
    if isinstance(diode, IdealDiode):
        low = -diode.offset_volts if -1 in of else -math.inf
        high = diode.offset_volts if 1 in of else math.inf
        return min(max(current / conductance, low), high)
    # reverse currents are at most those of all diodes at all offsets
    leak = sum(abs(amperes(diode, -abs(current / conductance) - diode.offset_volts)) for _ in of)
    reach = (abs(current) + leak) / conductance + 1e-9
    return brentq(
        lambda v: conductance * v + node_amperes(diode, of, v) - current,
        -reach,
        reach,
        xtol=1e-16,
        rtol=1e-15,
        maxiter=1000,
    )


def rows(*values: float, n: int = 2, dtype=F64) -> Tensor:
    return torch.tensor(values, dtype=dtype)[:, None].expand(-1, n)


# -- where nodes rest --------------------------------------------------------------------------------


@some
@given(diode=st.one_of(junctions, ideal), current=milliamperes, conductance=siemens)
def test_a_node_rests_where_the_textbook_says(diode, current, conductance):
    current *= conductance  # so that |v| is at most 5 V
    element = diode.layer(2, torch.zeros((), dtype=F64))
    found = element.rest(rows(current), torch.full((2,), conductance, dtype=F64))[0].tolist()
    expected = [rest(diode, of, current, conductance) for of in signs(diode, 2)]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@some
@given(diode=junctions, volts=st.floats(-3, 1.2))
def test_currents_are_those_of_the_textbook(diode, volts):
    found = diode.layer(2, torch.zeros((), dtype=F64)).current(rows(volts, -volts))
    for v, row in zip((volts, -volts), found.tolist(), strict=True):
        for of, current in zip(signs(diode, 2), row, strict=True):
            expected = node_amperes(diode, of, v)
            if abs(expected) < 1.0:  # A
                assert current == pytest.approx(expected, rel=1e-9, abs=1e-22)


# -- around a voltage --------------------------------------------------------------------------------


@some
@given(diode=junctions, at=st.floats(-4, 4), current=milliamperes, conductance=siemens)
@example(
    diode=ShockleyDiode(arrangement="pair", saturation_amperes=1e-6), at=3.0, current=-3.0, conductance=1e-5
)
def test_around_a_voltage_it_is_the_same_diode(diode, at, current, conductance):
    """Of nodes at rest by one current, that come to rest by another."""
    element, g = diode.layer(2, torch.zeros((), dtype=F64)), torch.full((2,), conductance, dtype=F64)
    first, second = rows(at * conductance), rows(current * conductance)
    v0 = element.rest(first, g)
    v1 = element.rest(second, g)
    at_offset = (v1.abs() - diode.offset_volts).abs() < 1e-9
    is_kinked = isinstance(diode, PiecewiseLinearDiode) and at_offset.any()
    for moved, z in ((element.around(v0), v1 - v0), (element.around(0.5 * v0).around(0.5 * v0), v1 - v0)):
        scale = (element.current(v0).abs() + element.current(v1).abs() + g * (v0.abs() + v1.abs())).amax()
        difference = element.current(v1) - element.current(v0)
        assert torch.allclose(moved.current(z), difference, rtol=1e-8, atol=1e-10 * scale.item())
        if not is_kinked:
            assert torch.allclose(moved.slope(z), element.slope(v1), rtol=1e-7, atol=0)
        assert torch.allclose(moved.rest(second - first, g), z, rtol=1e-8, atol=1e-9)


@some
@given(
    diode=ideal,
    at=milliamperes,
    current=milliamperes,
    conductance=siemens,
)
def test_around_a_voltage_walls_stand_where_they_did(diode, at, current, conductance):
    element, g = diode.layer(2, torch.zeros((), dtype=F64)), torch.full((2,), conductance, dtype=F64)
    v0 = element.rest(rows(at * conductance), g)
    moved = element.around(v0)
    expected = element.rest(rows(current * conductance), g) - v0
    assert torch.allclose(
        moved.rest(rows(current * conductance) - g * v0, g), expected, rtol=1e-12, atol=1e-14
    )


@some
@given(diode=junctions, at=st.floats(-2, 2), power=st.floats(-12, -3), sign=st.sampled_from([-1, 1]))
def test_small_deviations_keep_their_digits_in_single_precision(diode, at, power, sign):
    """1e-12 to 1e-3 of the current, where a difference of two voltages keeps seven digits less."""
    conductance = 1e-5
    double = diode.layer(2, torch.zeros((), dtype=F64))
    g = torch.full((2,), conductance, dtype=F64)
    v0 = double.rest(rows(at * conductance), g).float()
    single = diode.layer(2, v0).around(v0)
    double = double.around(v0.double())
    step = rows(sign * 10**power * conductance)
    expected = double.rest(step, g)
    # a junction voltage of t kT/q in seven digits makes a current of as many less t's
    assert torch.allclose(single.rest(step.float(), g.float()).double(), expected, rtol=5e-5, atol=0)
    z = expected.float()
    assert torch.allclose(single.current(z).double(), double.current(z.double()), rtol=5e-5, atol=1e-30)


# -- derivatives -------------------------------------------------------------------------------------


@some
@given(diode=junctions, volts=st.floats(-2, 2), shift=st.sampled_from([None, -0.5, 0.3]))
def test_slope_and_cocontent_are_derivative_and_integral_of_the_current(diode, volts, shift):
    plain = diode.layer(2, torch.zeros((), dtype=F64))
    element = plain if shift is None else plain.around(rows(shift))
    assume(abs(abs(volts + (shift or 0.0)) - diode.offset_volts) > 1e-9)  # where a line has its kink
    v = rows(volts).clone().requires_grad_()
    (slope,) = torch.autograd.grad(element.current(v).sum(), v)
    assert torch.allclose(element.slope(v.detach()), slope, rtol=1e-8, atol=1e-15)
    (current,) = torch.autograd.grad(element.cocontent(v).sum(), v)
    rounding = 1e-15 * slope.max().item() + 1e-30
    assert torch.allclose(current, element.current(v.detach()), rtol=1e-8, atol=rounding)


@some
@given(diode=shockley, current=milliamperes, conductance=siemens)
def test_rest_is_differentiable(diode, current, conductance):
    """dz = (di - z dG) / (G + f')."""
    element = diode.layer(2, torch.zeros((), dtype=F64))
    i = rows(current * conductance).clone().requires_grad_()
    g = torch.full((2,), conductance, dtype=F64, requires_grad=True)
    z = element.rest(i, g)
    by_current, by_conductance = torch.autograd.grad(z.sum(), (i, g))
    z = z.detach()
    yielding = 1 / (g.detach() + element.slope(z))
    assert torch.allclose(by_current, yielding, rtol=1e-6)
    assert torch.allclose(by_conductance, (-z * yielding)[0], rtol=1e-6, atol=1e-9 * yielding.max().item())


@some
@given(diode=junctions, volts=st.floats(-2, 2))
def test_diodes_dissipate_volts_times_amperes(diode, volts):
    """Without what the bias sources take up: of every diode its own voltage times its current."""
    found = diode.layer(2, torch.zeros((), dtype=F64)).dissipation(rows(volts))[0].tolist()
    for of, heat in zip(signs(diode, 2), found, strict=True):
        across = [sign * volts - diode.offset_volts for sign in of]
        expected = sum(y * amperes(diode, y) for y in across)
        if expected < 10:  # W: beyond, currents go on straight
            assert heat == pytest.approx(expected, rel=1e-9, abs=1e-22)
        assert heat >= 0


@some
@given(diode=junctions, power=st.floats(-9, -1))
def test_no_slope_up_to_a_current_is_above_the_steepest(diode, power):
    element, current = diode.layer(2, torch.zeros((), dtype=F64)), 10**power
    volts = torch.linspace(-2, 2, 400, dtype=F64)[:, None].expand(-1, 2)
    passes = element.current(volts).abs() <= current
    slopes = torch.where(passes, element.slope(volts), 0.0)
    steepest = element.steepest(torch.full((2,), current, dtype=F64))
    assert (slopes <= steepest * (1 + 1e-9)).all()


# -- extremes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("series", [0.0, 100.0])
@pytest.mark.parametrize("arrangement", ["alternating", "pair"])
@pytest.mark.parametrize("saturation", [1e-15, 1e-6])
def test_nothing_overflows_at_ten_kilovolts(dtype, series, arrangement, saturation):
    """A trial step of a solver may be anywhere; its current still rises with the voltage."""
    diode = ShockleyDiode(arrangement=arrangement, saturation_amperes=saturation, series_ohm=series)
    like = torch.zeros((), dtype=dtype)
    volts = torch.linspace(-1e4, 1e4, 201, dtype=dtype)[:, None].expand(-1, 2)
    plain = diode.layer(2, like)
    off = torch.tensor([[1e4, -1e4]], dtype=dtype)  # even nodes are held from below
    for element in (plain, plain.around(rows(0.7, dtype=dtype)), plain.around(off)):
        for found in (element.current(volts), element.slope(volts)):
            assert torch.isfinite(found).all()
        assert (element.current(volts).diff(dim=0) >= 0).all()
        g = torch.full((2,), 1e-5, dtype=dtype)
        found = element.rest(1e-5 * volts, g)
        assert torch.isfinite(found).all()
        assert (found.diff(dim=0) > -1e-6).all()
    assert torch.isfinite(plain.cocontent(volts)).all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("series", [0.0, 100.0])
def test_diodes_far_off_leave_their_node_to_its_conductances(dtype, series):
    """From -50 V, with no more than its saturation current left, deviations are those of a linear node until it
    conducts again."""
    diode = ShockleyDiode(saturation_amperes=1e-12, series_ohm=series)
    like, g = torch.zeros((), dtype=dtype), torch.full((2,), 1e-5, dtype=dtype)
    for volts in (0.4, 2.0, 50.0):
        v0 = torch.tensor([[volts, -volts]], dtype=dtype)  # even nodes are held from below
        element = diode.layer(2, like).around(v0)
        step = 1e-3 * g * v0
        assert torch.allclose(element.rest(step, g), step / g, rtol=1e-6)
        assert torch.allclose(element.rest(-step, g), -step / g, rtol=1e-6)


@pytest.mark.parametrize("series", [0.0, 1e3])
@pytest.mark.parametrize(("dtype", "volts"), [(torch.float32, 0.6), (F64, 0.6), (F64, 3.0), (F64, 10.0)])
def test_diodes_far_off_conduct_again_where_they_should(dtype, volts, series):
    """10 V are 387 kT/q."""
    diode = ShockleyDiode(saturation_amperes=1e-12, series_ohm=series)
    plain, g = diode.layer(2, torch.zeros((), dtype=dtype)), torch.full((2,), 1e-5, dtype=dtype)
    v0 = torch.tensor([[volts, -volts]], dtype=dtype)
    expected = plain.rest(-g * v0.sign(), g)  # alone it would be 1 V
    assert (expected.abs() < 0.5).all()
    element = plain.around(v0)
    found = element.rest(-g * (v0 + v0.sign()) - plain.current(v0), g)
    assert torch.allclose(found + v0, expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-9)
    assert torch.allclose(element.current(found), plain.current(expected), rtol=1e-3)


# -- settings ----------------------------------------------------------------------------------------


def test_alternating_diodes_hold_even_nodes_from_below_and_odd_ones_from_above():
    g, current = torch.ones(4, dtype=F64), torch.tensor([[-1.0, -1, 1, 1], [1, 1, -1, -1]], dtype=F64)
    held = IdealDiode(offset_volts=0.2).layer(4, current).rest(current, g)
    expected = torch.tensor([[-0.2, -1, 1, 0.2], [1, 0.2, -0.2, -1]], dtype=F64)
    assert torch.equal(held, expected)
    pair = IdealDiode(arrangement="pair", offset_volts=0.2).layer(4, current).rest(current, g)
    assert torch.equal(pair, 0.2 * current)
    soft = PiecewiseLinearDiode(on_siemens=1e6, off_siemens=0.0, offset_volts=0.2).layer(4, current)
    assert torch.allclose(soft.rest(current, g), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: IdealDiode(arrangement="both"),
            "unknown arrangement 'both'; choose one of alternating, pair",
        ),
        (lambda: IdealDiode(offset_volts=-0.1), "offset_volts = -0.1; choose a finite voltage >= 0 V"),
        (lambda: IdealDiode(offset_volts=math.nan), "offset_volts = nan"),
        (lambda: ShockleyDiode(offset_volts=math.inf), "offset_volts = inf"),
        (lambda: IdealDiode(arrangement="pair"), "holds its node at 0 V; choose offset_volts > 0"),
        (lambda: PiecewiseLinearDiode(on_siemens=1e-9), "choose 0 <= off < on, finite"),
        (lambda: PiecewiseLinearDiode(off_siemens=-1e-9), "off_siemens = -1e-09"),
        (lambda: PiecewiseLinearDiode(on_siemens=math.inf), "on_siemens = inf"),
        (lambda: ShockleyDiode(saturation_amperes=0.0), "saturation_amperes = 0.0; choose 1e-30 to 0.001"),
        (lambda: ShockleyDiode(saturation_amperes=math.nan), "saturation_amperes = nan"),
        (lambda: ShockleyDiode(ideality=0.1), "ideality = 0.1; choose 0.5 to 10"),
        (lambda: ShockleyDiode(series_ohm=-1.0), "series_ohm = -1.0; choose 0 to 1e"),
        (lambda: ShockleyDiode(kelvin=0.0), "kelvin = 0.0; choose 1 to 1000"),
    ],
)
def test_settings_out_of_range_are_named_with_their_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_thermal_voltage():
    assert ShockleyDiode(kelvin=300.0).thermal_volts == pytest.approx(0.02585199, rel=1e-6)
    assert ShockleyDiode(kelvin=300.0, ideality=2.0).thermal_volts == pytest.approx(0.05170398, rel=1e-6)

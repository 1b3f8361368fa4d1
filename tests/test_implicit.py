"""Implicit integration: against matrix exponentials, scipy's stiff solvers, and the explicit path."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from circuits import Layout, System, cost
from circuits.diodes import ShockleyDiode
from circuits.resistive import ResistiveCircuit
from mep_sim.settling import ODE, Implicit, SettlingError, Sweep, settle
from tests.conformance import CASES, EXACT, gap

METHODS = {"tr_bdf2": 2, "trapezoid": 2, "implicit_euler": 1}  # and their orders
VOLT = 0.025  # diodes: exp(v / VOLT)


class Ladder(System):
    """Nodes in a chain: C dv/dt = i - G v - I_s (exp(v / VOLT) - 1), G tridiagonal, a diode to ground at each where
    I_s > 0. Every second node at once rests given its neighbours, which is what its sweeps do."""

    def __init__(self, currents, conductances, capacitances, saturation=0.0):
        n = len(capacitances)
        super().__init__(Layout((n,)), currents, [(-math.inf, math.inf)])
        self.g, self.c, self.saturation = conductances, capacitances, saturation
        self.colours = torch.arange(0, n, 2), torch.arange(1, n, 2)

    def energy(self, z):
        content = self.saturation * (VOLT * torch.exp(z / VOLT) - z)
        return (0.5 * z * (z @ self.g) - self.drive * z + content).sum(1)

    def force(self, z):
        return self.drive - z @ self.g - self._diode(z)[0]

    def flow(self, z):
        return self.force(z) / self.c

    def paced(self, flow, z):
        return flow * self.c / self.slope(z)

    def slope(self, z):
        return self.g.diag() + self._diode(z)[1]

    def _diode(self, z):
        if not self.saturation:
            return torch.zeros_like(z), torch.zeros_like(z)
        x = z / VOLT  # goes on straight beyond 40: far above any voltage here, but solvers try such
        e = self.saturation * torch.exp(x.clamp(max=40))
        return e * (1 + (x - 40).clamp(min=0)) - self.saturation, e / VOLT

    def sweeps(self, z):
        z = z.clone()
        while True:
            before = z.clone()
            for nodes in self.colours:
                into = (self.drive - z @ self.g + z * self.g.diag())[:, nodes]
                z[:, nodes] = self._rest(into, self.g.diag()[nodes], z[:, nodes])
            yield z, (z - before).abs().amax(1)

    def _rest(self, into, g, v):
        """v with g v + I_s (exp(v / VOLT) - 1) = into, by Newton's method from where the exponential is below both."""
        if not self.saturation:
            return into / g
        v = torch.minimum(v, into / g)
        high = VOLT * torch.log((into / self.saturation).clamp(min=1) + 1)
        v = torch.where(into > 0, torch.minimum(into / g, high), into / g)
        for _ in range(10):
            f, slope = self._diode(v)
            v = v - (g * v + f - into) / (g + slope)
        return v

    def proximal(self, tau, centre):
        companion = self.c / tau
        step = copy.copy(self)
        step.g, step.drive = self.g + companion.diag(), self.drive + companion * centre
        return step

    def fastest_rate(self):
        return torch.linalg.eigvals(self.g / self.c[:, None]).real.max().item()

    def slowest_rate(self):
        return torch.linalg.eigvals(self.g / self.c[:, None]).real.min().item()

    def _recentre(self, free):
        raise NotImplementedError

    def rebind(self, params):
        raise NotImplementedError

    def contrast(self, free, nudged):
        raise NotImplementedError

    def largest_beta(self, cost, enough=math.inf):
        return math.inf

    def margin(self, cost, beta):
        return 1.0

    # -- references

    def exactly(self, times, z0=0.0):
        """States (T, B, n) of a linear ladder."""
        rest = torch.linalg.solve(self.g, self.drive.T).T
        rates = (self.g / self.c[:, None]).numpy()
        return torch.stack([rest + (z0 - rest) @ torch.as_tensor(expm(-rates * t)).T for t in times.tolist()])


def by_radau(system, times):
    """States (T, B, n) by scipy's implicit Runge-Kutta method of fifth order, row by row, from rest at 0 V."""
    unit, z = float(times[-1]), system.initial_state()

    def flow(_, v, row):
        at = z.clone()
        at[row] = torch.as_tensor(v)
        return unit * system.flow(at)[row].numpy()

    rows = []
    for row in range(len(z)):
        steps = {"t_eval": (times / unit).numpy(), "rtol": 1e-8, "atol": 1e-11}
        rows.append(solve_ivp(flow, (0, 1), z[row].numpy(), "Radau", args=(row,), **steps).y.T)
    return torch.as_tensor(np.stack(rows, 1))


def ladder(n=6, batch=3, capacitances=None, saturation=0.0, volts=1.0, seed=0, dtype=torch.float64):
    """Conductances of about 10 uS between neighbours and to sources of about `volts`, 1 pF at every node."""
    rng = torch.Generator().manual_seed(seed)
    beside, down = (1e-5 * (0.5 + torch.rand(k, generator=rng, dtype=torch.float64)) for k in (n - 1, n))
    g = torch.diag(down) - torch.diag(beside, 1) - torch.diag(beside, -1)
    g = g + torch.diag(torch.cat([beside, beside.new_zeros(1)]) + torch.cat([beside.new_zeros(1), beside]))
    sources = volts * (0.5 + torch.rand(batch, n, generator=rng, dtype=torch.float64))
    c = 1e-12 * (
        torch.ones(n, dtype=torch.float64) if capacitances is None else torch.as_tensor(capacitances)
    )
    return Ladder(*(t.to(dtype) for t in (sources * down, g, c)), saturation)


def log_times(first, last, count=40):
    return torch.cat([torch.zeros(1), torch.logspace(math.log10(first), math.log10(last), count)]).double()


NS = log_times(1e-9, 1e-6)
STIFF = [1.0, 1e-3, 1e6, 1e3, 1e-3, 1.0]  # pF: rates over nine decades


# -- fixed steps


def amplification(method, z):
    """What a step multiplies exp(rate t) by, z = rate x step (Bank et al. 1985; Hairer & Wanner 1996, IV.3)."""
    if method == "implicit_euler":
        return 1 / (1 - z)
    if method == "trapezoid":
        return (1 + z / 2) / (1 - z / 2)
    gamma = 2 - math.sqrt(2)
    middle = amplification("trapezoid", gamma * z)
    return (middle - (1 - gamma) ** 2) / (gamma * (2 - gamma)) / (1 - (1 - gamma) / (2 - gamma) * z)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reach", [1e-2, 1.0, 30.0, 1e6])
def test_a_single_node_is_damped_as_the_method_says(method, reach):
    """Far beyond its time constant a trapezoid throws a node to and fro; the others bring it to rest at once."""
    system = ladder(1)
    rest, h = system.drive / system.g[0, 0], reach / system.fastest_rate()
    times = h * torch.arange(4, dtype=torch.float64)
    e = settle(system, solver=Implicit(1e-6, method, step=h, max_evaluations=500), save_at=times)
    factor = amplification(method, -reach)
    expected = torch.stack([rest * (1 - factor**k) for k in range(4)])
    assert gap(e.transient.state, expected) < 1e-13 * (10 + reach)
    assert (abs(factor) > 0.99) == (method == "trapezoid") or reach < 1e6


@pytest.mark.parametrize(("method", "order"), METHODS.items())
def test_the_error_falls_with_the_order_of_the_method(method, order):
    system = ladder()
    times = torch.linspace(0, 8e-8, 5, dtype=torch.float64)
    exact = system.exactly(times)

    def error(step):
        e = settle(system, solver=Implicit(0.5, method, step=step, rtol=1e-9), save_at=times)
        return (e.transient.state - exact).abs().max().item()

    assert math.log2(error(2e-9) / error(1e-9)) == pytest.approx(order, abs=0.1)


def test_energy_never_rises_in_implicit_euler_steps_of_any_length():
    system = ladder(saturation=1e-9)
    for step in (1e-9, 1e-7):
        times = step * torch.arange(12, dtype=torch.float64)
        e = settle(
            system, solver=Implicit(1e-2, "implicit_euler", step=step, rtol=1e-6), save_at=times
        ).transient
        assert (e.energy.diff(dim=0) <= 1e-12 * e.energy.abs().max()).all()
        assert (e.energy[1] < e.energy[0]).all()


def test_fixed_steps_end_at_the_times_to_save():
    system = ladder()
    times = torch.tensor([0, 2.5e-9, 1e-8], dtype=torch.float64)
    solver = Implicit(1e-3, step=1e-8, rtol=1e-9)
    states = settle(system, solver=solver, save_at=times).transient.state
    alone = settle(system, solver=solver, save_at=times[:2]).transient.state
    assert torch.equal(states[:2], alone)
    assert gap(states, system.exactly(times)) < 1e-2


# -- adaptive steps


@pytest.mark.parametrize("rtol", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_linear_nodes_follow_the_matrix_exponential(rtol):
    system = ladder(12)
    e = settle(system, solver=Implicit(1e-6, rtol=rtol), save_at=NS)
    assert gap(e.transient.state, system.exactly(NS)) < 12 * rtol
    assert e.converged.all()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_adapts_its_steps(method):
    system = ladder()
    e = settle(system, solver=Implicit(1e-6, method, rtol=1e-3), save_at=NS)
    assert gap(e.transient.state, system.exactly(NS)) < 1e-2
    assert e.evaluations < 400
    assert e.converged.all()


def test_diodes_are_followed_as_by_radau():
    system = ladder(saturation=1e-9, batch=2)
    exact = by_radau(system, NS)
    for rtol, sweeps in ((1e-3, 80), (1e-5, 300)):
        e = settle(system, solver=Implicit(1e-6, rtol=rtol), save_at=NS)
        assert gap(e.transient.state, exact) < 15 * rtol
        assert e.evaluations < sweeps


@pytest.mark.parametrize(("rtol", "volts", "sweeps"), [(1e-3, 5e-4, 70), (3e-6, 1e-5, 300)])
def test_a_resistive_network_at_1_volt_is_followed_to_microvolts(rtol, volts, sweeps, resistive, by_scipy):
    e = settle(resistive, solver=Implicit(1e-6, rtol=rtol), save_at=by_scipy[0])
    assert (e.transient.state - by_scipy[1]).abs().max() < volts
    assert e.evaluations < sweeps
    assert e.converged.all()


@pytest.fixture(scope="module")
def resistive():
    rng = torch.Generator().manual_seed(0)
    circuit = ResistiveCircuit((8, 8, 4), ShockleyDiode(), rng=rng).double()
    x = 2 * torch.rand(2, 8, generator=rng, dtype=torch.float64) - 1
    return circuit.bind({name: p.detach() for name, p in circuit.params().items()}, x)


@pytest.fixture(scope="module")
def by_scipy(resistive):
    times = log_times(1e-11, 2e-7, 30)
    return times, by_radau(resistive, times)


def test_a_nudged_network_settles_in_deviations(resistive):
    free = settle(resistive, solver=Sweep(1e-13))
    nudged = resistive.around(free).nudged(cost("mse"), torch.zeros(2, dtype=torch.int64), 1e-6)
    e, exact = settle(nudged, solver=Implicit(1e-8)), settle(nudged, solver=Sweep(1e-13))
    assert e.converged.all()
    assert gap(e.deviation, exact.deviation) < 1e-6


def test_rates_over_nine_decades_take_few_steps_where_explicit_ones_are_refused():
    system = ladder(capacitances=STIFF)
    assert system.fastest_rate() / system.slowest_rate() > 1e8
    times = log_times(1e-11, 5.0)
    e = settle(system, solver=Implicit(1e-6, rtol=1e-4), save_at=times)
    assert gap(e.transient.state, system.exactly(times)) < 1e-3
    assert e.evaluations < 600
    assert e.converged.all()
    with pytest.raises(
        SettlingError, match=r"ratio of .*e\+0.*about .* evaluations.*Implicit\(method='tr_bdf2'\)"
    ):
        settle(system, solver=ODE(1e-6))


def test_what_explicit_steps_can_hold_is_not_refused():
    system = ladder()
    e = settle(system, solver=ODE(1e-6, rtol=1e-6), save_at=NS)
    assert e.converged.all()
    assert gap(e.transient.state, system.exactly(NS)) < 1e-5
    rested = settle(ladder(capacitances=STIFF), s0=settle(system, solver=EXACT).state, solver=ODE(1e-6))
    assert rested.converged.all()


@pytest.mark.parametrize("saturation", [0.0, 1e-9])
@pytest.mark.parametrize("method", METHODS)
def test_the_equilibrium_is_that_of_sweeps(method, saturation):
    system = ladder(saturation=saturation)
    e = settle(system, solver=Implicit(1e-8, method))
    assert e.converged.all()
    assert gap(e.state, settle(system, solver=EXACT).state) < 3e-7  # tolerance x the ladder's condition


def test_float32_settles_to_its_rounding():
    exact = settle(ladder(), solver=EXACT).state
    e = settle(ladder(dtype=torch.float32), solver=Implicit(1e-6, rtol=1e-4), save_at=NS)
    assert e.state.dtype == torch.float32
    assert e.converged.all()
    assert gap(e.state.double(), exact) < 3e-5
    assert gap(e.transient.state.double(), ladder().exactly(NS)) < 1e-3


def test_settling_times_are_those_of_exponentials_row_by_row():
    """A node's residual |rest - v| falls below tolerance |v| after ln(distance / (tolerance |rest|)) time constants."""
    system = ladder(1, batch=4)
    rest = system.drive / system.g[0, 0]
    distance = torch.tensor([1.0, 1e-2, -1e-4, 1e-8], dtype=torch.float64)
    for rtol, off in ((1e-2, 0.2), (1e-4, 0.1)):
        e = settle(system, rest * (1 - distance)[:, None], Implicit(1e-6, rtol=rtol))
        expected = (distance.abs() / 1e-6).log().clamp(min=0) / system.fastest_rate()
        assert e.time == pytest.approx(expected, rel=off)


def test_a_start_at_rest_is_left_there():
    system = ladder(saturation=1e-9)
    rest = settle(system, solver=EXACT).state
    e = settle(system, rest, Implicit(1e-6), save_at=NS)
    assert gap(e.transient.state, rest.expand(len(NS), -1, -1)) < 1e-9
    assert (e.time == 0).all()
    assert settle(system, rest, Implicit(1e-6)).evaluations == 0


def test_a_transient_has_the_states_energies_and_residuals_at_its_times():
    system = ladder(saturation=1e-9)
    e = settle(system, solver=Implicit(1e-6), save_at=NS)
    t = e.transient
    assert torch.equal(t.time, NS)
    assert torch.equal(t.state[0], system.initial_state())
    assert torch.equal(t.energy[7], system.energy(t.state[7]))
    assert torch.equal(t.residual[7], system.residual(t.state[7]))
    fewer = settle(system, solver=Implicit(1e-6), save_at=NS[::5]).transient
    assert torch.equal(fewer.state, t.state[::5])  # times to save do not change the steps
    assert e.converged.all()
    early = settle(system, solver=Implicit(1e-6), save_at=NS[:5])
    assert gap(early.state, e.state) < 1e-6
    assert (early.time > NS[4]).all()


# -- refusals


def test_the_budget_ends_settling_unconverged_and_saving_with_an_error():
    e = settle(ladder(), solver=Implicit(1e-9, max_evaluations=20))
    assert e.evaluations == 20
    assert not e.converged.any()
    with pytest.raises(SettlingError, match=r"max_evaluations = 20 sweeps were spent at time .* of 1e-06"):
        settle(ladder(), solver=Implicit(1e-9, max_evaluations=20), save_at=NS)


def test_a_circuit_without_an_implicit_step_says_so():
    with pytest.raises(ValueError, match=r"HopfieldSystem has no implicit step.*ODE"):
        settle(CASES["hopfield-1"]().bind(), solver=Implicit())


def test_what_is_not_finite_is_reported():
    system = ladder()
    system.drive[1, 2] = math.nan
    with pytest.raises(SettlingError, match="diverged"):
        settle(system, solver=Implicit())


def test_a_stage_that_sweeps_do_not_find_is_reported():
    """Without a minimum nodes run away; the sweeps of a long step too."""
    system = ladder()
    system.g = 2 * system.g - system.g.diag().diag()
    with pytest.raises(SettlingError, match=r"finds no step at time 0.*lower step"):
        settle(system, solver=Implicit(step=1e-6))


@pytest.mark.parametrize("times", [[0.0], [1.0, 2.0], [0.0, 1.0, 1.0], [[0.0, 1.0]]])
def test_save_times_must_increase_from_zero(times):
    with pytest.raises(ValueError, match="save_at must be increasing"):
        settle(ladder(), solver=Implicit(), save_at=torch.tensor(times))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": 0.0}, "tolerance = 0.0"),
        ({"method": "dopri5"}, "unknown implicit method 'dopri5'.*tr_bdf2"),
        ({"step": 0.0}, "step = 0.0"),
        ({"step": float("inf")}, "step = inf"),
        ({"rtol": 1.0}, "rtol = 1.0"),
        ({"max_evaluations": 0}, "max_evaluations = 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Implicit(**settings)

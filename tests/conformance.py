"""Checks that every energy circuit must pass on both paths to an equilibrium: one line in CASES runs them.

@pytest.mark.parametrize("check", circuit_checks)
@pytest.mark.parametrize("name", CASES)
def test_circuit(name, check):
    check(CASES[name]())
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from circuits import (
    Diode,
    EnergyCircuit,
    Equilibrium,
    FeedforwardCircuit,
    HopfieldCircuit,
    IdealDiode,
    PiecewiseLinearDiode,
    Residual,
    ResistiveCircuit,
    ShockleyDiode,
    System,
    cost,
)
from circuits.wires import Wires
from mep_sim.optimizers import BackpropGradient, EPGradient, ImplicitGradient
from mep_sim.settling import ODE, ODE_METHODS, SettlingError, Solver, Sweep, settle

COSTS = ("mse", "cross_entropy")
PHASES = (None, *COSTS)  # free, or nudged by one of them
BETA = 0.1
EXACT = Sweep(1e-13)
OPEN = (-math.inf, math.inf)


@dataclass(frozen=True)
class Case:
    """A contractive circuit in float64 with an input x (B, d) and class indices (B,).

    kink_free: a beta below which the nudge moves no unit across a kink or a wall. centred_order: of the
    centred estimate's error in beta. It is 1 for ReLU held at s >= 0: an inactive unit rises with a pull from
    above but does not sink with the opposite pull, so that +beta and -beta are no mirror images.
    backprop_rounding: of torch's own backward pass; that of its hard sigmoid has float32's 1/6 in any precision.
    """

    circuit: EnergyCircuit
    x: Tensor
    labels: Tensor
    kink_free: float = 0.1
    centred_order: int = 2
    backprop_rounding: float = 1e-12

    def params(self, dtype=torch.float64, device="cpu") -> dict[str, Tensor]:
        return {name: p.detach().to(device, dtype) for name, p in self.circuit.params().items()}

    def bind(self, dtype=torch.float64, device="cpu", x: Tensor | None = None) -> System:
        x = self.x if x is None else x
        return self.circuit.bind(self.params(dtype, device), x.to(device, dtype))

    def phase(
        self, name: str | None, beta: float = BETA, dtype=torch.float64, device="cpu", x=None
    ) -> System:
        """The free system, or the one nudged by this cost in deviations from its free equilibrium."""
        system = self.bind(dtype, device, x)
        if name is None:
            return system
        free = settle(system, solver=EXACT if dtype == torch.float64 else Sweep(1e-6))
        return system.around(free).nudged(cost(name), self.labels.to(device), beta)

    def gradient(self, strategy, dtype=torch.float64) -> Tensor:
        """A strategy's estimate, flat, in float64."""
        estimate = strategy.estimate(self.circuit, lambda: self.params(dtype), self.x.to(dtype), self.labels)
        return flat(estimate.gradient)


def case(
    build, sizes, seed: int = 0, *, batch: int = 4, bias: float = 0.0, scale: float = 1.0, **kwargs
) -> Case:
    """Inputs ~ N(0, 1), weights times `scale`, biases ~ N(`bias`, .3^2): nothing in it is special."""
    rng = torch.Generator().manual_seed(seed)
    circuit = build(sizes, rng).double()
    with torch.no_grad():
        for name, p in circuit.named_parameters():
            p.mul_(scale)
            if name.endswith("bias"):
                p.copy_(bias + 0.3 * torch.randn(p.shape, generator=rng, dtype=p.dtype))
    x = torch.randn(batch, sizes[0], generator=rng, dtype=torch.float64)
    labels = torch.randint(sizes[-1], (batch,), generator=rng)
    return Case(circuit, x, labels, **kwargs)


def hopfield(*sizes: int, box=(0.0, 1.0), gain: float = 0.4, **kwargs) -> Case:
    def build(sizes, rng):
        return HopfieldCircuit(sizes, box, gain, rng=rng)

    return case(build, sizes, bias=0.3 if box != OPEN else 0.0, **kwargs)


def feedforward(hidden: str, *sizes: int, constrain: bool = True, scale: float = 0.6, **kwargs) -> Case:
    def build(sizes, rng):
        return FeedforwardCircuit.from_sizes(sizes, hidden, rng=rng, constrain=constrain)

    return case(build, sizes, scale=scale, **kwargs)


def resistive(diode: Diode, *sizes: int, kink_free: float = 0.1, **settings) -> Case:
    """In siemens and farads of about 1, so that the betas of all circuits can be the same."""

    def build(sizes, rng):
        return ResistiveCircuit(sizes, diode, window=(0.01, 1.0), capacitance_farads=0.5, rng=rng, **settings)

    return case(build, sizes, kink_free=kink_free)


def sequential(*modules: nn.Module, x: tuple[int, ...], scale: float = 0.6, batch: int = 3, **kwargs) -> Case:
    """A model of any modules: weights ~ N(0, scale^2 / fan_in), statistics of no data in particular."""
    rng = torch.Generator().manual_seed(0)
    model = nn.Sequential(*modules).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=rng, dtype=p.dtype))
            p.mul_(scale / math.sqrt(p[0].numel()) if p.ndim > 1 else 0.3)
            if p.ndim == 1 and name.endswith("weight"):
                p.add_(1.0)
        for b in model.buffers():
            if b.is_floating_point():
                b.copy_(0.5 + torch.rand(b.shape, generator=rng, dtype=b.dtype))
    circuit = FeedforwardCircuit(model.eval(), input_shape=x)
    images = torch.randn(batch, *x, generator=rng, dtype=torch.float64)
    return Case(circuit, images, torch.randint(circuit.layout.sizes[-1], (batch,), generator=rng), **kwargs)


def residual_net(phi: type[nn.Module], scale: float = 0.25, **kwargs) -> Case:
    """Skips over one layer, over two, with a projection, and straight from the input."""
    return sequential(
        Residual(nn.Linear(6, 6), phi()),
        nn.Linear(6, 8),
        phi(),
        Residual(nn.Linear(8, 8), phi(), nn.Linear(8, 8)),
        nn.LayerNorm(8, eps=1.0),
        Residual(nn.Linear(8, 5), phi(), shortcut=nn.Linear(8, 5, bias=False)),
        nn.Linear(5, 4),
        x=(6,),
        scale=scale,
        **kwargs,
    )


CASES = {
    "conv-tanh": lambda: sequential(
        nn.Conv2d(2, 3, 3, padding=1, stride=2),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Conv2d(3, 4, 2, dilation=2),
        nn.Softplus(),
        nn.AvgPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(4, 4),
        x=(2, 7, 7),
    ),
    "conv-relu": lambda: sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 3, groups=1),
        nn.BatchNorm2d(4, affine=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 4),
        x=(1, 8, 8),
        kink_free=1e-3,
        centred_order=1,
    ),
    "layer-norm": lambda: sequential(
        nn.Flatten(),
        nn.Linear(6, 8),
        nn.LayerNorm(8),
        nn.GELU(),
        nn.Dropout(0.5),
        nn.Linear(8, 7),
        nn.BatchNorm1d(7),
        nn.Sigmoid(),
        nn.Linear(7, 4),
        nn.LayerNorm(4, eps=1.0, elementwise_affine=False),
        x=(2, 3),
    ),
    "hard-sigmoid": lambda: sequential(
        nn.Linear(6, 8),
        nn.Hardsigmoid(),
        nn.Linear(8, 8),
        nn.Hardsigmoid(),
        nn.Linear(8, 4),
        x=(6,),
        scale=1.5,
        kink_free=1e-4,
        centred_order=1,
        backprop_rounding=1e-7,
    ),
    "residual-tanh": lambda: residual_net(nn.Tanh),
    "residual-relu": lambda: residual_net(nn.ReLU, 0.1, kink_free=1e-3, centred_order=1),
    "resistive-ideal-1": lambda: resistive(IdealDiode(), 8, 10, 4, kink_free=1e-2),
    "resistive-ideal-2": lambda: resistive(
        IdealDiode(arrangement="pair", offset_volts=0.1), 8, 12, 10, 4, amplification=2.0, kink_free=1e-3
    ),
    "resistive-kinked": lambda: resistive(
        PiecewiseLinearDiode(offset_volts=0.1, on_siemens=5.0, off_siemens=0.1),
        8,
        6,
        5,
        4,
        amplification=1.2,
        readout_gain=0.5,
        paired_output=True,
        bias_volts=0.5,
        kink_free=1e-3,
    ),
    "resistive-shockley": lambda: resistive(
        ShockleyDiode(saturation_amperes=1e-3, ideality=10.0, series_ohm=0.3), 8, 10, 4
    ),
    "resistive-wired": lambda: resistive(
        IdealDiode(), 4, 6, 5, 4, wires=Wires(0.02, 0.03, 0.1, 0.05), amplification=1.3, kink_free=1e-3
    ),
    "hopfield-1": lambda: hopfield(8, 10, 4, kink_free=1e-2),
    "hopfield-2": lambda: hopfield(8, 12, 10, 4, kink_free=1e-3),
    "hopfield-3": lambda: hopfield(8, 12, 10, 9, 4, kink_free=1e-3),
    "hopfield-linear": lambda: hopfield(8, 12, 10, 4, box=OPEN, gain=0.3),
    "feedforward-tanh-1": lambda: feedforward("tanh", 8, 10, 4),
    "feedforward-tanh-2": lambda: feedforward("tanh", 8, 12, 10, 4),
    "feedforward-softplus-2": lambda: feedforward("softplus", 8, 12, 10, 4),
    "feedforward-gelu-2": lambda: feedforward("gelu", 8, 12, 10, 4),
    "feedforward-relu-1": lambda: feedforward("relu", 8, 10, 4, kink_free=1e-2, centred_order=1),
    "feedforward-relu-2": lambda: feedforward("relu", 8, 12, 10, 4, kink_free=1e-3, centred_order=1),
    "feedforward-softplus-3": lambda: feedforward("softplus", 8, 12, 10, 9, 4),
    "feedforward-linear-2": lambda: feedforward("linear", 8, 12, 10, 4),
}


# -- helpers ------------------------------------------------------------------------------------------


def flat(gradient) -> Tensor:
    return torch.cat([gradient[name].flatten() for name in sorted(gradient)]).double()


def gap(a: Tensor, b: Tensor) -> float:
    """Relative difference in the max-norm."""
    return ((a.double().cpu() - b.double().cpu()).abs().max() / b.abs().max().cpu()).item()


def moved(e: Equilibrium) -> Tensor:
    """What a phase settles: the deviation where there is one, else the state."""
    return e.state if e.deviation is None else e.deviation


def random_coordinates(system: System, seed: int = 1) -> Tensor:
    """Coordinates of states anywhere in the box, (B, n)."""
    rng = torch.Generator().manual_seed(seed)
    s = torch.empty(len(system.drive), system.layout.n, dtype=system.drive.dtype).normal_(generator=rng)
    s = s.clamp(system.lower, system.upper)
    return s if system.origin is None else s - system.origin


def solvers(tolerance: float, methods=ODE_METHODS) -> list[Solver]:
    return [Sweep(tolerance), *(ODE(tolerance, method) for method in methods)]


# -- energy and coordinates ---------------------------------------------------------------------------


def check_force_is_minus_the_energy_gradient(case: Case) -> None:
    plain = case.bind()
    around = plain.around(settle(plain, solver=EXACT))
    for system in (plain, around):
        for nudge in PHASES:
            phase = system if nudge is None else system.nudged(cost(nudge), case.labels, BETA)
            z = random_coordinates(phase).requires_grad_()
            (gradient,) = torch.autograd.grad(phase.energy(z).sum(), z)
            assert gap(phase.force(z.detach()), -gradient) < 1e-12, nudge


def check_deviations_see_the_same_flow(case: Case) -> None:
    """In deviations the flow differs by at most the free residual that was dropped; at zero it is zero."""
    plain = case.bind()
    for free in (settle(plain, solver=EXACT), settle(plain, solver=ODE(1e-4, "euler"))):
        around = plain.around(free)
        z = random_coordinates(around)
        left = free.residual.max().item()
        assert around.residual(around.initial_state()).max() <= 1e-15
        missed = around.relaxation(z) - plain.relaxation(around.state(z))
        assert missed.abs().max() <= 10 * left + 1e-12


# -- equilibria ---------------------------------------------------------------------------------------


def check_solvers_agree_in_float64(case: Case) -> None:
    for nudge in PHASES:
        system = case.phase(nudge)
        reference = settle(system, solver=EXACT)
        for solver in solvers(1e-11, ("euler",)):
            e = settle(system, solver=solver)
            assert e.converged.all(), (nudge, solver)
            assert (e.relative_residual <= 1e-11).all()
            assert e.evaluations > 0
            assert gap(moved(e), moved(reference)) < 1e-9, (nudge, solver)
            assert (e.time > 0).all() == isinstance(solver, ODE)


def check_solvers_agree_in_float32(case: Case) -> None:
    for nudge in PHASES:
        reference = settle(case.phase(nudge), solver=EXACT)
        system = case.phase(nudge, dtype=torch.float32)
        for solver in solvers(1e-6, ("dopri5",)):
            e = settle(system, solver=solver)
            assert e.converged.all(), (nudge, solver)
            assert e.state.dtype == torch.float32
            slack = 1e-6 * e.state.abs().max()
            assert ((e.state >= system.lower - slack) & (e.state <= system.upper + slack)).all()
            assert gap(moved(e), moved(reference)) < 1e-5, (nudge, solver)


def check_batch_companions_change_nothing(case: Case) -> None:
    """A sample beside one with a thousandfold input ends where it ends alone."""
    x = case.x.clone()
    x[-1] *= 1e3
    alone = dataclasses.replace(case, x=x[:1], labels=case.labels[:1])
    together = dataclasses.replace(case, x=x)
    for nudge in PHASES:
        for solver in solvers(1e-7, ("euler",)):
            a, b = (settle(c.phase(nudge), solver=solver) for c in (alone, together))
            assert a.converged.all()
            assert b.converged[0], (nudge, solver)
            assert gap(moved(b)[:1], moved(a)) < 1e-5, (nudge, solver)


def check_one_step_leaves_an_honest_residual(case: Case) -> None:
    """What has not settled says so, and the residual is that of the state returned."""
    budgets = {"max_evaluations": 9}
    hurried = (Sweep(1e-12, max_sweeps=1), ODE(1e-12, "euler", **budgets), ODE(1e-12, **budgets))
    for nudge in PHASES:
        system = case.phase(nudge)
        for solver in hurried:
            if nudge is None and isinstance(solver, Sweep) and isinstance(case.circuit, FeedforwardCircuit):
                continue  # its free sweep is the forward pass: exact at once
            e = settle(system, solver=solver)
            assert not e.converged.all()
            assert e.settled_fraction < 1
            scale = moved(e).abs().amax(1)
            assert ((e.residual - system.residual(moved(e))).abs() <= 1e-14 * scale).all()
            # asked for just what its best sample has, the same run reports that sample alone
            best = e.relative_residual.min().item() * 1.001
            again = settle(system, solver=dataclasses.replace(solver, tolerance=min(best, 0.5)))
            assert torch.equal(again.converged, e.relative_residual <= min(best, 0.5))
            assert e.evaluations <= 2 * 9


def check_a_huge_step_is_refused_in_one_line(case: Case) -> None:
    for nudge in PHASES:
        system = case.phase(nudge, dtype=torch.float32)  # float64 takes eight times the steps to overflow
        with pytest.raises(SettlingError, match=r"lower step = 50\.0") as caught:
            settle(system, solver=ODE(1e-6, "euler", step=50.0))
        assert "\n" not in str(caught.value)


def check_nan_is_refused(case: Case) -> None:
    inputs = {"x": case.x, **case.params()}
    for name, tensor in inputs.items():
        broken = tensor.clone()
        broken.view(-1)[0] = math.nan
        params = inputs | {name: broken}
        x = params.pop("x")
        for solver in solvers(1e-6, ("euler", "dopri5")):
            # wires with resistance are solved for before anything can settle
            with pytest.raises((SettlingError, ValueError), match=r"(?i)nan"):
                settle(case.circuit.bind(params, x), solver=solver)


# -- transients ---------------------------------------------------------------------------------------


def check_energy_never_rises(case: Case) -> None:
    times = torch.linspace(0, 10, 41, dtype=torch.float64)
    for nudge in PHASES:
        system = case.phase(nudge)
        e = settle(system, solver=ODE(1e-4, rtol=1e-5), save_at=times)
        energy, state = e.transient.energy, e.transient.state
        fall = energy[0] - energy[-1]
        assert (fall > 0).all()
        assert (energy.diff(dim=0) <= 1e-9 * fall).all(), nudge
        assert state.shape == (len(times), *case.x.shape[:1], system.layout.n)
        assert torch.equal(state[0], system.state(system.initial_state()))
        assert (e.transient.residual[-1] < e.transient.residual[0]).all()
        assert e.converged.all()


def check_companions_do_not_blur_a_transient(case: Case) -> None:
    """Steps are judged on each sample's own scale, whatever the scale of its companions."""
    times = torch.linspace(0, 3, 7, dtype=torch.float64)
    x = case.x.clone()
    x[-1] *= 1e3
    together = dataclasses.replace(case, x=x)
    a, b = (settle(c.bind(), solver=ODE(1e-3, rtol=1e-6), save_at=times).transient for c in (case, together))
    for i in range(len(x) - 1):
        assert gap(b.state[:, i], a.state[:, i]) < 1e-4


def check_recording_changes_nothing(case: Case) -> None:
    """Neither the equilibrium nor the time at which it settled, whether that is while recording or after."""
    system = case.phase(None)
    plain = settle(system, solver=ODE(1e-5, "bosh3"))
    for span in (0.1 * plain.time.min().item(), 3 * plain.time.max().item()):
        e = settle(system, solver=ODE(1e-5, "bosh3"), save_at=torch.tensor([0, span], dtype=torch.float64))
        assert gap(e.state, plain.state) < 1e-3
        assert gap(e.time, plain.time) < 0.2


# -- bounds -------------------------------------------------------------------------------------------


def check_fastest_rate_bounds_the_spectrum(case: Case) -> None:
    """At the equilibrium the flow's eigenvalues lie within it; for one hidden layer it is at most 3x off."""
    for nudge in PHASES:
        system = case.phase(nudge)
        z = settle(system, solver=EXACT)
        jacobian = torch.autograd.functional.jacobian(lambda z, s=system: s.flow(z).sum(0), moved(z))
        largest = torch.linalg.eigvals(jacobian.transpose(0, 1)).abs().max().item()
        assert largest <= system.fastest_rate() * (1 + 1e-9), nudge
        if len(system.layout.sizes) == 2:
            assert system.fastest_rate() <= 3 * largest


def check_within_largest_beta_both_signs_settle(case: Case) -> None:
    plain = case.bind()
    around = plain.around(settle(plain, solver=EXACT))
    for name in COSTS:
        certified, measured = plain.largest_beta(cost(name)), around.largest_beta(cost(name))
        assert 0 < certified <= measured * (1 + 1e-9)
        for beta in (0.8 * certified, -0.8 * certified):
            nudged = around.nudged(cost(name), case.labels, beta)
            sweep, ode = (settle(nudged, solver=solver) for solver in solvers(1e-7, ("euler",)))
            assert sweep.converged.all(), (name, beta)
            assert ode.converged.all(), (name, beta)
            assert gap(moved(sweep), moved(ode)) < 1e-5, (name, beta)


circuit_checks = [check for name, check in list(globals().items()) if name.startswith("check_")]


# -- gradients ----------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)  # checks of one case come one after the other
def exact_gradient(case: Case, loss_type: str) -> Tensor:
    return case.gradient(ImplicitGradient(loss_type, EXACT, adjoint_tolerance=1e-13))


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def slope(betas: list[float], errors: list[float]) -> float:
    """Of the least-squares line through the points on log-log axes."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (betas, errors))
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / x.square().sum()).item()


def ep(loss_type: str, beta: float, phases: str = "one_sided", solver: Solver = EXACT) -> EPGradient:
    return EPGradient(loss_type, beta, phases, solver, nudged_tolerance=1e-11)


def ep_errors(case: Case, loss_type: str, phases: str, betas: list[float], exact: Tensor) -> list[float]:
    return [relative(case.gradient(ep(loss_type, beta, phases)), exact) for beta in betas]


def check_contrast_is_the_energies_derivative(case: Case) -> None:
    """(dE/dtheta at the nudged state - at the free state) / beta by autograd, at a beta that is not small."""
    plain = case.bind()
    free = settle(plain, solver=EXACT)
    for loss_type in COSTS:
        phase = case.phase(loss_type)
        nudged = settle(phase, solver=Sweep(1e-8))
        params = {name: p.requires_grad_() for name, p in case.params().items()}
        system = case.circuit.bind(params, case.x)
        lowered = (system.energy(nudged.state) - system.energy(free.state)).mean() / BETA
        expected = dict(zip(params, torch.autograd.grad(lowered, list(params.values())), strict=True))
        assert relative(flat(phase.contrast(free, nudged)), flat(expected)) < 1e-11


def check_gradient_exact_oracles(case: Case) -> None:
    """The implicit gradient is the derivative of the settled cost: by backprop, and by finite differences."""
    for loss_type in COSTS:
        exact = exact_gradient(case, loss_type)
        if isinstance(case.circuit, FeedforwardCircuit):
            allowed = max(1e-9, case.backprop_rounding)
            assert relative(exact, case.gradient(BackpropGradient(loss_type))) < allowed
        rng = torch.Generator().manual_seed(2)
        params = case.params()
        direction = {k: torch.randn(p.shape, generator=rng, dtype=p.dtype) for k, p in params.items()}

        def settled_cost(h: float, params=params, direction=direction, loss_type=loss_type) -> Tensor:
            system = case.circuit.bind({k: p + h * direction[k] for k, p in params.items()}, case.x)
            output = system.readout(settle(system, solver=EXACT).state)
            c = cost(loss_type)
            return c.value(output, c.target(case.labels, output)).mean()

        h = 1e-5
        derivative = (settled_cost(h) - settled_cost(-h)) / (2 * h)
        assert derivative.item() == pytest.approx((exact @ flat(direction)).item(), rel=1e-7)


def check_gradient_converges_in_beta(case: Case) -> None:
    """Error O(beta) one-sided, O(beta^2) centred (see `Case.centred_order`), down to 1e-6 and below."""
    for loss_type in COSTS:
        exact = exact_gradient(case, loss_type)
        betas = [case.kink_free * 10.0**-k for k in range(5)]
        errors = ep_errors(case, loss_type, "one_sided", betas, exact)
        assert slope(betas, errors) == pytest.approx(1, abs=0.05), errors
        errors = ep_errors(case, loss_type, "centred", betas[:3], exact)
        assert slope(betas[:3], errors) == pytest.approx(case.centred_order, abs=0.06), errors
        # small enough for a centred error of 1e-6, large enough for the free phase's rounding
        beta = 1e-4 if case.centred_order == 2 else 1e-6
        by_sweeps = case.gradient(ep(loss_type, beta, "centred"))
        by_dynamics = case.gradient(ep(loss_type, beta, "centred", ODE(1e-11, "euler")))
        assert relative(by_sweeps, exact) < 1e-6
        assert relative(by_dynamics, by_sweeps) < 1e-8


def check_gradient_survives_float32(case: Case) -> None:
    """beta = 1e-3 in float32: rounding adds little in deviations, far more where states are subtracted."""
    beta, low = 1e-3, torch.float32
    for loss_type in COSTS:
        exact = exact_gradient(case, loss_type)
        in_deviations = case.gradient(
            EPGradient(loss_type, beta, solver=Sweep(1e-6), nudged_tolerance=1e-6), low
        )
        assert torch.cosine_similarity(in_deviations, exact, dim=0) > 0.9999
        system = case.bind(low)
        free = settle(system, solver=Sweep(1e-6))
        nudged = system.nudged(cost(loss_type), case.labels, beta)
        subtracted = flat(nudged.contrast(free, settle(nudged, free.state, Sweep(1e-6))))
        unrounded = case.gradient(ep(loss_type, beta))
        assert relative(in_deviations, unrounded) < 2e-5
        assert relative(subtracted, unrounded) > 3 * relative(in_deviations, unrounded)


def check_one_sweep_is_backprop_or_refused(case: Case) -> None:
    for loss_type in COSTS:
        for beta in (1e-6, 0.3, 100.0):
            one_sweep = EPGradient(loss_type, beta, "one_sweep", EXACT)
            if isinstance(case.circuit, FeedforwardCircuit):
                backprop = case.gradient(BackpropGradient(loss_type))
                assert relative(case.gradient(one_sweep), backprop) < case.backprop_rounding
            else:
                with pytest.raises(ValueError, match="feedforward energy only"):
                    case.gradient(one_sweep)


gradient_checks = [
    check_contrast_is_the_energies_derivative,
    check_gradient_exact_oracles,
    check_gradient_converges_in_beta,
    check_gradient_survives_float32,
    check_one_sweep_is_backprop_or_refused,
]

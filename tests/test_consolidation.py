"""Consolidation in the optimizer: precisions by hand, what every strategy keeps to, what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import devices
from circuits import FeedforwardCircuit, HopfieldCircuit
from circuits.chip import Chip
from circuits.pulse_trains import PulseTrains
from mep_sim import checkpoint
from mep_sim.optimizers import (
    AutoEWC,
    CompositeOptimizer,
    DionUpdate,
    EPGradient,
    ErrorFeedback,
    KroneckerConsolidation,
    MuonUpdate,
    NaturalGradient,
    NoConsolidation,
    NoFeedback,
    NoWriteFeedback,
    PlainUpdate,
    PrecisionConsolidation,
    SpectralConstraint,
    Surprise,
    SurpriseGated,
)
from tests.device_conformance import generator
from tests.test_baselines_gradients import network, task
from tests.test_layers import one_by_one

ONE_SWEEP = EPGradient(phases="one_sweep")
OFTEN = Surprise(ratio=1.01, rate=0.5, refractory=2, longest=2)
STRATEGIES = {
    "none": NoConsolidation(),
    "precision": PrecisionConsolidation(leak=0.1),
    "surprise gated": SurpriseGated(rate=0.3, surprise=OFTEN),
    "auto ewc": AutoEWC(rate=0.3, surprise=OFTEN),
    "kronecker": KroneckerConsolidation(rate=0.3, stride=2, surprise=OFTEN),
}
every = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


def optimizer_of(model: nn.Module, consolidation=None, gradient=ONE_SWEEP, **settings) -> CompositeOptimizer:
    """Plain steps, unless told otherwise."""
    settings = {"lr": 0.1, "feedback": NoFeedback(), **settings}
    return CompositeOptimizer(
        model.parameters(), gradient, model=model, consolidation=consolidation, **settings
    )


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def train(optimizer: CompositeOptimizer, steps: int, first: int = 0) -> None:
    for seed in range(first, first + steps):
        x, y = task(seed=seed)
        optimizer.step(x=x, target=y)


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


# -- precisions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("leak", [0.0, 0.25])
def test_precisions_and_steps_are_those_worked_by_hand(leak):
    """Lambda <- Lambda + gain sum c^2 + leak (1 / sigma^2 - Lambda), and a step of -lr g / (sigma^2 Lambda)."""
    sigma, gain, lr, model = 0.2, 3.0, 0.1, network()
    optimizer = optimizer_of(model, PrecisionConsolidation(sigma, gain, leak), lr=lr)
    circuit = optimizer.circuit
    expected = copy.deepcopy(circuit)
    precision = {n: torch.full_like(p, 1 / sigma**2) for n, p in expected.named_parameters()}
    for seed in range(3):
        x, y = task(seed=seed)
        each = one_by_one(expected, x, y)
        optimizer.step(x=x, target=y)
        with torch.no_grad():
            for name, p in expected.named_parameters():
                fresh = precision[name] + leak * (1 / sigma**2 - precision[name])
                precision[name] = fresh + gain * each[name].square().sum(0)
                p -= lr * each[name].mean(0) / (sigma**2 * precision[name])
        for name, p in circuit.named_parameters():
            assert torch.allclose(optimizer.state[p]["precision"], sigma**2 * precision[name], rtol=1e-9)
            assert torch.allclose(p, expected.get_parameter(name), rtol=1e-9, atol=1e-12)


def test_at_a_learning_rate_of_batch_times_variance_a_step_is_that_of_a_gaussian_posterior():
    """Lambda' = Lambda + sum c^2 and mu' = mu - sum c / Lambda', with what has been learned before in Lambda."""
    sigma, (x, y), model = 0.3, task(), network()
    optimizer = optimizer_of(model, PrecisionConsolidation(sigma, gain=1.0), lr=len(x) * sigma**2)
    train(optimizer, 2, first=5)
    before = {n: (p.detach().clone(), optimizer.state[p]["precision"]) for n, p in optimizer._named.items()}
    each = one_by_one(optimizer.circuit, x, y)
    optimizer.step(x=x, target=y)
    for name, p in optimizer.circuit.named_parameters():
        mean, past = before[name]
        posterior = past / sigma**2 + each[name].square().sum(0)
        assert torch.allclose(p, mean - each[name].sum(0) / posterior, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("update", [PlainUpdate(momentum=0.9), MuonUpdate(), DionUpdate(2, dion_thresh=0)])
def test_a_gain_of_zero_changes_nothing(update):
    settings = {"update": update, "constraint": SpectralConstraint(0.7), "feedback": ErrorFeedback()}
    models = [network(), network()]
    for model, strategy in zip(models, (None, PrecisionConsolidation(gain=0.0, leak=0.1)), strict=True):
        train(optimizer_of(model, strategy, **settings), 4)
    assert same(*map(weights, models))


@pytest.mark.parametrize("update", [MuonUpdate(), DionUpdate(2, dion_thresh=0)])
def test_precisions_come_after_m_and_before_s(update):
    """The step of Muon or Dion with a carry, divided by the precision; the bound holds of what is written."""
    settings = {"update": update, "feedback": ErrorFeedback()}
    (plain, free, bound), start = [network() for _ in range(3)], weights(network())
    strategy = PrecisionConsolidation(gain=1000.0)
    optimizers = [optimizer_of(plain, **settings), optimizer_of(free, strategy, **settings)]
    optimizers.append(optimizer_of(bound, strategy, constraint=SpectralConstraint(0.7), **settings))
    for optimizer in optimizers:
        train(optimizer, 1)
    for a, b, p in zip(free.parameters(), plain.parameters(), start, strict=True):
        precision = optimizers[1].state[a]["precision"]
        assert precision.max() > 1.5
        assert torch.allclose(a - p, (b - p) / precision, rtol=1e-9, atol=1e-14)
    carries = [[o.state[p]["carry"] for p in o._named.values() if p.ndim == 2] for o in optimizers]
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*carries, strict=True))
    train(optimizers[2], 3, first=1)
    for layer in (bound[0], bound[2]):
        assert torch.linalg.matrix_norm(layer.weight, 2) <= 0.7


def test_on_a_chip_a_stiff_synapse_is_asked_for_less_and_gets_fewer_pulses(monkeypatch):
    """Precisions of 8 in the first layer, beside the cells."""
    asked, pulses = [], []
    write = Chip.write
    monkeypatch.setattr(Chip, "write", lambda chip, deltas: asked.append(dict(deltas)) or write(chip, deltas))
    for stiffness in (1.0, 8.0):
        circuit = FeedforwardCircuit(network())
        chip = Chip(circuit, devices.preset("mo-ecram"), generator())
        settings = {"lr": 0.5, "write_feedback": NoWriteFeedback()}
        optimizer = optimizer_of(circuit, PrecisionConsolidation(gain=0.0), chip=chip, **settings)
        stiff = circuit.get_parameter("model.0.weight")
        optimizer.state[stiff]["precision"] = torch.full_like(stiff, stiffness)
        before = {name: crossbar.pulses for name, crossbar in chip.crossbars.items()}
        train(optimizer, 1)
        pulses.append({name: crossbar.pulses - before[name] for name, crossbar in chip.crossbars.items()})
        assert torch.equal(optimizer.state[stiff]["precision"], torch.full_like(stiff, stiffness))
    first, second = "model.0.weight", "model.2.weight"
    assert torch.allclose(8 * asked[1][first], asked[0][first], rtol=1e-12, atol=1e-14)
    assert torch.equal(asked[1][second], asked[0][second])
    assert pulses[1][second] == pulses[0][second] > 0
    assert 0 < 8 * pulses[1][first] <= pulses[0][first]


# -- what every strategy keeps to ----------------------------------------------------------------------


def test_without_consolidation_a_step_is_what_it_was():
    models = [network(), network(), network()]
    optimizers = [optimizer_of(models[0]), optimizer_of(models[1], NoConsolidation())]
    train(optimizers[0], 1)
    train(optimizers[1], 1)
    for (p, q, w), g in zip(
        zip(*(m.parameters() for m in models), strict=True),
        optimizers[0].estimate.gradient.values(),
        strict=True,
    ):
        assert torch.equal(p, torch.sub(w, g, alpha=0.1))
        assert torch.equal(p, q)
        assert not optimizers[0].state[p]
    assert not optimizers[0].memory


@every
@pytest.mark.parametrize(
    "gradient", [ONE_SWEEP, EPGradient(phases="random_sign", seed=3)], ids=["sweep", "coin"]
)
def test_training_goes_on_bit_for_bit(strategy, gradient, tmp_path):
    """From a file, from a copy and from a pickle."""
    settings = {"gradient": gradient, "feedback": ErrorFeedback(), "update": MuonUpdate()}
    model = network()
    optimizer = optimizer_of(model, strategy, **settings)
    train(optimizer, 5)
    checkpoint.save(tmp_path / "c.pt", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    state, resumed = checkpoint.load(tmp_path / "c.pt"), network(1)
    resumed.load_state_dict(state["model"])
    again = optimizer_of(resumed, strategy, **settings)
    again.load_state_dict(state["optimizer"])
    pairs = [(resumed, again), copy.deepcopy((model, optimizer))]
    pairs.append(pickle.loads(pickle.dumps((model, optimizer))))
    train(optimizer, 5, first=5)
    for other, its in pairs:
        train(its, 5, first=5)
        assert same(weights(other), weights(model))
        assert its.memory.keys() == optimizer.memory.keys()


@every
def test_two_calls_are_one(strategy):
    models = [network(), network()]
    one, two = (optimizer_of(m, strategy, feedback=ErrorFeedback()) for m in models)
    train(one, 6)
    for seed in range(6):
        two.compute_gradient(*task(seed=seed))
        two.step()
        two.zero_grad()
    assert same(*map(weights, models))


@every
def test_what_learns_in_part_is_consolidated_in_part(strategy):
    """A frozen bias, a frozen layer, a layer of another optimizer: they stay, and have no memory."""
    model = network(0, nn.Linear(6, 6).double())
    model[1].bias.requires_grad_(False)
    model[3].requires_grad_(False)
    handed = CompositeOptimizer(
        [*model[1].parameters(), *model[3].parameters()], ONE_SWEEP, model=model, consolidation=strategy
    )
    before = weights(model)
    train(handed, 6)
    moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
    assert moved == [False, False, True, False, False, False]
    assert [bool(handed.state.get(p)) for p in model.parameters()] == moved


@every
def test_a_gradient_taken_out_is_not_observed(strategy):
    model = network()
    optimizer = optimizer_of(model, strategy)
    train(optimizer, 6)
    before, states = weights(model), [dict(optimizer.state[p]) for p in model.parameters()]
    optimizer.compute_gradient(*task(seed=9))
    for p in model[0].parameters():
        p.grad = None
    optimizer.step()
    for p, q, state in list(zip(model.parameters(), before, states, strict=True))[:2]:
        assert torch.equal(p, q)
        assert all(optimizer.state[p][key] is value for key, value in state.items())
    assert not torch.equal(model[2].weight, before[2])


def test_evidence_goes_with_its_gradient():
    """zero_grad and a closure forget what a batch told; a mean is then all there is."""
    model, (x, y) = network(), task()
    optimizer = optimizer_of(model, PrecisionConsolidation())

    def closure() -> Tensor:
        for p in model.parameters():
            p.grad = None
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.compute_gradient(x, y)
    with pytest.raises(ValueError, match="PrecisionConsolidation learns from single samples"):
        optimizer.step(closure)
    optimizer.compute_gradient(x, y)
    optimizer.zero_grad()
    closure()
    with pytest.raises(ValueError, match=r"`.grad` holds their mean: use step\(x=, target=\), or AutoEWC"):
        optimizer.step()
    assert not any(optimizer.state.values())


class _Looks(TorchDispatchMode):
    """Counts the times that a tensor's value is asked for, which a GPU's queue has to be waited for."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in self.names
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", STRATEGIES)
def test_only_a_surprise_waits_for_the_gpu_and_once_a_step(name):
    found = []
    for strategy in (None, STRATEGIES[name]):
        optimizer = optimizer_of(network(), strategy)
        train(optimizer, 6)  # past two surprises
        with _Looks() as looks:
            train(optimizer, 6, first=6)
        found.append(looks.count)
    assert found[0] > 0
    assert found[1] - found[0] == (0 if name in ("none", "precision") else 6)


# -- it complains --------------------------------------------------------------------------------------

SINGLE = [s for s in STRATEGIES.values() if s.needs_factors]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.0}, r"sigma = 0.0; choose a finite sigma > 0, such as 0.07"),
        ({"sigma": float("inf")}, r"sigma = inf; choose a finite sigma > 0"),
        ({"gain": -1.0}, r"gain = -1.0; choose a finite gain >= 0, such as 10"),
        ({"gain": float("nan")}, r"gain = nan; choose a finite gain >= 0"),
        ({"leak": 1.0}, r"leak = 1.0; choose 0 <= leak < 1, such as 1e-4"),
        ({"leak": -0.1}, r"leak = -0.1; choose 0 <= leak < 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PrecisionConsolidation(**settings)


def test_three_of_them_learn_from_single_samples():
    assert [type(s) for s in SINGLE] == [PrecisionConsolidation, SurpriseGated, KroneckerConsolidation]


@pytest.mark.parametrize("strategy", SINGLE, ids=lambda s: type(s).__name__)
def test_single_samples_take_a_model_of_layers_and_a_gradient_that_knows_them(strategy):
    name = type(strategy).__name__
    with pytest.raises(ValueError, match=f"{name} learns from single samples: pass model="):
        CompositeOptimizer(network().parameters(), consolidation=strategy)
    normed = network(0, nn.LayerNorm(6).double())
    message = (
        "knows weights and biases of layers only, and model.1.weight, model.1.bias learn too: use AutoEWC"
    )
    with pytest.raises(ValueError, match=f"{name} {message}"):
        optimizer_of(normed, strategy)
    words = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=f"{name} .*, and model.0.weight learn too"):
        optimizer_of(words, strategy)
    normed[1].requires_grad_(False)
    train(optimizer_of(normed, strategy), 1)
    for gradient in (None, NaturalGradient()):
        optimizer = optimizer_of(network(), strategy, gradient)
        with pytest.raises(
            ValueError, match=f"gives no factors of single samples, which {name} needs; use EPG"
        ):
            train(optimizer, 1)


@pytest.mark.parametrize("strategy", list(STRATEGIES.values())[1:], ids=list(STRATEGIES)[1:])
def test_pulse_trains_leave_nothing_to_consolidate(strategy):
    circuit = FeedforwardCircuit(network())
    chip = Chip(circuit, devices.preset("mo-ecram"), generator(), trains=PulseTrains())
    with pytest.raises(ValueError, match=rf"consolidation = {type(strategy).__name__}.* pulse trains"):
        CompositeOptimizer(circuit.parameters(), ONE_SWEEP, model=circuit, chip=chip, consolidation=strategy)


@pytest.mark.parametrize("strategy", list(STRATEGIES.values())[1:-1], ids=list(STRATEGIES)[1:-1])
def test_a_circuit_with_feedback_is_consolidated_too(strategy):
    """Importances and precisions grow where states of the two phases differ, and only there."""
    circuit = HopfieldCircuit((4, 6, 3), rng=generator()).double()
    with torch.no_grad():
        circuit.layers[0].bias[0] = 100.0  # a unit held at its wall in both phases
    optimizer = optimizer_of(circuit, strategy, EPGradient(phases="centred"))
    train(optimizer, 6)
    key, rest = (
        ("precision", 1.0) if "precision" in optimizer.state[circuit.layers[0].weight] else ("importance", 0)
    )
    grown = optimizer.state[circuit.layers[0].weight][key] - rest
    assert torch.equal(grown[0], torch.zeros(4).double())
    assert (grown[1:].amax(1) > 0).any()
    assert (grown >= -1e-12).all()

"""What training mode changes: dropout masks that all phases share, running statistics that move once a step."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from circuits import FeedforwardCircuit, cost
from mep_sim.optimizers import BackpropGradient, EPGradient
from mep_sim.settling import Sweep, settle
from tests.conformance import EXACT, flat, gap, relative

# -- dropout ------------------------------------------------------------------------------


def dropout_net() -> tuple[FeedforwardCircuit, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Dropout(0.2),
        nn.Linear(6, 8),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(8, 8),
        nn.Tanh(),
        nn.Linear(8, 3),
    ).double()
    circuit = FeedforwardCircuit(model, dropout=torch.Generator().manual_seed(3))
    return circuit, torch.randn(5, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])


def masks(system) -> dict[str, Tensor]:
    return {name: m for name, m in system.params.items() if name.endswith(".mask")}


class Times(nn.Module):
    def __init__(self, mask: Tensor):
        super().__init__()
        self.mask = mask

    def forward(self, x):
        return x * self.mask


def masked_gradient(circuit: FeedforwardCircuit, drawn: dict[str, Tensor], x, labels) -> Tensor:
    """Backprop through a model that multiplies by these masks where the circuit's has its Dropout."""
    model = copy.deepcopy(circuit.model)
    for i, m in enumerate(model):
        if isinstance(m, nn.Dropout):
            model[i] = Times(drawn[f"model.{i}.mask"])
    loss = nn.functional.cross_entropy(model(x), labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return flat(dict(zip(circuit.params(), gradients, strict=True)))


def test_dropout_is_left_out_unless_a_generator_is_given():
    circuit, x, _ = dropout_net()
    off = FeedforwardCircuit(circuit.model.train())
    system = off.bind(off.params(), x)
    assert masks(system) == {}
    assert gap(system.readout(settle(system).state), copy.deepcopy(off.model).eval()(x)) < 1e-14


def test_masks_are_drawn_once_per_bind_in_training_mode_only():
    circuit, x, labels = dropout_net()
    first, second = (circuit.bind(circuit.params(), x) for _ in range(2))
    assert masks(first).keys() == {"model.0.mask", "model.3.mask"}
    for name, keep in (("model.0.mask", 0.8), ("model.3.mask", 0.5)):
        mask = masks(first)[name]
        assert len(mask) == len(x)
        assert set(mask.unique().tolist()) == {0.0, 1 / keep}
        assert not torch.equal(mask, masks(second)[name])
    # the nudged phase and other parameters see the same
    again = first.rebind({n: p + 0.1 for n, p in circuit.params().items()})
    nudged = first.around(settle(first)).nudged(cost("mse"), labels, 0.1)
    for system in (again, nudged):
        assert all(m is masks(first)[name] for name, m in masks(system).items())
        assert len(masks(system)) == 2
    circuit.model.eval()
    assert masks(circuit.bind(circuit.params(), x)) == {}
    circuit.model[3].train()
    assert masks(circuit.bind(circuit.params(), x)).keys() == {"model.3.mask"}


def test_masks_keep_the_mean():
    circuit, _, _ = dropout_net()
    drawn = masks(circuit.bind(circuit.params(), torch.zeros(4000, 6, dtype=torch.float64)))
    assert drawn["model.0.mask"].mean().item() == pytest.approx(1, abs=4 * math.sqrt(0.2 / 0.8 / 24_000))
    assert drawn["model.3.mask"].mean().item() == pytest.approx(1, abs=4 * math.sqrt(1 / 32_000))


@pytest.mark.parametrize(("phases", "beta", "allowed"), [("one_sweep", 0.5, 1e-12), ("centred", 1e-4, 1e-7)])
def test_the_estimate_is_backprop_through_the_same_masks(phases, beta, allowed):
    circuit, x, labels = dropout_net()
    drawn = masks(circuit.bind(circuit.params(), x))
    expected = masked_gradient(circuit, drawn, x, labels)
    circuit.dropout.manual_seed(3)
    strategy = EPGradient("cross_entropy", beta, phases, EXACT, 1e-11)
    found = flat(strategy.estimate(circuit, circuit.params, x, labels).gradient)
    assert relative(found, expected) < allowed
    unmasked = flat(
        BackpropGradient("cross_entropy").estimate(circuit, lambda: circuit.params(), x, labels).gradient
    )
    assert relative(found, unmasked) > 0.1


# -- batch normalisation --------------------------------------------------------------------


def norm_net() -> tuple[FeedforwardCircuit, Tensor, Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(6, 8),
        nn.BatchNorm1d(8),
        nn.Tanh(),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.Tanh(),
        nn.Linear(8, 3),
    ).double()
    return (
        FeedforwardCircuit(model.train()),
        torch.randn(5, 6, dtype=torch.float64),
        torch.tensor([0, 1, 2, 0, 1]),
    )


def test_samples_of_a_batch_do_not_see_each_other_while_settling():
    circuit, x, labels = norm_net()

    def settled(rows) -> Tensor:
        system = circuit.bind(circuit.params(), x[rows])
        around = system.around(settle(system))
        return settle(around.nudged(cost("mse"), labels[rows], 0.1), solver=Sweep(1e-12)).deviation

    together = settled(slice(None))
    for i in range(len(x)):
        assert gap(together[i : i + 1], settled(slice(i, i + 1))) < 1e-9


@pytest.mark.parametrize("phases", ["one_sided", "centred", "one_sweep"])
def test_statistics_move_once_a_step_to_those_of_the_free_phase(phases):
    circuit, x, labels = norm_net()
    model = circuit.model
    frozen = copy.deepcopy(model).eval()
    EPGradient("mse", 0.05, phases, Sweep(1e-9)).estimate(circuit, circuit.params, x, labels)
    for k in (1, 4):
        seen = frozen[:k](x)
        assert model[k].num_batches_tracked == 1
        assert gap(model[k].running_mean, 0.1 * seen.mean(0)) < 1e-12
        assert gap(model[k].running_var, 0.9 + 0.1 * seen.var(0)) < 1e-12
    model.eval()
    EPGradient("mse", 0.05, phases, Sweep(1e-9)).estimate(circuit, circuit.params, x, labels)
    assert model[1].num_batches_tracked == 1


def test_a_batch_of_one_is_refused_in_training():
    circuit, x, labels = norm_net()
    with pytest.raises(ValueError, match="give larger batches"):
        EPGradient("mse", 0.05).estimate(circuit, circuit.params, x[:1], labels[:1])

"""LocalEPGradient: the same numbers as EPGradient, from nothing but what is at a layer's synapses."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from circuits import FeedforwardCircuit, cost
from mep_sim.optimizers import AutoBeta, EPGradient, LocalEPGradient
from mep_sim.optimizers.strategies.ep import Phase
from mep_sim.settling import Sweep, settle
from tests.conformance import CASES, COSTS, EXACT, Case, feedforward, relative


def embedding_net() -> Case:
    """Embedding at the input and a dropout mask, drawn once for both phases."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(11, 3), nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 4)
    ).double()
    circuit = FeedforwardCircuit(model, dropout=torch.Generator(), input_shape=(4,))
    x, labels = torch.randint(11, (5, 4)), torch.randint(4, (5,))
    return Case(circuit, x, labels)


ALL = {**CASES, "embedding": embedding_net}


@pytest.mark.parametrize("loss_type", COSTS)
@pytest.mark.parametrize("phases", ["one_sided", "centred"])
@pytest.mark.parametrize("name", ALL)
def test_it_equals_the_contrast_of_all_layers_at_once(name, phases, loss_type):
    case = ALL[name]()
    beta = AutoBeta(largest=case.kink_free)
    estimates = []
    for kind in (EPGradient, LocalEPGradient):
        if name == "embedding":
            case.circuit.dropout.manual_seed(1)
        strategy = kind(loss_type, beta, phases, Sweep(1e-9), nudged_tolerance=1e-7)
        estimates.append(strategy.estimate(case.circuit, case.params, case.x, case.labels))
    joint, local = (e.gradient for e in estimates)
    assert joint.keys() == local.keys() == case.params().keys()
    size = max(g.norm() for g in joint.values())
    for parameter in joint:
        assert (local[parameter] - joint[parameter]).norm() <= 1e-12 * size, parameter
    assert torch.equal(estimates[0].loss, estimates[1].loss)


# wires with resistance are solved for, and that refuses NaN
@pytest.mark.parametrize("name", [name for name in ALL if name != "resistive-wired"])
def test_a_layer_reads_only_its_own_synapses(name):
    """NaN in all parameters and states but a layer's own and its inputs' leaves its update as it is, bit for bit."""
    case = ALL[name]()
    circuit, layout = case.circuit, case.circuit.layout
    system = circuit.bind(case.params(), case.x)
    free = settle(system, solver=EXACT)
    beta = 0.1 * case.kink_free
    nudged = system.around(free).nudged(cost("mse"), case.labels, beta)
    masks = {n: m for n, m in getattr(system, "params", {}).items() if n.endswith("mask")}
    whole = Phase(beta, {**case.params(), **masks}, nudged, settle(nudged, solver=Sweep(1e-7)))
    expected = LocalEPGradient().contrast(circuit, free, whole)

    def only(layer: int) -> Phase:
        reads = {layer, *circuit.inputs_of(layer)}
        bounds = torch.tensor((0, *layout.sizes)).cumsum(0).tolist()

        def blanked(states):
            states = states.clone()
            for i in set(range(len(layout.sizes))) - reads:
                states[:, bounds[i] : bounds[i + 1]] = math.nan
            return states

        own = circuit.layer_parameters(layer)
        params = {n: p if n in own else torch.full_like(p, math.nan) for n, p in whole.params.items()}
        other = torch.full_like(case.x, math.nan) if case.x.is_floating_point() else torch.zeros_like(case.x)
        x = case.x if -1 in reads else other
        at = dataclasses.replace(
            whole.at, state=blanked(whole.at.state), deviation=blanked(whole.at.deviation)
        )
        return Phase(beta, params, SimpleNamespace(x=x), at)

    seen = set()
    for layer in range(len(layout.sizes)):
        found = LocalEPGradient().contrast(circuit, None, only(layer))
        for parameter in set(circuit.layer_parameters(layer)) & expected.keys():
            assert torch.equal(found[parameter], expected[parameter]), (layer, parameter)
            seen.add(parameter)
    assert seen == case.params().keys()


def test_in_float32_deviations_keep_what_subtracting_states_would_lose():
    case = feedforward("tanh", 8, 12, 10, 4)
    loss_type, beta = "cross_entropy", 1e-3
    exact = case.gradient(LocalEPGradient(loss_type, beta, solver=EXACT, nudged_tolerance=1e-11))
    rounded = case.gradient(
        LocalEPGradient(loss_type, beta, solver=Sweep(1e-6), nudged_tolerance=1e-5), torch.float32
    )
    assert relative(rounded, exact) < 2e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phases": "one_sweep"}, "unknown phases 'one_sweep' of LocalEPGradient"),
        ({"independent_reads": True}, "independent_reads is not local"),
    ],
)
def test_what_is_not_local_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LocalEPGradient(**settings)

"""Contrasts of states as converters measure them."""

from __future__ import annotations

import pytest
import torch

from circuits import FeedforwardCircuit, HopfieldCircuit
from circuits.periphery import Converter
from mep_sim.optimizers import CompositeOptimizer, EPGradient, PlainUpdate, SampledEPGradient
from tests.device_conformance import generator

SIZES = (6, 8, 4)
CIRCUITS = {
    "feedforward": lambda: FeedforwardCircuit.from_sizes(SIZES, "tanh", rng=generator()).double(),
    "hopfield": lambda: HopfieldCircuit(SIZES, rng=generator()).double(),
}


def gradient(kind: str, strategy: EPGradient, memory: dict | None = None) -> torch.Tensor:
    circuit = CIRCUITS[kind]()
    x = torch.randn(10, 6, generator=generator(1), dtype=torch.float64)
    y = torch.randint(4, (10,), generator=generator(2))
    found = strategy.estimate(circuit, circuit.params, x, y, memory).gradient
    return torch.cat([found[name].flatten() for name in sorted(found)])


def error(kind: str, beta: float, **settings) -> float:
    exact = gradient(kind, EPGradient(beta=beta))
    return ((gradient(kind, SampledEPGradient(beta=beta, **settings)) - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("kind", CIRCUITS)
@pytest.mark.parametrize("phases", ["one_sided", "centred"])
def test_a_fine_converter_changes_nothing(kind, phases):
    exact = gradient(kind, EPGradient(phases=phases))
    sampled = gradient(kind, SampledEPGradient(phases=phases, adc=Converter(None)))
    assert torch.allclose(
        sampled, exact, rtol=0, atol=1e-8
    )  # a saturated unit sits on its wall to the free tolerance


@pytest.mark.parametrize("kind", CIRCUITS)
def test_an_amplifier_keeps_the_error_of_the_converter_whatever_beta(kind):
    """8 bits of what moved, at most half a step of 1/127 of the largest, for a nudge a hundred times smaller too."""
    for beta in (0.1, 0.001):
        assert error(kind, beta, adc=Converter(8)) < 0.05


@pytest.mark.parametrize("kind", CIRCUITS)
def test_without_one_the_error_is_divided_by_beta(kind):
    """16 bits, so that small nudges are still seen: a tenth of the nudge, ten times the error."""
    errors = [error(kind, beta, adc=Converter(16), amplified=False) for beta in (0.1, 0.01)]
    assert 5 < errors[1] / errors[0] < 20


def test_noise_goes_on_from_the_callers_memory():
    strategy = SampledEPGradient(adc=Converter(None, noise=0.01))
    memory: dict = {}
    first, second = (gradient("feedforward", strategy, memory) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, gradient("feedforward", strategy, {}))


def test_it_trains():
    circuit = CIRCUITS["feedforward"]()
    optimizer = CompositeOptimizer(
        circuit.parameters(), SampledEPGradient(adc=Converter(6)), PlainUpdate(), lr=0.5, model=circuit
    )
    x = torch.randn(20, 6, generator=generator(1), dtype=torch.float64)
    y = x[:, :4].argmax(1)
    losses = [optimizer.step(x=x, target=y).item() for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(ValueError, match="phases = one_sweep"):
        SampledEPGradient(phases="one_sweep")
    with pytest.raises(ValueError, match="adc = 8; give a Converter"):
        SampledEPGradient(adc=8)

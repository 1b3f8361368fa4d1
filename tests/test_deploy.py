"""Train digitally, deploy, drift: the clock and the compensations, the table, and the experiment made small."""

import dataclasses
import json

import pytest
import torch

from circuits import FeedforwardCircuit
from circuits.chip import Chip
from devices import MemoryCell, PowerLawDrift
from experiments import crossbar_mnist, deploy
from experiments.common import generator
from experiments.deploy import COMPENSATIONS, DeployConfig, Row, drifting, duration, run, summarised, train
from experiments.learner import Learner
from mep_sim.data import load
from mep_sim.optimizers import BackpropGradient, CompositeOptimizer, NoisyWeights

SMOKE = DeployConfig(dataset="digits", smoke=True, seeds=1, chips=1, workers=1, times=(0.0, 3600.0))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0 s"),
        (0.5, "0.5 s"),
        (1.0, "1 s"),
        (7200.0, "2 h"),
        (86_400.0, "1 d"),
        (30 * 86_400.0, "30 d"),
        (365 * 86_400.0, "1 y"),
    ],
)
def test_times_in_words(seconds, words):
    assert duration(seconds) == words


def test_compensations_look_at_the_same_chip_at_the_same_times():
    """Falling to a half and a quarter with biases that do not: the class changes. Both gains give it back."""
    circuit = FeedforwardCircuit.from_sizes((2, 2), rng=generator(0))
    weight, bias = circuit.parameters()
    with torch.no_grad():
        # class 0 as long as w > bias = 0.4: w = 1 at first, a half at 1023 s, a quarter at 1024^2 - 1 s
        weight.copy_(torch.eye(2))
        bias.copy_(torch.tensor([0.0, 0.4]))
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    cell = MemoryCell(0.0, 25e-6, drift=PowerLawDrift(nu=0.1, t0_seconds=1.0))
    chip = Chip(circuit, cell, generator(0))
    chip.program(chip.targets)
    optimizer = CompositeOptimizer(circuit.parameters(), model=circuit, chip=chip)
    learner = Learner("toy", optimizer, 1, 1, generator(0))
    found = drifting(learner, (0.0, 1023.0, 1024.0**2 - 1), x, y)
    assert found == {"none": [1.0, 1.0, 0.0], "global": [1.0, 1.0, 1.0], "column": [1.0, 1.0, 1.0]}


def test_lines_hold_intervals_over_seeds_of_means_over_chips():
    row = Row(crossbar_mnist.Config(), BackpropGradient(), None, (0.0, 60.0), 2, False)

    def cell(digital, *chips):
        return {"accuracy": digital, "deployed": dict.fromkeys(COMPENSATIONS, chips)}

    # by chip and time; means over chips, %: (85, 65) and (75, 65); of the other row (85, 60) and (75, 50)
    results = [cell(0.9, [0.8, 0.6], [0.9, 0.7]), cell(0.9, [0.7, 0.6], [0.8, 0.7])]
    others = [cell(0.9, [0.85, 0.6], [0.85, 0.6]), cell(0.9, [0.75, 0.5], [0.75, 0.5])]
    none, _, column = summarised(row, results, others, "toy")
    assert (none["compensation"], column["compensation"]) == ("none", "column")
    assert none["scores"] == [pytest.approx([85, 65]), pytest.approx([75, 65])]
    # t(0.975, 1) = 12.706; deviations 10 / sqrt(2) and 5 / sqrt(2), over sqrt(2)
    assert none["0 s"] == "80.00 ± 63.53"
    assert none["60 s"] == "65.00 ± 0.00"
    assert none["difference"] == "+10.00 ± 63.53"
    assert none["digital"] == "90.00 ± 0.00"
    assert summarised(row, results, None, "toy")[0]["difference"] is None


def test_smoke_run_end_to_end_and_resumed(tmp_path, capsys):
    config = dataclasses.replace(SMOKE, out=tmp_path / "run")
    lines = run(config)
    names = ["backprop", "backprop, 5 % noise", "EP, 5 % noise", "backprop, the cell itself"]
    assert [line["training"] for line in lines] == [name for name in names for _ in COMPENSATIONS]
    assert json.loads((config.out / "results.json").read_text()) == lines
    assert (config.out / "deploy.png").stat().st_size > 10_000
    assert ", seed 0: " in capsys.readouterr().out
    assert run(dataclasses.replace(config, resume=True)) == lines
    assert ", seed 0: " not in capsys.readouterr().out  # nothing was computed again
    with pytest.raises(ValueError, match="other settings"):
        run(dataclasses.replace(config, resume=True, w_range=4.0))


def test_rows_share_their_start_and_differ_in_the_gradient_alone():
    rows = SMOKE.table()
    plain = rows["backprop"]
    for row in rows.values():
        assert dataclasses.replace(row, gradient=plain.gradient, reference=None) == plain
    noisy = rows["EP, 5 % noise"].gradient
    assert isinstance(noisy, NoisyWeights)
    assert (noisy.sigma, noisy.w_range, noisy.inner.beta) == (0.05, SMOKE.w_range, 0.1)
    loop = rows["backprop, the cell itself"]
    assert loop.gradient.device == loop.cell


def test_validation_leaves_the_test_part_alone(monkeypatch):
    config = dataclasses.replace(SMOKE, validation=True)
    data = load("digits", samples=400)
    broken = dataclasses.replace(data, test_x=torch.full_like(data.test_x, torch.nan))
    row = config.table()["backprop"]
    expected = train("backprop", row, 0, config)
    monkeypatch.setattr(crossbar_mnist.Config, "data", lambda _: broken)
    assert train("backprop", row, 0, config)["deployed"] == expected["deployed"]
    learner = deploy.trained("backprop", row, 0)
    assert expected["accuracy"] == learner.accuracy(data.validation_x, data.validation_y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chips": 0}, "chips = 0; choose at least 1"),
        ({"times": ()}, "give one or more times"),
        ({"times": (60.0, 0.0)}, "each later than the one before"),
        ({"times": (-1.0, 0.0)}, "choose finite times >= 0 s"),
        ({"mapping": "triple"}, "unknown mapping 'triple'; choose one of auto, pair"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DeployConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "none"}, "no chip to deploy on"),
        ({"cell": "pmc"}, "Did you mean 'pcm'"),
        ({"cell": "sonos", "times": (0.0, 6 * 86_400.0)}, "times reach 6 d, but .* sonos is known for 5 d"),
        ({"noise": (2.0,)}, "sigma = 2.0"),
        ({"rows": ("SGD",)}, r"unknown rows \['SGD'\]"),
    ],
)
def test_unknown_rows_and_cells_are_refused_before_anything_is_trained(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(dataclasses.replace(SMOKE, **options, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()

"""`EPMonitor`: the predecessor's README as written, its epochs and its picture."""

from __future__ import annotations

import gc
import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizer_module

from mep_sim import EPMonitor, smep
from mep_sim.metrics import Cosine, EpochMetrics, margin_of
from mep_sim.monitor import metrics_of
from mep_sim.optimizers import BackpropGradient, CompositeOptimizer, EPGradient, ImplicitGradient
from mep_sim.settling import EPWarning
from tests.monitored import batch, epoch_of, estimated, feedforward, hopfield, optimizer_of


def test_readme_snippet(capsys, recwarn):
    """As the predecessor's README has it: the monitor is told of no step, and sees them all."""
    torch.manual_seed(0)
    model, epochs = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)), 3
    train_loader = [tuple(v.float() if v.is_floating_point() else v for v in batch(i)) for i in range(4)]
    gaps = []

    monitor = EPMonitor()
    optimizer = smep(model.parameters(), model=model, mode="ep")

    for epoch in range(epochs):
        monitor.start_epoch()

        for x, y in train_loader:
            optimizer.step(x=x, target=y)
            gaps.append(metrics_of(optimizer).energy_gap)

        metrics = monitor.end_epoch(model, optimizer)
        print(f"Epoch {epoch}: Energy gap = {metrics.energy_gap:.4f}")

        if not monitor.check_convergence():
            print("Warning: Settling may not have converged!")

    print(monitor.summary())

    out = capsys.readouterr().out
    assert "Warning" not in out
    assert not recwarn.list
    assert [m.energy_gap for m in monitor.epochs] == pytest.approx(
        [sum(gaps[i : i + 4]) / 4 for i in range(0, 12, 4)]
    )
    lines = monitor.summary().splitlines()
    assert lines[0].split()[:2] == ["epoch", "loss"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]
    for shown in (f"{metrics.loss:.4f}", "100.0%", f"{metrics.margin:.3g}", f"{metrics.weakest_snr:.3g}"):
        assert shown in lines[3].split()
    assert lines[3].split()[-1] == "-"  # no cosine was asked for
    assert len({len(line) for line in lines}) == 1


# -- epochs --------------------------------------------------------------------------------------


def test_an_epoch_is_the_mean_of_its_steps_however_often_observed():
    circuit, monitor = feedforward(), EPMonitor()
    optimizer = smep(circuit.parameters(), model=circuit)
    for _ in range(2):  # a second epoch starts afresh
        monitor.start_epoch()
        losses = []
        for i in range(3):
            losses.append(optimizer.step(x=batch(i)[0], target=batch(i)[1]).item())
            assert monitor.observe(optimizer).loss == losses[-1]
        assert monitor.end_epoch(circuit, optimizer).loss == pytest.approx(sum(losses) / 3)


def test_steps_of_ones_own_are_observed():
    """Clipping between `compute_gradient` and `step` hides the batch from the hook."""
    circuit, monitor = feedforward(), EPMonitor()
    optimizer = smep(circuit.parameters(), model=circuit)
    monitor.start_epoch()
    losses = []
    for i in range(3):
        losses.append(optimizer.compute_gradient(*batch(i)).loss.item())
        nn.utils.clip_grad_norm_(circuit.parameters(), 1.0)
        optimizer.step()
        monitor.observe(optimizer, *batch(i))
    m = monitor.end_epoch(circuit, optimizer)
    assert m.loss == pytest.approx(sum(losses) / 3)
    assert m.margin == margin_of(optimizer, batch(2)[0], 0.1)


def test_an_epoch_begins_with_nothing():
    circuit, monitor = feedforward(), EPMonitor()
    optimizer = optimizer_of(circuit, EPGradient("mse"))
    monitor.start_epoch()
    optimizer.step(x=batch(0)[0], target=batch(0)[1])
    monitor.start_epoch()
    loss = optimizer.step(x=batch(1)[0], target=batch(1)[1]).item()
    assert monitor.end_epoch(circuit, optimizer).loss == loss


def test_two_optimizers_keep_their_epochs_apart():
    monitor, circuits = EPMonitor(), [feedforward(), hopfield()]
    optimizers = [optimizer_of(c, EPGradient("mse")) for c in circuits]
    monitor.start_epoch()
    losses = [[o.step(x=batch(i)[0], target=batch(i)[1]).item() for i in range(3)] for o in optimizers]
    for circuit, optimizer, seen in zip(circuits, optimizers, losses, strict=True):
        assert monitor.end_epoch(circuit, optimizer).loss == pytest.approx(sum(seen) / 3)


def test_steps_outside_an_epoch_are_not_watched():
    circuit, monitor = feedforward(), EPMonitor()
    m = epoch_of(monitor, circuit, EPGradient(), steps=2)
    optimizer = optimizer_of(circuit, EPGradient(), lr=1e-9)
    losses = [optimizer.step(x=batch(i)[0], target=batch(i)[1]).item() for i in (0, 1)]
    assert m.loss == pytest.approx(sum(losses) / 2)
    assert monitor.end_epoch(circuit, optimizer).loss == losses[1]  # the last one stands for it


def test_a_dropped_monitor_stops_watching():
    optimizer, monitor = optimizer_of(feedforward(), EPGradient()), EPMonitor()
    monitor.start_epoch()
    hooks = optimizer_module._global_optimizer_post_hooks
    watching = len(hooks)
    del monitor
    gc.collect()
    assert len(hooks) == watching - 1
    optimizer.step(x=batch()[0], target=batch()[1])


def test_too_few_steps_are_called_unsettled():
    """15 Euler steps of 0.1 leave e^-1.5 of the way to go; sweeps arrive."""
    for options, arrives in (({"settle_steps": 15, "settle_lr": 0.1}, False), ({}, True)):
        monitor = EPMonitor()
        with warnings.catch_warnings(record=True) as caught:
            m = epoch_of(monitor, feedforward(), EPGradient(**options))
        assert bool(caught) is not arrives
        assert monitor.check_convergence() is arrives
        assert m.settled == m.free_settled == m.nudged_settled == float(arrives)
        assert (m.free_residual < 1e-5) is arrives
        assert (m.nudged_residual < 1e-3) is arrives


@pytest.mark.parametrize(("threshold", "passes"), [(0.5, True), (0.75, True), (0.8, False)])
def test_the_share_of_settled_samples_is_held_against_the_threshold(threshold, passes):
    monitor = EPMonitor(threshold)
    monitor.epochs.append(EpochMetrics(1, 1, 0, 0, settled=0.75, evaluations=5, time=0))
    assert monitor.check_convergence() is passes


@pytest.mark.parametrize("gradient", [BackpropGradient(), EPGradient(phases="one_sweep"), ImplicitGradient()])
def test_what_was_not_measured_at_a_nudged_equilibrium_is_not_called_converged(gradient):
    monitor = EPMonitor()
    m = epoch_of(monitor, feedforward(), gradient)
    assert math.isnan(m.settled)
    assert m.snr == ()
    assert m.free_settled == 1 or isinstance(gradient, BackpropGradient)
    with pytest.warns(
        EPWarning, match="nothing here was measured at a nudged equilibrium; choose EPGradient"
    ):
        assert monitor.check_convergence() is False


# -- cosine to the exact gradient ----------------------------------------------------------------


def test_every_so_many_steps_are_held_against_the_exact_gradient(monkeypatch):
    seen = []

    def counted(optimizer: CompositeOptimizer, x: Tensor, target: Tensor) -> Cosine:
        seen.append(x[0, 0].item())
        return Cosine(1 - 0.01 * len(seen), {"model.0": 1.0})

    monkeypatch.setattr("mep_sim.monitor.cosine_of", counted)
    m = epoch_of(EPMonitor(exact_every=3), feedforward(), EPGradient(), steps=7)
    assert seen == [batch(i)[0][0, 0].item() for i in (0, 3, 6)]
    assert m.cosine.overall == pytest.approx(0.98)
    assert m.cosine.layers == {"model.0": 1.0}
    assert epoch_of(EPMonitor(), feedforward(), EPGradient(), steps=2).cosine is None


def test_a_cosine_asked_for_counts_in_the_epoch():
    monitor, circuit = EPMonitor(), feedforward()
    optimizer = estimated(circuit, EPGradient(beta=0.3))
    asked = [monitor.cosine(optimizer, *batch(i)) for i in range(2)]
    m = monitor.end_epoch(circuit, optimizer)
    assert m.cosine.overall == pytest.approx((asked[0].overall + asked[1].overall) / 2)
    assert f"{m.cosine.overall:.4f}" in monitor.summary()


# -- the picture ---------------------------------------------------------------------------------


def lines(figure) -> dict[str, dict[str, list[float]]]:
    return {
        ax.get_title(): {
            line.get_label(): list(line.get_ydata()) for line in ax.get_lines() if line.get_label()[0] != "_"
        }
        for ax in figure.axes
    }


def test_the_plot_shows_every_epoch(tmp_path):
    monitor, circuit = EPMonitor(exact_every=1), feedforward()
    for _ in range(3):
        epoch_of(monitor, circuit, EPGradient(), lr=0.05)
    figure = monitor.plot(tmp_path / "monitor.png")
    assert (tmp_path / "monitor.png").stat().st_size > 10_000
    seen = monitor.epochs
    assert lines(figure) == {
        "cost": {"loss": [m.loss for m in seen], "energy gap": [m.energy_gap for m in seen]},
        "relative residual": {"nudged": [m.nudged_residual for m in seen]},  # free it is 0, a forward pass
        "share settled": {"free": [1, 1, 1], "nudged": [1, 1, 1], "all": [1, 1, 1]},
        "nudge over noise": {f"layer {i + 1}": [m.snr[i] for m in seen] for i in range(2)},
        "operator norm": {name: [m.sigma[name] for m in seen] for name in circuit.weights},
        "certified margin": {"margin": [m.margin for m in seen]},
        "cosine to the exact gradient": {
            "overall": [m.cosine.overall for m in seen],
            **{name: [m.cosine.layers[name] for m in seen] for name in ("model.0", "model.2")},
        },
    }
    limits = {ax.get_title(): [list(line.get_ydata()) for line in ax.get_lines()][-1] for ax in figure.axes}
    assert limits["share settled"] == [0.95, 0.95]
    assert limits["nudge over noise"] == [10, 10]
    assert limits["certified margin"] == [0, 0]


def test_what_was_not_measured_is_not_drawn():
    monitor = EPMonitor()
    epoch_of(monitor, feedforward(), BackpropGradient())
    assert list(lines(monitor.plot())) == ["cost", "operator norm"]
    assert list(lines(monitor.plot())["cost"]) == ["loss"]


def test_many_layers_are_drawn_without_a_legend():
    monitor, circuit = EPMonitor(), feedforward((5, *(4,) * 9, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EPWarning)
        epoch_of(monitor, circuit, EPGradient())
    (ax,) = (ax for ax in monitor.plot().axes if ax.get_title() == "operator norm")
    assert len(ax.get_lines()) == 10
    assert ax.get_legend() is None


# -- bad input -----------------------------------------------------------------------------------


def test_what_cannot_be_told_yet_is_said_so():
    circuit, monitor = feedforward(), EPMonitor()
    optimizer = smep(circuit.parameters(), model=circuit)
    for look in (monitor.check_convergence, monitor.plot):
        with pytest.raises(ValueError, match="no epoch to look at yet: call end_epoch"):
            look()
    with pytest.raises(ValueError, match=r"no estimate yet: call optimizer\.step"):
        monitor.end_epoch(circuit, optimizer)


def test_another_model_is_refused():
    optimizer = estimated(feedforward(), EPGradient())
    with pytest.raises(ValueError, match="end_epoch got a FeedforwardCircuit with other parameters"):
        EPMonitor().end_epoch(feedforward(), optimizer)
    EPMonitor().end_epoch(optimizer.circuit.model, optimizer)  # the Sequential it was made of


def test_the_exact_gradient_needs_the_batch():
    optimizer = estimated(feedforward(), EPGradient())
    with pytest.raises(ValueError, match="exact_every = 5 needs the batches: call start_epoch"):
        EPMonitor(exact_every=5).end_epoch(optimizer.circuit, optimizer)


@pytest.mark.parametrize(
    ("setting", "values", "hint"),
    [
        ("settled_threshold", (0.0, 1.5, -1.0, math.nan), r"choose a share in \(0, 1\]"),
        ("snr_threshold", (0.0, 0.5, math.nan), "choose a ratio of at least 1"),
        ("cosine_threshold", (0.0, 1.0, -0.5, math.nan), r"choose a cosine in \(0, 1\)"),
        ("exact_every", (0, -3), "choose at least 1, or None"),
    ],
)
def test_settings_out_of_range(setting, values, hint):
    for value in values:
        with pytest.raises(ValueError, match=rf"{setting} = {value}.*{hint}"):
            EPMonitor(**{setting: value})

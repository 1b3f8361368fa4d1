"""Checks that every Device must pass, whatever its technology. One line per device in a test runs them all.

@pytest.mark.parametrize("check", ALL_CHECKS)
def test_my_device(check):
    check(MyDevice(...))
"""

from __future__ import annotations

import tempfile
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import devices
from devices import AnchoredSoftBoundsPulses, Cells, Device

SHAPE = (40, 30)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def targets(device: Device, shape=SHAPE, seed: int = 1, dtype=torch.float32) -> torch.Tensor:
    """Uniform conductances over the window."""
    u = torch.rand(shape, generator=generator(seed), dtype=dtype)
    return (device.g_min_siemens + u * device.window.span).clamp(device.g_min_siemens, device.g_max_siemens)


def counts(shape=SHAPE, seed: int = 2, most: int = 5) -> torch.Tensor:
    return torch.randint(-most, most + 1, shape, generator=generator(seed))


def counts_for(device: Device) -> torch.Tensor:
    """Counts that the device can take: none down where pulses only go up."""
    return counts().abs() if device.one_sided else counts()


def state(cells: Cells) -> torch.Tensor:
    """What pulses act on: under write noise not what is read."""
    return cells.params.get("hidden", cells.conductance)


def latest(device: Device) -> float:
    """A late time, s, that the device's source still covers."""
    drift = getattr(device, "drift", None)
    return 1e7 if drift is None else min(1e7, drift.valid_seconds)


def same(a: Cells, b: Cells) -> bool:
    """Whether all state is equal, bit for bit, the memory of slow read noise included."""
    pairs = [(a.conductance, b.conductance), (a.written_at, b.written_at), (a.pulses, b.pulses)]
    for x, y in ((a.params, b.params), (a.memory, b.memory)):
        if x.keys() != y.keys():
            return False
        pairs += [(x[k], y[k]) for k in x]
    return all(torch.equal(x, y) for x, y in pairs)


def forgetful(cells: Cells) -> Cells:
    """A copy without a memory."""
    return replace(cells.clone(), memory={})


def check_fabrication(device: Device) -> None:
    """Shape, dtype, pristine state; the seed decides everything."""
    for dtype in (torch.float32, torch.float64):
        cells = device.fabricate(SHAPE, generator(), dtype=dtype)
        assert cells.shape == SHAPE
        assert cells.conductance.dtype == dtype
        assert cells.conductance.isfinite().all()
        assert (cells.conductance >= 0).all()
        assert cells.pulses.dtype == torch.int64
        assert cells.pulses.sum() == 0
        assert (cells.written_at == 0).all()
        assert all(x.shape == SHAPE for x in cells.params.values())
        assert same(cells, device.fabricate(SHAPE, generator(), dtype=dtype))


def check_programming_is_unbiased(device: Device) -> None:
    """Mid-window, 10 000 cells: the mean lands within 1 % of the window (and half a level) of the target."""
    shape = (100, 100)
    cells = device.fabricate(shape, generator())
    middle = device.window.middle
    device.program(cells, torch.full(shape, middle), generator())
    levels = device.window.levels
    allowed = 0.01 if levels is None else 0.01 + 0.5 / (levels - 1)
    assert abs(cells.conductance.mean().item() - middle) < allowed * device.window.span
    assert abs(device.read(cells, generator()).mean().item() - middle) < (allowed + 0.01) * device.window.span


def check_nan_targets_are_left_alone(device: Device) -> None:
    cells = device.fabricate(SHAPE, generator())
    device.program(cells, targets(device), generator(), t_seconds=1.0)
    before = cells.clone()
    g = targets(device, seed=5)
    skip = torch.rand(SHAPE, generator=generator(6)) < 0.7
    g[skip] = torch.nan
    device.program(cells, g, generator(), t_seconds=2.0)
    assert torch.equal(cells.conductance[skip], before.conductance[skip])
    assert (cells.written_at[skip] == 1.0).all()
    assert (cells.written_at[~skip] == 2.0).all()
    assert all(torch.equal(cells.params[k][skip], before.params[k][skip]) for k in cells.params)
    assert cells.conductance.isfinite().all()


def check_targets_outside_the_window_are_refused(device: Device) -> None:
    cells = device.fabricate(SHAPE, generator())
    before = cells.clone()
    margin = 0.01 * device.window.span
    for wrong in (device.g_max_siemens + margin, device.g_min_siemens - margin):
        g = targets(device)
        g[3, 4] = wrong
        with pytest.raises(ValueError, match=r"outside the window.*allowed are.*Clamp"):
            device.program(cells, g, generator())
    assert same(cells, before)
    g = torch.full(SHAPE, device.g_max_siemens) * (1 + 2e-7)  # rounding is not an error
    device.program(cells, g, generator())
    with pytest.raises(ValueError, match=r"shape \(30, 40\)"):
        device.program(cells, targets(device).T, generator())


def check_reading(device: Device) -> None:
    """A read changes nothing but the memory of slow noise, is not a view of the state, never negative; noise is from
    the rng, fresh unless it is slow."""
    cells = device.fabricate(SHAPE, generator())
    device.program(cells, targets(device), generator(), t_seconds=10.0)
    before = cells.clone()
    rng = generator(9)
    first, second = device.read(cells, rng, t_seconds=10.0), device.read(cells, rng, t_seconds=10.0)
    assert torch.equal(first, device.read(before.clone(), generator(9), t_seconds=10.0))
    noise = getattr(device, "read_noise", None)
    assert torch.equal(first, second) == (noise is None or bool(noise.correlation_seconds))
    assert (first >= 0).all()
    assert first.dtype == cells.conductance.dtype
    late = 10.0 + latest(device)
    assert device.read(cells, rng, t_seconds=late).isfinite().all()
    if late < 1e7:
        with pytest.raises(
            ValueError, match=r"days after it was written is not known.*program the cells again"
        ):
            device.read(cells, rng, t_seconds=late + 60.0)
    first.zero_()
    assert same(forgetful(cells), before)


def check_time_runs_forward(device: Device) -> None:
    cells = device.fabricate(SHAPE, generator())
    device.program(cells, targets(device), generator(), t_seconds=10.0)
    with pytest.raises(ValueError, match=r"t_seconds = 9 s lies before the last write at 10 s"):
        device.read(cells, generator(), t_seconds=9.0)
    with pytest.raises(ValueError, match="time only runs forward"):
        device.program(cells, targets(device), generator(), t_seconds=9.0)
    with pytest.raises(ValueError, match="finite time"):
        device.read(cells, generator(), t_seconds=float("nan"))


def check_pulses(device: Device) -> None:
    """Counts are booked, cells without a count stay as they are, bounds of the cell hold."""
    cells = device.fabricate(SHAPE, generator())
    if device.step_siemens is None:
        with pytest.raises(ValueError, match=r"program\(\)"):
            device.pulse(cells, counts(), generator())
        return
    with pytest.raises(ValueError, match=r"dtype torch.float32.*integer"):
        device.pulse(cells, counts().float(), generator())
    with pytest.raises(ValueError, match=r"shape \(30, 40\)"):
        device.pulse(cells, counts().T, generator())
    device.program(cells, targets(device), generator())
    if device.one_sided:
        with pytest.raises(ValueError, match=r"only potentiate: reset such cells with program\(\)"):
            device.pulse(cells, counts(), generator())
    before, k = cells.clone(), counts_for(device)
    device.pulse(cells, k, generator(), t_seconds=3.0)
    assert torch.equal(cells.pulses, k.abs())
    assert torch.equal(cells.conductance[k == 0], before.conductance[k == 0])
    assert torch.equal(state(cells)[k == 0], state(before)[k == 0])
    assert (cells.written_at == 3.0 * (k != 0)).all()
    assert (state(cells) >= cells.params["g_lo"]).all()
    assert (state(cells) <= cells.params["g_hi"]).all()
    with pytest.raises(ValueError, match="time only runs forward"):
        device.pulse(cells, k, generator(), t_seconds=2.0)


def typical(device: Device) -> Device:
    """The device without device-to-device spread where the mean step of all cells is not the nominal one: where it is
    log-normal, and where slopes follow bounds that vary about a fixed zero (1/x has no mean)."""
    pulses = getattr(device, "pulses", None)
    if getattr(pulses, "dtod", "") != "log-normal" and not isinstance(pulses, AnchoredSoftBoundsPulses):
        return device
    still = {f.name: 0.0 for f in fields(pulses) if f.name.startswith("sigma_") and f.name != "sigma_c2c"}
    if isinstance(pulses, AnchoredSoftBoundsPulses):
        still["fraction_stuck"] = 0.0
    return replace(device, pulses=replace(pulses, **still))


def check_nominal_step(device: Device) -> None:
    """What the controller knows: up and down moves at mid-window average to step_siemens, to 5 sigma."""
    if device.step_siemens is None:
        return
    device = typical(device)
    shape, rng, moves = (200, 150), generator(3), []
    for sign in (1,) if device.one_sided else (1, -1):
        cells = device.fabricate(shape, generator())
        device.program(cells, torch.full(shape, device.window.middle), generator())
        before = state(cells).clone()
        device.pulse(cells, torch.full(shape, sign), rng)
        moves.append(sign * (state(cells) - before).double())
    mean = sum(moves) / len(moves)
    error = 5 * mean.std().item() / mean.numel() ** 0.5
    assert abs(mean.mean().item() - device.step_siemens) < error + 1e-3 * device.step_siemens
    assert error < 0.15 * device.step_siemens  # the check has teeth


def check_bits(device: Device) -> None:
    """At another resolution the nominal step is the window over 2**bits - 1; what has no steps says so."""
    if device.step_siemens is None and getattr(device, "levels", None) is None:
        with pytest.raises(ValueError, match="has neither levels nor pulses"):
            devices.with_bits(device, 5)
        return
    for bits in (1, 5, 16):
        coarse = devices.with_bits(device, bits)
        assert coarse.step_siemens == pytest.approx(device.window.span / (2**bits - 1), rel=1e-12)
        if device.write_noise is not None:
            before, after = (d.write_noise.sigma_steps * d.step_siemens for d in (device, coarse))
            assert after == pytest.approx(before, rel=1e-12)


def check_state_continues_bit_for_bit(device: Device) -> None:
    """Cells and generator restored from a snapshot go on exactly as the originals do."""
    rng = generator()
    cells = device.fabricate(SHAPE, rng)
    device.program(cells, targets(device), rng)
    device.read(cells, rng)  # slow noise begins its memory
    snapshot, random_state = cells.state_dict(), rng.get_state()
    twin, twin_rng = Cells.from_state_dict(snapshot), torch.Generator()
    twin_rng.set_state(random_state)
    for c, r in ((cells, rng), (twin, twin_rng)):
        if device.step_siemens is not None:
            device.pulse(c, counts_for(device), r, t_seconds=5.0)
        device.program(c, targets(device, seed=8), r, t_seconds=6.0)
    assert same(cells, twin)
    assert torch.equal(device.read(cells, rng, t_seconds=60.0), device.read(twin, twin_rng, t_seconds=60.0))
    assert same(cells, twin)
    assert not torch.equal(snapshot["conductance"], cells.conductance)  # a snapshot does not follow


def check_file_round_trip(device: Device) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "device.json"
        devices.save(device, path)
        assert devices.load(path) == device
        assert devices.resolve(str(path)) == device


ALL_CHECKS = (
    check_fabrication,
    check_programming_is_unbiased,
    check_nan_targets_are_left_alone,
    check_targets_outside_the_window_are_refused,
    check_reading,
    check_time_runs_forward,
    check_pulses,
    check_nominal_step,
    check_bits,
    check_state_continues_bit_for_bit,
    check_file_round_trip,
)

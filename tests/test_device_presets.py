"""Presets trained by pulses, in the weights of their sources: numbers worked out from the published fits."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import devices
from devices import AnchoredSoftBoundsPulses, MemoryCell
from tests.device_conformance import generator

# weights at the ends of the window
RANGES = {
    "rpu": (-1, 1),
    "rpu-idealised": (-1, 1),
    "reram-exponential": (-1, 1),
    "reram-soft-bounds": (-0.75, 1.25),
    "reram-array-optimised": (-1, 1),
    "reram-array-baseline": (-1, 1),
    "capacitor": (-1, 1),
    "li-ecram": (-0.8276, 1.1724),
    "mo-ecram": (-0.8286, 1.1714),
    "pcm-training": (0, 2),
}


class Weights:
    """A preset's cells (rows, cols) in weights, without drift; `quiet`: no spread, no noise."""

    def __init__(self, name: str, shape=(1, 1), quiet: bool = True, dtod: bool = False) -> None:
        device = dataclasses.replace(devices.preset(name), drift=None)
        spreads = [f.name for f in dataclasses.fields(device.pulses) if f.name.startswith("sigma_")]
        if not dtod:
            still = {n: 0.0 for n in spreads if quiet or n != "sigma_c2c"}
            if hasattr(device.pulses, "fraction_stuck"):
                still["fraction_stuck"] = 0.0
            pulses = dataclasses.replace(device.pulses, **still)
            device = dataclasses.replace(device, pulses=pulses, write_noise=None)
        self.device, self.low = device, RANGES[name][0]
        self.per_weight = device.window.span / 2  # every range is 2 wide
        self.cells = device.fabricate(shape, generator(), dtype=torch.float64)

    def siemens(self, w: torch.Tensor | float) -> torch.Tensor | float:
        return self.device.g_min_siemens + (w - self.low) * self.per_weight

    def weights(self, g: torch.Tensor) -> torch.Tensor:
        return (g - self.device.g_min_siemens) / self.per_weight + self.low

    def after(self, w: float, count: int) -> torch.Tensor:
        """Weights (rows, cols) after `count` pulses from w."""
        g = torch.full(self.cells.shape, self.siemens(w), dtype=torch.float64)
        self.device.program(self.cells, g, generator(1))
        self.device.pulse(self.cells, torch.full(self.cells.shape, count), generator(2))
        return self.weights(self.cells.conductance)

    def move(self, w: float, count: int) -> float:
        return self.after(w, count).item() - w


# --- mean steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "w", "up", "down"),
    [
        ("rpu", 0.3, 0.0016, 0.0016),
        ("rpu-idealised", -0.9, 0.0002, 0.0002),
        ("capacitor", 0.0, 0.005, 0.005),
        ("capacitor", 0.5, 0.004875, 0.005125),
        ("capacitor", -0.5, 0.005125, 0.004875),
        ("li-ecram", 0.0, 0.002, 0.002),
        ("li-ecram", 0.5, 0.00190165, 0.00261443),
        ("li-ecram", -0.5, 0.00209835, 0.00138557),
        ("mo-ecram", 0.0, 0.00028214, 0.00028214),
        ("mo-ecram", 0.5, 0.000232138, 0.000407138),
        ("mo-ecram", -0.5, 0.000332142, 0.000157142),
        ("reram-soft-bounds", 0.0, 0.002, 0.002),
        ("reram-soft-bounds", 0.5, 0.0012, 0.00333333),
        ("reram-soft-bounds", -0.5, 0.0028, 0.000666667),
        ("reram-array-optimised", 0.0, 0.0949, 0.0949),
        ("reram-array-optimised", 0.5, 0.04745, 0.14235),
        ("reram-array-optimised", -0.5, 0.14235, 0.04745),
        ("reram-array-baseline", 0.0, 0.4622, 0.4622),
        ("reram-array-baseline", 0.5, 0.2311, 0.6933),
        ("reram-exponential", -1.0, 0.002949008, 0.0),  # down stops at the bound, and so does up at w = 1
        ("reram-exponential", 0.0, 0.001481255, 0.001991436),
        ("reram-exponential", -0.217230, 0.001575927, 0.001575927),  # its symmetry point
        ("reram-exponential", 1.0, 0.0, 0.01307966),
        ("pcm-training", 0.0, 0.282350, None),
        ("pcm-training", 0.5, 0.0880296, None),
        ("pcm-training", 1.0, 0.0323558, None),
    ],
)
def test_mean_steps(name, w, up, down):
    quiet = Weights(name)
    assert quiet.move(w, 1) == pytest.approx(up, rel=4e-6, abs=1e-12)
    if down is not None:
        assert quiet.move(w, -1) == pytest.approx(-down, rel=4e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "up", "down"),  # pulses across the range, as the recursion of the mean step gives them
    [
        ("rpu", 1250, 1250),
        ("capacitor", 401, 401),  # 400.28
        ("li-ecram", 1021, 1019),  # 1020.56, 1018.88
        ("mo-ecram", 7940, 8147),  # 7939.18, 8146.91
        ("reram-exponential", 1252, 1002),
        ("pcm-training", 72, None),
    ],
)
def test_pulses_across_the_range(name, up, down):
    quiet, (low, high) = Weights(name, (1, 4)), RANGES[name]
    down = down or 0
    start = torch.tensor([[low, low, high, high]], dtype=torch.float64)
    quiet.device.program(quiet.cells, quiet.siemens(start), generator())
    counts = torch.tensor([[up - 1, up, min(1 - down, 0), -down]])
    quiet.device.pulse(quiet.cells, counts, generator())
    almost_up, all_up, almost_down, all_down = quiet.weights(quiet.cells.conductance)[0].tolist()
    assert almost_up < high - 1e-9
    assert all_up == pytest.approx(high, abs=1e-9)
    if down:
        assert almost_down > low + 1e-9
        assert all_down == pytest.approx(low, abs=1e-9)


def test_soft_bounds_approach_their_bounds_and_pairs_of_pulses_the_symmetry_point():
    """0.9984^100 and 0.9973^100 of the distance stay; an up and a down one leave 0.9984 x 0.997333 of an offset."""
    quiet = Weights("reram-soft-bounds")
    assert quiet.after(0.0, 100).item() == pytest.approx(0.184957, rel=5e-6)
    assert quiet.after(0.0, -100).item() == pytest.approx(-0.175758, rel=5e-6)

    def pair(w: float) -> float:
        return quiet.after(quiet.after(w, 1).item(), -1).item()

    assert (pair(0.9) - pair(0.1)) / 0.8 == pytest.approx(0.995737, rel=1e-6)
    array = Weights("reram-array-optimised")
    assert array.after(0.0, 100).item() == pytest.approx(0.999953, rel=1e-6)
    assert array.after(0.0, 23).item() < 0.9 < array.after(0.0, 24).item()  # 23.09 pulses to 90 %


def test_one_sided_staircase():
    quiet = Weights("pcm-training")
    stairs = [quiet.after(0.0, n).item() for n in (1, 2, 3, 4, 5)]
    assert stairs == pytest.approx([0.28235, 0.42680, 0.53050, 0.61280, 0.68166], abs=6e-6)


# --- noise from pulse to pulse --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "w", "count", "sigma"),
    [
        ("rpu", 0.0, 1, 0.00048),
        ("rpu", 0.0, 100, 0.0048),
        ("rpu-idealised", 0.0, 100, 0.0006),
        ("capacitor", 0.0, 1, 0.0015),
        ("capacitor", 0.5, -1, 0.0015),  # not 0.0015375: it does not follow the move
        ("li-ecram", 0.0, 1, 0.0006),
        ("li-ecram", 0.5, -1, 0.3 * 0.00261443),
        ("mo-ecram", 0.0, -1, 0.00056428),
        ("reram-soft-bounds", 0.0, 1, 0.0075),
        ("reram-soft-bounds", 1.0, 1, 0.0075),
        ("reram-soft-bounds", -0.5, -1, 0.0075),
        ("reram-array-optimised", 0.3, 1, 0.03945942),
        ("reram-array-baseline", -0.2, 1, 0.10048228),
        ("reram-exponential", 0.0, 1, 0.0074063),
        ("pcm-training", 0.5, 1, 0.110418),
        ("pcm-training", 1.0, 1, 0.109414),
    ],
)
def test_noise_of_pulses(name, w, count, sigma):
    n = 40_000
    noisy = Weights(name, (200, 200), quiet=False)
    move = noisy.after(w, count) - w
    assert move.std().item() == pytest.approx(sigma, rel=5 / math.sqrt(2 * n))
    if abs(count) == 1:
        assert move.mean().item() == pytest.approx(Weights(name).move(w, count), abs=5 * sigma / math.sqrt(n))


@pytest.mark.parametrize(
    ("name", "sigma"),
    [
        ("reram-exponential", 0.10125),
        ("reram-soft-bounds", 0.112),
        ("reram-array-optimised", 0.133932),
        ("reram-array-baseline", 0.269971),
    ],
)
def test_write_noise_around_the_hidden_state(name, sigma):
    """Its standard deviation is that of the source, and does not grow with the number of writes."""
    noisy = Weights(name, (200, 200), dtod=True)
    for writes in (1, 5):
        for _ in range(writes):
            noisy.after(0.0, 1)
        fluctuation = noisy.weights(noisy.cells.conductance) - noisy.weights(noisy.cells.params["hidden"])
        assert fluctuation.mean().item() == pytest.approx(0, abs=5 * sigma / 200)
        assert fluctuation.std().item() == pytest.approx(sigma, rel=5 / math.sqrt(80_000))


# --- spread from cell to cell ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "median", "sigma"),
    [
        ("rpu", 0.0016, 0.3),
        ("rpu-idealised", 0.0002, 0.3),
        ("capacitor", 0.005, 0.1),
        ("li-ecram", 0.00196609, 0.1),
    ],
)
def test_normal_spread_of_the_step(name, median, sigma):
    """At mid-window; the spread of the asymmetry adds a little in squares (6 % to 10 % of the capacitor)."""
    cells = Weights(name, (200, 200), dtod=True)
    step = cells.cells.params["step_up"] / cells.per_weight
    asymmetry = cells.device.pulses.sigma_asymmetry
    assert step.mean().item() == pytest.approx(median, rel=5 * math.hypot(sigma, asymmetry) / 200)
    assert step.std().item() / median == pytest.approx(math.hypot(sigma, asymmetry), rel=0.02)


@pytest.mark.parametrize(
    ("name", "dw_min", "mean", "std"),
    [
        ("reram-array-optimised", 0.0949, 1.358616, 1.24951),
        ("reram-array-baseline", 0.4622, 1.288950, 1.04825),
    ],
)
def test_log_normal_spread_of_the_step(name, dw_min, mean, std):
    """exp(sigma xi): median 1, mean exp(sigma^2 / 2)."""
    cells = Weights(name, (500, 500), dtod=True)
    step = cells.cells.params["step_up"] / cells.per_weight / dw_min
    step = step[step > 0]  # stuck cells have none
    assert step.median().item() == pytest.approx(1, rel=0.01)
    assert step.mean().item() == pytest.approx(mean, rel=0.012)
    assert step.std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize(
    ("name", "zero", "upper", "lower"),  # absolute standard deviations of both bounds
    [
        ("reram-soft-bounds", 0.0, 0.3, 0.3),
        ("reram-array-optimised", 0.0, 0.3499, 0.5695),
        ("reram-array-baseline", 0.0, 0.4295, 0.5990),
        ("reram-exponential", 0.0, 0.3, 0.3),
        ("capacitor", 0.0, 0.07, 0.07),
        ("rpu", 0.0, 0.3, 0.3),
    ],
)
def test_spread_of_the_bounds(name, zero, upper, lower):
    """A normal has 15.87 % of its cells beyond one sigma outwards, where nothing is folded over or cut off."""
    cells = Weights(name, (300, 300), dtod=True)
    hi, lo = (cells.weights(cells.cells.params[k]) for k in ("g_hi", "g_lo"))
    sound = hi > lo
    low, high = RANGES[name]
    for beyond in (hi[sound] > high + upper, lo[sound] < low - lower):
        assert beyond.double().mean().item() == pytest.approx(0.15866, abs=0.007)
    assert (hi >= zero - 0.0101).all()
    assert (lo <= zero + 0.0101).all()


@pytest.mark.parametrize(
    ("name", "share"), [("reram-array-optimised", 0.1348), ("reram-array-baseline", 0.0977)]
)
def test_stuck_cells_of_arrays(name, share):
    """They stay within 0.01 of zero, evenly spread, whatever is written."""
    cells = Weights(name, (200, 200), dtod=True)
    stuck = cells.cells.params["step_up"] == 0
    assert stuck.double().mean().item() == pytest.approx(share, abs=5 * math.sqrt(share / 40_000))
    cells.after(0.8, 1)
    cells.after(0.8, -7)
    w = cells.weights(cells.cells.params["hidden"])[stuck]
    assert w.abs().max().item() <= 0.01 * (1 + 1e-9)
    assert w.std().item() == pytest.approx(0.01 / math.sqrt(3), rel=0.03)
    none = devices.preset(name, fraction_stuck=0.0).fabricate((100, 100), generator())
    assert (none.params["step_up"] > 0).all()


def test_symmetry_point_where_steps_and_bounds_differ():
    """Steps 1.2 and 0.8, bounds 1 and -0.5: 1.2 (1 - w) = 0.8 (1 + w / 0.5) at w = 1/7, where both are 1.0286."""
    pulses = AnchoredSoftBoundsPulses(20, asymmetry=0.2)  # a step of 0.1 in weights -1..1
    device = MemoryCell(40e-6, 100e-6, pulses=pulses)
    cells = device.fabricate((1, 2), generator(), dtype=torch.float64)
    cells.params["g_lo"].fill_(55e-6)  # w = -0.5
    device.program(cells, torch.full((1, 2), 70e-6 + 30e-6 / 7, dtype=torch.float64), generator())
    before = cells.conductance.clone()
    device.pulse(cells, torch.tensor([[1, -1]]), generator())
    assert ((cells.conductance - before) / 30e-6)[0].tolist() == pytest.approx(
        [0.1 * 7.2 / 7, -0.1 * 7.2 / 7]
    )


# --- leak -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("updates", "left"), [(0, 0.5), (1000, 0.49950025), (1_000_000, 0.1839396)])
@pytest.mark.parametrize("update_seconds", [1e-6, 2e-3])
def test_capacitor_leaks_to_mid_window(updates, left, update_seconds):
    """0.5 (1 - 1e-6)^n."""
    preset = devices.preset("capacitor", update_seconds=update_seconds)
    assert preset.drift.sigma_tau == 0.3
    device = dataclasses.replace(preset, drift=dataclasses.replace(preset.drift, sigma_tau=0.0))
    cells = device.fabricate((1, 1), generator(), dtype=torch.float64)
    cells.params["g_hi"].fill_(100e-6)
    device.program(cells, torch.full((1, 1), 85e-6), generator())
    g = device.read(cells, generator(), t_seconds=updates * update_seconds).item()
    assert (g - 70e-6) / 30e-6 == pytest.approx(left, rel=1e-6)


# --- settings and their limits --------------------------------------------------------------------


def test_there_are_many_technologies():
    assert len(devices.preset_names()) >= 26


@pytest.mark.parametrize("name", [*RANGES, "ideal", "levels-6bit", "soft-bounds-4bit"])
def test_normalised_presets_take_a_window(name):
    device = devices.preset(name, g_min_siemens=2e-6, g_max_siemens=12e-6)
    assert (device.g_min_siemens, device.g_max_siemens) == (2e-6, 12e-6)
    if device.step_siemens is not None:
        default = devices.preset(name)
        assert device.step_siemens / 10e-6 == pytest.approx(default.step_siemens / default.window.span)
    with pytest.raises(ValueError, match=r"g_min_siemens = 0.5 is not allowed: it must lie below"):
        devices.preset(name, g_min_siemens=0.5, g_max_siemens=0.1)


def test_normalised_presets_say_that_their_window_is_chosen():
    for name in RANGES:
        assert "window" in devices.preset(name).source


def test_unknown_settings_are_named():
    with pytest.raises(
        ValueError, match=r"Preset 'rpu' has no setting 'g_mid', 'steps'. It has: g_min_siemens, g_max"
    ):
        devices.preset("rpu", steps=3, g_mid=1e-6)
    with pytest.raises(
        ValueError, match=r"'pcm' has no setting 'g_max_siemens'. It has none..*dataclasses.replace"
    ):
        devices.preset("pcm", g_max_siemens=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("capacitor", {"update_seconds": 0}, r"capacitor.update_seconds = 0 .*1 us is 1e-6"),
        ("reram-array-baseline", {"fraction_stuck": 10}, r"fraction_stuck = 10 .*0.05 is 5 %"),
        ("rram-wan", {"days": 3}, r"rram_wan.days = 3 .*1 s, 1 day and 2 days"),
        ("rram-wan", {"days": 0.5}, r"rram_wan.days = 0.5 .*whole number"),
        ("sonos", {"read_volts": 0}, r"sonos.read_volts = 0 .*It is in volts"),
        ("cmo-hfox", {"acceptance_percent": 0.02}, r"acceptance_percent = 0.02 .*the source has 2 and 0.2"),
    ],
)
def test_bad_settings_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        devices.preset(name, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero": 0.0}, r"AnchoredSoftBoundsPulses.zero = 0.0 .*share of the window"),
        ({"sigma_upper": 30}, r"sigma_upper = 30 .*0.3 is 30 %"),
        ({"sigma_lower": -0.1}, r"sigma_lower = -0.1"),
        ({"sigma_bounds": 0.1}, r"sigma_bounds = 0.1 .*vary by sigma_upper and sigma_lower"),
    ],
)
def test_bad_anchored_bounds_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AnchoredSoftBoundsPulses(20, **settings)

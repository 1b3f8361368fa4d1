"""Devices as JSON: exact round trips, and errors that name the file and the place."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import devices
from devices import (
    ConstantStepPulses,
    MemoryCell,
    PCMDrift,
    PCMReadNoise,
    PolynomialProgrammingNoise,
    PowerLawDrift,
    SoftBoundsPulses,
    StuckCells,
    WhiteReadNoise,
    WindowProgrammingNoise,
)

unit = st.floats(0, 1)
step_settings = (st.floats(1, 1e7), st.floats(0, 2), st.floats(0, 100), st.floats(-0.99, 0.99), unit, unit)
cells = st.builds(
    MemoryCell,
    st.floats(0, 1e-6),
    st.floats(2e-6, 1.0),
    levels=st.none() | st.integers(2, 65536),
    pulses=st.none()
    | st.builds(SoftBoundsPulses, *step_settings)
    | st.builds(ConstantStepPulses, *step_settings),
    programming=st.none()
    | st.builds(WindowProgrammingNoise, unit)
    | st.builds(PolynomialProgrammingNoise, st.lists(unit, min_size=1, max_size=4).map(tuple)),
    read_noise=st.none()
    | st.builds(WhiteReadNoise, unit, st.sampled_from(["window", "conductance"]))
    | st.builds(PCMReadNoise, st.floats(1, 1e9), st.floats(1e-12, 1)),
    drift=st.none()
    | st.builds(PowerLawDrift, st.floats(-1, 1), unit, st.floats(1e-9, 1e9))
    | st.builds(PCMDrift, st.floats(1e-9, 1e9)),
    faults=st.none() | st.builds(StuckCells, st.floats(0, 0.5), st.floats(0, 0.5)),
    source=st.text(max_size=20),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(device=cells)
def test_round_trip_is_exact(device, tmp_path):
    path = tmp_path / "device.json"
    devices.save(device, path)
    assert devices.load(path) == device


def test_settings_left_out_take_their_defaults(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(
        '{"type": "MemoryCell", "g_min_siemens": 0, "g_max_siemens": 1e-4, "drift": {"type": "PCMDrift"}}'
    )
    assert devices.resolve(path) == MemoryCell(0.0, 1e-4, drift=PCMDrift())


GOOD = {"type": "MemoryCell", "g_min_siemens": 1e-6, "g_max_siemens": 1e-4}
SOFT = {"type": "SoftBoundsPulses", "steps": 63}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1], r"device = \[1\]: expected an object with a 'type'"),
        ({"g_min_siemens": 1e-6}, r"expected an object with a 'type', one of Ideal, MemoryCell"),
        ({**GOOD, "type": "Memristor"}, r"device: unknown type 'Memristor'. Known types: Ideal"),
        ({**GOOD, "g_mid": 1}, r"device: MemoryCell has no setting \['g_mid'\]. It has: g_min_siemens"),
        (
            {"type": "MemoryCell", "g_min_siemens": 1e-6},
            r"MemoryCell needs the setting\(s\) \['g_max_siemens'\]",
        ),
        ({**GOOD, "levels": 6.5}, r"device.levels = 6.5 is not allowed: expected int"),
        ({**GOOD, "levels": True}, r"device.levels = True is not allowed: expected int"),
        ({**GOOD, "g_max_siemens": "1e-4"}, r"device.g_max_siemens = '1e-4' is not allowed: expected float"),
        ({**GOOD, "source": None}, r"device.source = None is not allowed: expected str"),
        ({**GOOD, "pulses": 3}, r"device.pulses = 3: expected an object with a 'type'"),
        (
            {**GOOD, "pulses": {**SOFT, "step": 1}},
            r"device.pulses: SoftBoundsPulses has no setting \['step'\]",
        ),
        ({**GOOD, "pulses": {**SOFT, "steps": 0}}, r"SoftBoundsPulses.steps = 0.0 is not allowed"),
        ({**GOOD, "drift": SOFT}, r"device.drift: SoftBoundsPulses does not fit here: expected a Drift"),
        (SOFT, r"type 'SoftBoundsPulses' is a part, not a device"),
        (
            {**GOOD, "read_noise": {"type": "WhiteReadNoise", "sigma_relative": 0.1, "relative_to": "span"}},
            r"device.read_noise.relative_to = 'span' .*'window', 'conductance'",
        ),
        (
            {**GOOD, "programming": {"type": "PolynomialProgrammingNoise", "coefficients_siemens": 1e-6}},
            r"device.programming.coefficients_siemens = 1e-06 is not allowed: expected a list",
        ),
        (
            {
                **GOOD,
                "programming": {"type": "PolynomialProgrammingNoise", "coefficients_siemens": [1e-6, "a"]},
            },
            r"coefficients_siemens\[1\] = 'a' is not allowed: expected float",
        ),
    ],
)
def test_errors_name_the_file_and_the_place(tmp_path, data, message):
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"broken\.json: .*" + message):
        devices.load(path)


def test_malformed_json_and_doubled_settings(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{"type": "Ideal",')
    with pytest.raises(ValueError, match=r"broken\.json: not valid JSON: .*line 1 column"):
        devices.load(path)
    path.write_text('{"type": "Ideal", "g_min_siemens": 0, "g_min_siemens": 1e-6}')
    with pytest.raises(ValueError, match=r"broken\.json: setting\(s\) \['g_min_siemens'\] given twice"):
        devices.load(path)
    path.write_text('{"type": "Ideal", "g_max_siemens": NaN}')
    with pytest.raises(ValueError, match=r"broken\.json: g_max_siemens = nan is not allowed"):
        devices.load(path)
    with pytest.raises(FileNotFoundError):
        devices.load(tmp_path / "absent.json")


@dataclass(frozen=True)
class HalvedPulses(SoftBoundsPulses):
    """A pulse model of the user's own."""


def test_own_types_are_named_when_loading(tmp_path):
    path = tmp_path / "mine.json"
    device = MemoryCell(1e-6, 1e-4, pulses=HalvedPulses(10))
    devices.save(device, path)
    with pytest.raises(ValueError, match="unknown type 'HalvedPulses'"):
        devices.load(path)
    assert devices.load(path, own_types=(HalvedPulses,)) == device

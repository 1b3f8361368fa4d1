"""The format of pulse measurements: what it takes, and what it says about files that are wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices import MemoryCell, SoftBoundsPulses
from experiments.pulse_csv import read_csv, write_csv
from experiments.pulse_data import PulseData, cycles_of, measure

GOOD = """# measured on a Monday
pulse,direction,conductance_uS
0,0,1.0
1,up,2.5
2,+1,3.5

3,down,2.0
4,-1,1.5
5,up,2.75
"""


@pytest.fixture
def file(tmp_path):
    def write(text: str):
        path = tmp_path / "pulses.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_one_device(file):
    data = read_csv(file(GOOD))
    assert data.conductance == pytest.approx([1e-6, 2.5e-6, 3.5e-6, 2e-6, 1.5e-6, 2.75e-6])
    assert data.direction.tolist() == [0, 1, 1, -1, -1, 1]
    assert data.cycle.tolist() == [0, 0, 0, 0, 0, 1]
    steps = data.steps
    assert steps.after - steps.before == pytest.approx([1.5e-6, 1e-6, -1.5e-6, -0.5e-6, 1.25e-6])
    assert steps.reads.tolist() == [2] * 5
    assert data.notes == ()


def test_repeated_reads_are_averaged(file):
    """Reads of 2 and 4 uS: mean 3, deviations of 1 each, so sqrt(2) uS."""
    text = "pulse,direction,conductance_uS\n0,0,1\n0,0,1\n1,up,2\n1,up,4\n2,up,5\n"
    data = read_csv(file(text))
    assert data.conductance == pytest.approx([1e-6, 3e-6, 5e-6])
    assert data.reads.tolist() == [2, 2, 1]
    assert data.deviation == pytest.approx([0, 2**0.5 * 1e-6, 0])
    assert data.repeated_reads == 2
    assert data.steps.reads.tolist() == [1, 1.5]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_and_resistances(file, separator):
    text = "pulse,direction,resistance_kohm\n0,0,100\n1,up,50\n2,down,80\n".replace(",", separator)
    assert read_csv(file(text)).conductance == pytest.approx([10e-6, 20e-6, 12.5e-6])


def test_devices_and_cycles(file):
    """Devices taking turns; cycles that number pulses anew: no step is made up in between."""
    rows = [(d, c, p) for c in "ab" for p in (1, 2, 3) for d in ("x", "y")]
    lines = [f"{d},{c},{p},{'up' if p < 3 else 'down'},{k + 1}" for k, (d, c, p) in enumerate(rows)]
    data = read_csv(file("device,cycle,pulse,direction,conductance_uS\n" + "\n".join(lines)))
    assert data.devices == ("x", "y")
    assert data.device.tolist() == [0] * 6 + [1] * 6
    assert data.cycle.tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert data.follows.tolist() == [False, True, True] * 4
    assert data.conductance[:6] == pytest.approx(1e-6 * np.array([1, 3, 5, 7, 9, 11]))
    assert len(data.steps.before) == 8


def test_without_directions(file):
    """Up to the highest reading, then down; or so many pulses in turn."""
    readings = [1, 2, 3.2, 3, 2, 1.5]
    text = "pulse,conductance_uS\n" + "\n".join(f"{k},{g}" for k, g in enumerate(readings))
    assert read_csv(file(text)).direction.tolist() == [1, 1, 1, -1, -1, -1]
    assert read_csv(file(text), branch=2).direction.tolist() == [0, 1, 1, -1, -1, 1]
    twice = "pulse,conductance_uS\n" + "\n".join(f"{k},{g}" for k, g in enumerate(readings * 2))
    with pytest.raises(ValueError, match=r"no single rise and fall.*--branch"):
        read_csv(file(twice))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("conductance_uS", "Conductance_us", r"found .*'Conductance_us'; missing one of .*'conductance_uS'"),
        ("conductance_uS", "Conductance_us", r"Rename 'Conductance_us' -> 'conductance_uS'"),
        ("pulse,", "nr,", r"missing 'pulse'"),
        ("conductance_uS", "pulse", r"pulse there twice"),
        ("direction", "resistance_ohm", r"conductance_uS.*say the same"),
        ("2,+1,3.5", "2,+1,", r"line 5: empty cell in column 'conductance_uS'"),
        ("2,+1,3.5", "2,+1,nan", r"line 5: conductance_uS = nan is a gap"),
        ("2,+1,3.5", "2,+1,3.5x", r"line 5: conductance_uS = '3.5x' is not a number"),
        ("2,+1,3.5", '2,+1,"3,5"', r"Use a decimal point"),
        ("2,+1,3.5", "2,+1", r"line 5: 2 cells, the header has 3"),
        ("2,+1,3.5", "2,+1,-3.5", r"line 5: conductance_uS = -3.5 is not allowed: a memory cell is passive"),
        ("2,+1,3.5", "2.5,+1,3.5", r"line 5: pulse = 2.5 is not a whole number"),
        ("2,+1,3.5", "2,left,3.5", r"line 5: direction = 'left' is not allowed"),
        ("2,+1,3.5", "2,0,3.5", r"line 5: direction 0 .no pulse. after the first reading"),
        ("2,+1,3.5\n", "", r"line 6: pulse 3 after pulse 1.*a gap hides steps"),
        ("5,up", "4,up", r"line 9: pulse 4 is there twice with different directions"),
    ],
)
def test_what_is_wrong_is_said(file, old, new, message):
    with pytest.raises(ValueError, match=message) as error:
        read_csv(file(GOOD.replace(old, new, 1)))
    assert "pulses.csv" in str(error.value)


def test_files_that_are_none(file, tmp_path):
    with pytest.raises(FileNotFoundError):
        read_csv(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match="no lines"):
        read_csv(file("\n"))
    with pytest.raises(ValueError, match="no readings"):
        read_csv(file("pulse,conductance_uS\n"))
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match="not a text file"):
        read_csv(binary)
    with pytest.raises(ValueError, match="branch = 0"):
        read_csv(file("pulse,conductance_uS\n0,1\n"), branch=0)
    with pytest.raises(ValueError, match="beside a column 'direction'"):
        read_csv(file(GOOD), branch=2)


@pytest.mark.parametrize(
    ("column", "values", "likely"),
    [
        ("conductance_uS", ("25e-6", "30e-6"), "conductance_siemens"),  # 2.5e-11 S
        ("conductance_siemens", ("0.025", "0.03"), "conductance_uS"),
        ("conductance_siemens", ("1e-12", "2e-12"), None),
        ("resistance_ohm", ("0.04", "0.05"), "resistance_Mohm"),  # 25 S
        ("conductance_siemens", ("25", "30"), "conductance_uS"),
    ],
)
def test_units(file, column, values, likely):
    path = file(f"pulse,direction,{column}\n0,0,{values[0]}\n1,up,{values[1]}\n")
    above = column == "resistance_ohm" or values[0] == "25"
    if above:
        with pytest.raises(ValueError, match=rf"No cell above 1 S.*The likely unit is {likely}"):
            read_csv(path)
        return
    (note,) = read_csv(path).notes
    assert "check the unit" in note
    assert "memory cells have 1e-10 to 0.01 S" in note
    assert ("likely" in note) == (likely is not None)
    if likely:
        assert f"The likely unit is {likely}" in note


def test_columns_that_are_not_used_are_named(file):
    text = "pulse,direction,conductance_uS,volts\n0,0,1,3\n1,up,2,3\n"
    assert read_csv(file(text)).notes == ("columns not used: volts",)


def test_a_simulated_measurement_goes_round(tmp_path):
    cell = MemoryCell(5e-6, 65e-6, pulses=SoftBoundsPulses(20, sigma_c2c=0.2))
    data = measure(cell, pulses=5, cycles=2, devices=3)
    same_after_file(data, tmp_path)


def same_after_file(data: PulseData, folder) -> None:
    write_csv(data, folder / "again.csv")
    again = read_csv(folder / "again.csv")
    for name in ("pulse", "conductance", "direction", "device", "cycle", "follows", "reads", "deviation"):
        assert np.array_equal(getattr(again, name), getattr(data, name)), name
    assert again.devices == data.devices


@st.composite
def measurements(draw) -> PulseData:
    """Any readings of memory cells, with devices, directions and cycles as they come."""
    parts = []
    devices = draw(st.integers(1, 3))
    for device in range(devices):
        n = draw(st.integers(1, 12))
        direction = np.array(draw(st.lists(st.sampled_from([1, -1]), min_size=n, max_size=n)))
        first = draw(st.integers(-5, 1000))
        parts.append(
            {
                "pulse": first + np.arange(n),
                "conductance": np.array(
                    draw(st.lists(st.floats(1e-9, 1e-3, exclude_min=True), min_size=n, max_size=n))
                ),
                "direction": direction,
                "device": np.full(n, device),
                "cycle": cycles_of(direction),
                "follows": np.arange(n) > 0,
                "reads": np.ones(n, dtype=int),
                "deviation": np.zeros(n),
            }
        )
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return PulseData("any", **arrays, devices=tuple(f"chip {k}" for k in range(devices)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=measurements())
def test_any_measurement_goes_round(data, tmp_path):
    same_after_file(data, tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet='0123456789,;.-+eupdownaS_\n#\t" ', max_size=120), column=st.booleans())
def test_any_text_is_read_or_refused_by_name(text, column, tmp_path):
    """Nothing but readings or a ValueError that names the file comes of any text."""
    path = tmp_path / "any.csv"
    path.write_text(("pulse,direction,conductance_uS\n" if column else "") + text, encoding="utf-8")
    try:
        data = read_csv(path)
    except ValueError as error:
        said = str(error)
    else:
        said = "any.csv"
        assert np.isfinite(data.conductance).all()
        assert (data.conductance >= 0).all()
        assert set(data.direction.tolist()) <= {-1, 0, 1}
    assert "any.csv" in said

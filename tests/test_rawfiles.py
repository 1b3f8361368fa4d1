"""Raw files as ngspice writes them, binary and ascii, whole and cut short."""

import numpy as np
import pytest

from circuits.netlist import Netlist, Resistor, VoltageSource, write
from circuits.ngspice import _call
from circuits.rawfiles import read_raw
from tests.marks import needs_ngspice

HEADER = (
    "Title: t\nDate: today\nPlotname: {plot}\nFlags: {flags}\nNo. Variables: 2\nNo. Points: {points}\n"
    "Variables:\n\t0\ttime\ttime\n\t1\tV(A)\tvoltage\n"
)
FIRST = np.array([[0.0, 1.0], [1e-9, 1 / 3], [2e-9, -1e-300]])
SECOND = np.array([[5.0, 10.0]])  # 10.0 in float64 has the byte of a line's end nowhere; see the next test


def header(plot="Transient Analysis", flags="real", points=3):
    return HEADER.format(plot=plot, flags=flags, points=points).encode()


def as_text(values):
    rows = ["\n".join(f"\t{value!r}" for value in row) for row in values.tolist()]
    return "Values:\n" + "\n\n".join(f" {index}{row}" for index, row in enumerate(rows)) + "\n\n"


@pytest.fixture
def raw(tmp_path):
    def make(content):
        path = tmp_path / "out.raw"
        path.write_bytes(content)
        return path

    return make


def test_plots_follow_one_another_binary_and_ascii(raw):
    binary = (
        header()
        + b"Binary:\n"
        + FIRST.tobytes()
        + header("Second", points=1)
        + b"Binary:\n"
        + SECOND.tobytes()
    )
    text = header("Third") + as_text(FIRST).encode() + header("Fourth", points=1) + as_text(SECOND).encode()
    first, second, third, fourth = read_raw(raw(binary + text))
    assert (first.plot, second.plot, third.plot, fourth.plot) == (
        "Transient Analysis",
        "Second",
        "Third",
        "Fourth",
    )
    for solution, values in ((first, FIRST), (second, SECOND), (third, FIRST), (fourth, SECOND)):
        assert solution.names == ("time", "v(a)")
        np.testing.assert_array_equal(solution.values, values)
        np.testing.assert_array_equal(solution.seconds, values[:, 0])
        np.testing.assert_array_equal(solution.volts("A"), values[:, 1])
    np.testing.assert_array_equal(first.volts(["a", "0"]), np.stack([FIRST[:, 1], np.zeros(3)], axis=1))


def test_values_may_look_like_a_header(raw):
    words = np.frombuffer(b"\nBinary:\nValues:\n", np.float64, 2).reshape(1, 2)
    (solution,) = read_raw(raw(header(points=1) + b"Binary:\n" + words.tobytes()))
    np.testing.assert_array_equal(solution.values, words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header() + b"Binary:\n" + FIRST.tobytes()[:-1], "47 bytes of values where 48 are announced"),
        (header() + as_text(FIRST[:2]).encode(), "6 words of values where 9 are announced"),
        (header(), "no values behind the header"),
        (b"nothing of the kind", "no values behind the header"),
        (header(flags="complex") + b"Binary:\n", "only real"),
        (header(flags="real unpadded") + b"Binary:\n", "padded"),
    ],
)
def test_what_cannot_be_read_is_refused(raw, content, message):
    with pytest.raises(ValueError, match=message):
        read_raw(raw(content))


def test_no_plots_in_an_empty_file_and_no_column_by_a_wrong_name(raw):
    assert read_raw(raw(b"\n")) == []
    (solution,) = read_raw(raw(header() + b"Binary:\n" + FIRST.tobytes()))
    with pytest.raises(KeyError, match=r"v\(b\) was not saved; there are time, v\(a\)"):
        solution.volts("b")


@needs_ngspice
@pytest.mark.parametrize("kind", ["binary", "ascii"])
def test_several_plots_as_ngspice_appends_them(tmp_path, kind):
    deck = write(Netlist("Divider", [VoltageSource("v1", "a", "0", 1.0), Resistor("r1", "a", "0", 3.0)]))
    script = f".control\nset filetype={kind}\nset appendwrite\nop\nwrite out.raw\nalter v1 = 2\nop\nwrite out.raw\n"
    (tmp_path / "deck.cir").write_text(deck.replace(".end\n", script + "quit\n.endc\n.end\n"))
    _call(["-n", "-b", "deck.cir"], str(tmp_path), timeout_s=60.0)
    first, second = read_raw(tmp_path / "out.raw")
    assert (first.volts("a").item(), second.volts("a").item()) == (1.0, 2.0)
    np.testing.assert_allclose(second.amperes("v1"), [-2 / 3], rtol=1e-14)

"""Reading single cells: sneak paths against closed forms of arrays with ideal wires, and selected transistors."""

from __future__ import annotations

import pytest
import torch

from circuits.sneak import SCHEMES, read_cell
from circuits.wired_array import WiredArray
from circuits.wires import AccessTransistor, Wires
from tests.test_wires import F64, cells

IDEAL = Wires(1e-9, 1e-9)
LOW, HIGH = 1e-6, 1e-4


def one_high_among_low(n_out: int, n_in: int, i: int = 0, j: int = 0) -> torch.Tensor:
    """A cell of high resistance among ones of low resistance: what a passive array reads worst."""
    g = torch.full((n_out, n_in), HIGH, dtype=F64)
    g[i, j] = LOW
    return g


def test_three_cells_in_series_shunt_one_of_four():
    g = cells(2, 2)
    sneak = 1 / (1 / g[0, 1] + 1 / g[1, 1] + 1 / g[1, 0])  # out by bit line 1, back to bit line 0
    reading = read_cell(WiredArray(g, IDEAL), 0, 0, "floating", 0.2)
    assert reading.siemens == pytest.approx((g[0, 0] + sneak).item(), rel=1e-7)
    assert reading.amperes == pytest.approx(0.2 * reading.siemens, rel=1e-12)
    assert reading.watts == pytest.approx(0.2 * reading.amperes, rel=1e-7)  # only the read line gives power


@pytest.mark.parametrize(("n_out", "n_in"), [(2, 2), (3, 5), (16, 8)])
def test_sneak_paths_of_a_uniform_array(n_out, n_in):
    """In series: out - 1 cells of the word line, (out - 1)(in - 1) beyond, in - 1 of the bit line. They hide a cell of
    a hundredth of their conductance."""
    g = one_high_among_low(n_out, n_in, 1, 0)
    counts = (n_out - 1, (n_out - 1) * (n_in - 1), n_in - 1)
    sneak = HIGH / sum(1 / count for count in counts)
    reading = read_cell(WiredArray(g, IDEAL), 1, 0, "floating")
    assert reading.siemens == pytest.approx(LOW + sneak, rel=1e-7)
    assert reading.siemens > 30 * LOW


@pytest.mark.parametrize("scheme", ["grounded", "half", "third"])
def test_held_lines_of_ideal_wire_read_what_they_must(scheme):
    """A bit line at virtual ground takes the currents of its own cells: those at 0 V, V/2 or V/3."""
    g, volts = cells(4, 5), 0.3
    array = WiredArray(g, IDEAL)
    share = {"grounded": 0.0, "half": 1 / 2, "third": 1 / 3}[scheme]
    reading = read_cell(array, 2, 3, scheme, volts)
    others = g[2].sum() - g[2, 3]
    assert reading.siemens == pytest.approx((g[2, 3] + share * others).item(), rel=1e-7)
    # dissipated: V^2 g of the selected cell, of the others what the scheme leaves across them
    column = g[:, 3].sum() - g[2, 3]
    rest = g.sum() - others - column - g[2, 3]
    across = {"grounded": (0, 1, 0), "half": (1 / 2, 1 / 2, 0), "third": (1 / 3, 1 / 3, 1 / 3)}[scheme]
    power = g[2, 3] + across[0] ** 2 * others + across[1] ** 2 * column + across[2] ** 2 * rest
    assert reading.watts == pytest.approx((volts**2 * power).item(), rel=1e-7)


@pytest.mark.parametrize("ohm", [1.0, 10.0])
def test_transistors_read_right_what_floating_lines_do_not(ohm):
    """1T1R reads the cell with its transistor and its path in series; the same cells without read 1000 times that."""
    g, access = one_high_among_low(32, 32, 3, 7), AccessTransistor(5e3, 1e-12)
    selected = torch.zeros(32, 32, dtype=torch.bool)
    selected[3, 7] = True
    reading = read_cell(WiredArray(g, Wires(ohm, ohm, access=access), selected), 3, 7, "floating")
    path = (4 + 25) * ohm
    assert reading.siemens == pytest.approx(1 / (1 / LOW + 5e3 + path), rel=1e-4)
    passive = read_cell(WiredArray(g, Wires(ohm, ohm)), 3, 7, "floating")
    assert passive.siemens > 500 * LOW
    selected[:, 7] = (
        True  # all transistors of the word line: its other bit lines are held, and take their own
    )
    held = read_cell(WiredArray(g, Wires(1e-6, 1e-6, access=access), selected), 3, 7, "grounded")
    assert held.siemens == pytest.approx(1 / (1 / LOW + 5e3), rel=1e-5)


def test_floating_lines_carry_nothing():
    """With wires too: the read line's current is the bit line's, and the power is its voltage times that."""
    array = WiredArray(cells(6, 4), Wires(10.0, 10.0, 50.0, 100.0))
    reading = read_cell(array, 5, 1, "floating", 0.25)
    assert reading.watts == pytest.approx(0.25 * reading.amperes, rel=1e-9)


def test_cells_off_altogether_leave_lines_floating():
    g = cells(3, 3)
    selected = torch.zeros(3, 3, dtype=torch.bool)
    selected[:, 0] = True  # word line 0 reaches all bit lines, the other word lines reach none
    array = WiredArray(g, Wires(access=AccessTransistor(5e3, 0.0)), selected)
    with pytest.raises(ValueError, match="word line 1 floats"):
        read_cell(array, 0, 0, "floating")
    series = 1 / (1 / g[0, 0] + 5e3)
    for scheme in set(SCHEMES) - {"floating"}:
        assert read_cell(array, 0, 0, scheme).siemens == pytest.approx(series.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 0), r"no cell \(3, 0\)"),
        ((0, -1), r"no cell \(0, -1\)"),
        ((0, 0, "fourth"), "scheme = 'fourth'"),
        ((0, 0, "half", 0.0), "volts = 0"),
        ((0, 0, "half", float("nan")), "volts = nan"),
    ],
)
def test_reads_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        read_cell(WiredArray(cells(3, 2), Wires()), *arguments)

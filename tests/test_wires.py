"""Wired arrays against nodal analysis written element by element, closed forms, and ngspice."""

from __future__ import annotations

import math
import shutil
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuits.wired_array import WiredArray
from circuits.wires import AccessTransistor, Wires, ladder_conductance

F64 = torch.float64


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cells(n_out: int, n_in: int, seed: int = 0, low: float = -6, high: float = -4) -> Tensor:
    exponent = torch.rand(n_out, n_in, generator=generator(seed), dtype=F64)
    return 10 ** (low + (high - low) * exponent)


def volts(b: int, n: int, seed: int = 1) -> Tensor:
    return torch.rand(b, n, generator=generator(seed), dtype=F64) - 0.3


def elements(
    conductance: Tensor, wires: Wires, selected: Tensor | None = None
) -> list[tuple[str, str, float]]:
    """The circuit as (node, node, ohm), one resistor after another; terminals are `in j` and `out i`."""
    n_out, n_in = conductance.shape
    found = []
    for j in range(n_in):
        found.append((f"in {j}", f"word 0 {j}", wires.source_ohm + wires.word_ohm))
        found += [(f"word {i - 1} {j}", f"word {i} {j}", wires.word_ohm) for i in range(1, n_out)]
    for i in range(n_out):
        found += [(f"bit {i} {j - 1}", f"bit {i} {j}", wires.bit_ohm) for j in range(1, n_in)]
        found.append((f"bit {i} {n_in - 1}", f"out {i}", wires.load_ohm + wires.bit_ohm))
    for i in range(n_out):
        for j in range(n_in):
            g, middle = conductance[i, j].item(), f"bit {i} {j}"
            if wires.access is not None:
                middle = f"cell {i} {j}"
                is_on = selected is None or bool(selected[i, j])
                found.append(
                    (middle, f"bit {i} {j}", wires.access.on_ohm if is_on else 1 / wires.access.off_siemens)
                )
            if g > 0:
                found.append((f"word {i} {j}", middle, 1 / g))
    return found


class Nodal:
    """Dense nodal analysis, an element at a time."""

    def __init__(self, conductance: Tensor, wires: Wires, selected: Tensor | None = None):
        self.shape = conductance.shape
        n_out, n_in = self.shape
        self.elements = elements(conductance, wires, selected)
        terminals = [f"in {j}" for j in range(n_in)] + [f"out {i}" for i in range(n_out)]
        self.index = {name: k for k, name in enumerate(terminals)}
        for a, b, _ in self.elements:
            self.index.setdefault(a, len(self.index))
            self.index.setdefault(b, len(self.index))
        y = np.zeros((len(self.index),) * 2)
        for a, b, ohm in self.elements:
            k, l = self.index[a], self.index[b]
            y[[k, l], [k, l]] += 1 / ohm
            y[[k, l], [l, k]] -= 1 / ohm
        self.y, self.held = y, len(terminals)

    def solve(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Currents into the terminals and voltages of all nodes, for terminals at v (in + out,)."""
        h = self.held
        inner = np.linalg.solve(self.y[h:, h:], -self.y[h:, :h] @ v)
        nodes = np.concatenate([v, inner])
        return self.y[:h] @ nodes, nodes

    def cell_volts(self, nodes: np.ndarray) -> np.ndarray:
        n_out, n_in = self.shape
        other = "cell" if f"cell {0} {0}" in self.index else "bit"
        return np.array(
            [
                [
                    nodes[self.index[f"word {i} {j}"]] - nodes[self.index[f"{other} {i} {j}"]]
                    for j in range(n_in)
                ]
                for i in range(n_out)
            ]
        )


resistances = st.sampled_from([0.1, 1.0, 10.0, 300.0])


@settings(max_examples=40, deadline=None)
@given(
    n_out=st.integers(1, 6),
    n_in=st.integers(1, 6),
    word=resistances,
    bit=resistances,
    ends=st.tuples(st.sampled_from([0.0, 50.0]), st.sampled_from([0.0, 2e3])),
    access=st.sampled_from([None, AccessTransistor(5e3, 1e-7)]),
    zeros=st.booleans(),
    seed=st.integers(0, 100),
)
def test_it_is_nodal_analysis(n_out, n_in, word, bit, ends, access, zeros, seed):
    """Currents, cell voltages, admittance, reciprocity and the power of every element."""
    g = cells(n_out, n_in, seed, -7, -3)
    if zeros:  # no line without a cell: off the (wrapped) diagonal
        keep = (torch.arange(n_out)[:, None] - torch.arange(n_in)) % min(n_out, n_in) == 0
        g = torch.where(keep, g, 0.0)
    wires = Wires(word, bit, *ends, access)
    selected = None if access is None else torch.rand(n_out, n_in, generator=generator(seed)) < 0.5
    array, nodal = WiredArray(g, wires, selected), Nodal(g, wires, selected)
    v_in, v_out = volts(2, n_in, seed), volts(2, n_out, seed + 1)
    i_in, i_out = array.currents(v_in, v_out)
    across = array.cell_volts(v_in, v_out)
    v = torch.cat([v_in, v_out], 1)
    for k in range(2):
        current, nodes = nodal.solve(v[k].numpy())
        atol = 3e-15 / min(word, bit)  # of nodal analysis, whose currents are differences over a segment
        np.testing.assert_allclose(torch.cat([i_in, i_out], 1)[k], current, rtol=1e-9, atol=atol)
        np.testing.assert_allclose(across[k], nodal.cell_volts(nodes), rtol=1e-9, atol=1e-10)
        dissipated = sum(
            (nodes[nodal.index[a]] - nodes[nodal.index[b]]) ** 2 / ohm for a, b, ohm in nodal.elements
        )
        assert (v_in[k] @ i_in[k] + v_out[k] @ i_out[k]).item() == pytest.approx(dissipated, rel=1e-9)
    y = array.admittance()
    assert torch.allclose(v @ y, torch.cat([i_in, i_out], 1), rtol=1e-12, atol=0)
    assert torch.allclose(y, y.T, rtol=1e-12, atol=0)
    assert (y.sum(1).abs() <= 1e-14 * y.diagonal().max()).all()
    assert torch.linalg.eigvalsh(y).min() >= -1e-14 * y.diagonal().max()
    assert torch.allclose((array.transfer() @ v.T).T.view_as(across), across, rtol=1e-11, atol=1e-13)
    zero_in, zero_out = torch.zeros_like(v_in), torch.zeros_like(v_out)
    assert torch.allclose(array.matvec(v_in), -array.currents(v_in, zero_out)[1], rtol=1e-12)
    assert torch.allclose(array.rmatvec(v_out), -array.currents(zero_in, v_out)[0], rtol=1e-12)
    left, right = (array.matvec(v_in) * v_out).sum(), (array.rmatvec(v_out) * v_in).sum()
    assert left.item() == pytest.approx(right.item(), rel=1e-9, abs=1e-18)


def test_hardly_any_wires_are_a_product_with_the_conductances():
    """The error falls with the resistance until the last digits: wires of a micro-ohm cost none."""
    g, v = cells(5, 7), volts(3, 7)
    ideal = v @ g.T
    for ohm, within in ((1e-2, 1e-4), (1e-6, 1e-8), (1e-12, 1e-13)):
        array = WiredArray(g, Wires(ohm, ohm))
        assert torch.allclose(array.matvec(v), ideal, rtol=within, atol=0)
        assert torch.allclose(array.currents(v, v.new_zeros(3, 5))[0].sum(1), ideal.sum(1), rtol=within)
        across = array.cell_volts(v, v.new_zeros(3, 5))
        assert torch.allclose(across, v[:, None].expand_as(across), rtol=within, atol=within)


@pytest.mark.parametrize("ohm", [1.0, 10.0])
def test_a_single_cell_is_a_series_of_resistors(ohm):
    wires = Wires(ohm, 2 * ohm, 30.0, 500.0, AccessTransistor(4e3))
    array = WiredArray(torch.tensor([[1e-4]], dtype=F64), wires)
    total = 30 + ohm + 1e4 + 4e3 + 2 * ohm + 500
    assert array.matvec(torch.tensor([[0.2]], dtype=F64)).item() == pytest.approx(0.2 / total, rel=1e-13)
    across = array.cell_volts(torch.tensor([[0.2]], dtype=F64), torch.zeros(1, 1, dtype=F64))
    assert across.item() == pytest.approx(0.2 * 1e4 / total, rel=1e-13)


def test_the_nearest_corner_is_where_word_lines_start_and_bit_lines_end():
    """One conducting row and column: the path of a cell is i + 1 word and in - j bit segments."""
    n_out, n_in, word, bit = 3, 4, 10.0, 7.0
    g = torch.full((n_out, n_in), 1e-15, dtype=F64)
    for i in range(n_out):
        for j in range(n_in):
            single = g.clone()
            single[i, j] = 1e-3
            v = torch.zeros(1, n_in, dtype=F64)
            v[0, j] = 1.0
            path = (i + 1) * word + 1e3 + (n_in - j) * bit
            current = WiredArray(single, Wires(word, bit)).matvec(v)[0, i]
            assert current.item() == pytest.approx(1 / path, rel=1e-9)


@pytest.mark.parametrize(("n_out", "n_in"), [(3, 4), (4, 3), (3, 3)])
def test_gradients(n_out, n_in):
    """Of all terminal currents, and of the dissipated power, with respect to conductances and voltages."""
    wires = Wires(10.0, 5.0, 20.0, 300.0, AccessTransistor(5e3, 1e-6))
    selected = torch.rand(n_out, n_in, generator=generator(3)) < 0.6

    def scaled(cells_in_ms: Tensor, v_in: Tensor, v_out: Tensor) -> tuple[Tensor, ...]:
        i_in, i_out = WiredArray(1e-3 * cells_in_ms, wires, selected).currents(v_in, v_out)
        return 1e3 * i_in, 1e3 * i_out, 1e3 * ((v_in * i_in).sum() + (v_out * i_out).sum())

    g = (1e3 * cells(n_out, n_in, low=-4, high=-3)).requires_grad_()
    v_in, v_out = volts(2, n_in).requires_grad_(), volts(2, n_out, 2).requires_grad_()
    assert torch.autograd.gradcheck(scaled, (g, v_in, v_out), eps=1e-5, atol=1e-8, rtol=1e-5)
    fixed = g.detach()
    assert torch.autograd.gradcheck(lambda *v: scaled(fixed, *v), (v_in, v_out), eps=1e-5, atol=1e-8)


def test_half_the_power_has_the_squared_cell_voltages_as_its_gradient():
    """Co-content P / 2 by Tellegen's theorem: d/dg = u^2 / 2, whatever the wires."""
    g = cells(4, 6).requires_grad_()
    v_in, v_out = volts(1, 6), volts(1, 4, 2)
    array = WiredArray(g, Wires(10.0, 10.0))
    i_in, i_out = array.currents(v_in, v_out)
    (0.5 * ((v_in * i_in).sum() + (v_out * i_out).sum())).backward()
    assert torch.allclose(g.grad, 0.5 * array.cell_volts(v_in, v_out)[0] ** 2, rtol=1e-10)


def test_one_elimination_serves_everything(monkeypatch):
    import circuits.wired_array as module

    made, build = [], module.LineElimination
    monkeypatch.setattr(module, "LineElimination", lambda *args: made.append(1) or build(*args))
    array = WiredArray(cells(4, 5).requires_grad_(), Wires())
    assert not made  # nothing was asked yet
    v_in, v_out = volts(3, 5), volts(3, 4)
    array.matvec(v_in).sum().backward()
    array.rmatvec(v_out)
    array.transfer()
    array.cell_volts(v_in, v_out)
    array.approximation_error()
    assert made == [1]


def test_results_have_the_type_of_the_voltages():
    array = WiredArray(cells(4, 5).float(), Wires())
    single, double = array.matvec(volts(2, 5).float()), array.matvec(volts(2, 5))
    assert single.dtype == torch.float32
    assert double.dtype == F64
    assert torch.allclose(single.double(), double, rtol=1e-5)
    assert array.cell_volts(volts(2, 5).float(), volts(2, 4).float()).dtype == torch.float32
    assert array.admittance().dtype == array.transfer().dtype == F64


@pytest.mark.cuda
def test_cells_and_voltages_may_be_on_a_gpu():
    g, v_in, v_out = cells(4, 5), volts(2, 5).cuda(), volts(2, 4).cuda()
    learned, array = g.cuda().requires_grad_(), WiredArray(g, Wires())
    found = WiredArray(learned, Wires())
    found.matvec(v_in).sum().backward()
    assert learned.grad.is_cuda
    assert array.matvec(v_in).is_cuda
    assert torch.allclose(found.matvec(v_in), array.matvec(v_in), rtol=1e-12)
    assert torch.allclose(found.cell_volts(v_in, v_out), array.cell_volts(v_in, v_out), rtol=1e-12)


# -- approximation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 6), (6, 1)])
def test_the_approximation_is_exact_on_one_line(shape):
    wires = Wires(10.0, 20.0, 5.0, 100.0)
    array = WiredArray(cells(*shape, low=-4, high=-3), wires)
    assert array.approximation_error() < 1e-12


@pytest.mark.parametrize(("ohm", "within"), [(1.0, 1e-3), (10.0, 0.05)])
def test_the_approximation_of_64_lines(ohm, within):
    """At least ten times as close as every cell in series with its own path."""
    g, wires = cells(64, 64), Wires(ohm, ohm)
    array = WiredArray(g, wires)
    error = array.approximation_error()
    assert error < within
    path = ohm * (torch.arange(1, 65, dtype=F64)[:, None] + torch.arange(64, 0, -1, dtype=F64))
    exact = array.matvec(torch.eye(64, dtype=F64)).T
    assert ((g / (1 + g * path)) - exact).norm() / exact.norm() > 10 * error
    given_inputs = array.approximation_error(volts(16, 64).float())
    assert 0.2 * error < given_inputs < 5 * error


def test_the_approximation_is_differentiable():
    wires = Wires(10.0, 10.0, 5.0, 5.0, AccessTransistor(5e3))
    g = (1e3 * cells(3, 4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: 1e3 * ladder_conductance(1e-3 * g, wires), (g,), atol=1e-8)


# -- ngspice -----------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("ngspice") is None, reason="ngspice is not installed")
@pytest.mark.parametrize(("n_out", "n_in", "ohm"), [(16, 12, 10.0), (32, 32, 1.0)])
def test_ngspice_agrees_to_six_digits(tmp_path, n_out, n_in, ohm):
    g, wires = cells(n_out, n_in), Wires(ohm, ohm, 10.0, 50.0)
    v_in, v_out = volts(1, n_in), 0.1 * volts(1, n_out, 2)
    lines = [f"wired array {n_out} x {n_in}"]
    for k, (a, b, resistance) in enumerate(elements(g, wires)):
        lines.append(f"R{k} {a.replace(' ', '_')} {b.replace(' ', '_')} {resistance!r}")
    lines += [f"Vin{j} in_{j} 0 {v!r}" for j, v in enumerate(v_in[0].tolist())]
    lines += [f"Vout{i} out_{i} 0 {v!r}" for i, v in enumerate(v_out[0].tolist())]
    printed = [f"print -i(vin{j})" for j in range(n_in)] + [f"print -i(vout{i})" for i in range(n_out)]
    lines += [
        ".options reltol=1e-9 abstol=1e-16",
        ".control",
        "set numdgt=12",
        "op",
        *printed,
        ".endc",
        ".end",
    ]
    netlist = tmp_path / "array.cir"
    netlist.write_text("\n".join(lines))
    output = subprocess.run(["ngspice", "-b", netlist], capture_output=True, text=True, timeout=120).stdout
    found = [float(line.split("=")[1]) for line in output.splitlines() if line.startswith("-i(v")]
    expected = torch.cat(WiredArray(g, wires).currents(v_in, v_out), 1)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


# -- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conductance", "message"),
    [
        (torch.tensor([[1e-6, -1e-6]]), r"conductance\[0, 1\] = -"),
        (torch.tensor([[1e-6], [math.nan]]), r"conductance\[1, 0\] = nan"),
        (torch.tensor([[math.inf]]), r"conductance\[0, 0\] = inf"),
        (torch.tensor([[1e-6, 1e-6], [0.0, 0.0]]), r"bit line \(output\) 1 "),
        (torch.tensor([[1e-6, 0.0], [1e-6, 0.0]]), r"word line \(input\) 1 "),
        (torch.ones(3), r"\(3,\)"),
        (torch.ones(2, 0), r"\(2, 0\)"),
        (torch.ones(2, 2, dtype=torch.int64), r"int64"),
    ],
)
def test_cells_out_of_range_are_refused(conductance, message):
    with pytest.raises(ValueError, match=message):
        WiredArray(conductance, Wires())
    with pytest.raises(ValueError, match=message):
        ladder_conductance(conductance, Wires())


@pytest.mark.parametrize(
    "setting",
    [
        {"word_ohm": 0.0},
        {"bit_ohm": -1.0},
        {"bit_ohm": math.nan},
        {"word_ohm": math.inf},
        {"source_ohm": -0.1},
        {"load_ohm": math.inf},
        {"access": "1T1R"},
        {"load_ohm": 1e4, "bit_ohm": 1e-6},
    ],
)
def test_wires_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match="1e8" if len(setting) > 1 else f"{next(iter(setting))} = "):
        Wires(**setting)


@pytest.mark.parametrize(
    ("on_ohm", "off_siemens", "name"), [(0, 0, "on_ohm"), (1e4, 2e-4, "off_"), (1e4, -1, "off_")]
)
def test_transistors_out_of_range_are_refused(on_ohm, off_siemens, name):
    with pytest.raises(ValueError, match=name):
        AccessTransistor(on_ohm, off_siemens)


def test_arguments_that_do_not_fit_are_refused():
    g, selected = cells(3, 2), torch.ones(3, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="no access transistors"):
        WiredArray(g, Wires(), selected)
    with pytest.raises(ValueError, match=r"takes \(3, 2\) of torch.bool"):
        WiredArray(g, Wires(access=AccessTransistor()), selected.T)
    array = WiredArray(g, Wires())
    with pytest.raises(ValueError, match=r"v_in is \(1, 3\)"):
        array.currents(volts(1, 3), volts(1, 3))
    with pytest.raises(ValueError, match=r"v_out is \(2, 3\)"):
        array.cell_volts(volts(1, 2), volts(2, 3))
    with pytest.raises(ValueError, match="drives no current"):
        array.approximation_error(torch.zeros(1, 2))

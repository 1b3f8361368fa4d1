"""A crossbar array with the resistance of its wires, its sources and its loads."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from circuits.line_elimination import LineElimination
from circuits.wires import Wires, check_conductance, ladder_conductance


class WiredArray:
    """Linear array of cells on wires, solved exactly (nodal analysis) in float64 on the CPU.

    conductance: (out, in) siemens, finite and >= 0, in the convention of a weight matrix: rows are outputs (bit
    lines), columns are inputs (word lines). selected: (out, in) bool, access transistors that are on (1T1R); all
    unless given. Terminals hold voltages behind source_ohm and load_ohm:

        v_in[0] -source-word-o-word-o-word-o     word line 0: driven at its end before bit line 0
                             |      |      |     a cell (i, j), and its transistor, joins word line j to bit line i
                             o      o      o     bit lines 0 1 2
                            bit    bit    bit
        v_in[1] -source-word-o-word-o-word-o     word line 1
                             |      |      |
                             o      o      o
                            bit    bit    bit
                            load   load   load   bit lines are sensed after the last word line
                             |      |      |
                        v_out[0]   [1]    [2]

    "word" and "bit" are segments of word_ohm and bit_ohm; the end of a line is behind a segment too. The drawing has
    out = 3 and in = 2; it is badcrossbar's, whose matrix of resistances is the transpose of `conductance`.

    Do not change `conductance` in place while the array is in use. One elimination, made when first needed, serves all
    inputs and all gradients: with L lines of the more numerous kind and l of the other about L l^3 multiply-adds,
    L^2 l^2 more for the terminals, and L l^2 numbers of 8 bytes (17 MB for 128 x 128, 1.1 GB for 512 x 512). Of 16
    digits currents lose about as many as the largest resistance among the wires has more than the smallest segment.

    What is returned has the type and device of the voltages given; `admittance` and `transfer` are float64 on the
    device of the cells, as is `series_siemens` (out, in), of cells and transistors.
    """

    def __init__(self, conductance: Tensor, wires: Wires, selected: Tensor | None = None):
        check_conductance(conductance)
        self.wires = wires
        self.selected = None if selected is None else selected.clone()
        self.conductance = conductance
        cells = conductance.detach().double()
        self._share = wires.share(cells, selected)
        self.series_siemens = cells * self._share
        self.shape: tuple[int, int] = tuple(conductance.shape)

    # -- terminals ----------------------------------------------------------------------------------

    def matvec(self, v_in: Tensor) -> Tensor:
        """Currents (B, out), A, out of the array into virtual grounds behind load_ohm, for v_in (B, in), V."""
        v_out = v_in.new_zeros(len(v_in), self.shape[0])
        if self._has_gradient:
            return -self.currents(v_in, v_out)[1]
        self._check(v_in, v_out)
        return _times(v_in, self._mutual)

    def rmatvec(self, v_out: Tensor) -> Tensor:
        """The transpose of `matvec`: currents (B, in) out of the inputs at virtual ground, for v_out (B, out)."""
        v_in = v_out.new_zeros(len(v_out), self.shape[1])
        if self._has_gradient:
            return -self.currents(v_in, v_out)[0]
        self._check(v_in, v_out)
        return _times(v_out, self._mutual.T)

    def currents(self, v_in: Tensor, v_out: Tensor) -> tuple[Tensor, Tensor]:
        """Currents (B, in) and (B, out), A, that flow into the array from its terminals, held at v_in (B, in) and v_out
        (B, out), V. Differentiable (once) with respect to both and to the conductances."""
        self._check(v_in, v_out)
        volts = torch.cat([v_in, v_out], 1)
        if self._has_gradient:
            currents = _Currents.apply(self.conductance, volts, self)
        else:
            currents = _times(volts, self._admittance)
        n_out, n_in = self.shape
        return currents.split([n_in, n_out], 1)

    def admittance(self) -> Tensor:
        """(in + out, in + out), S: the currents into all terminals, inputs first, of the voltages at them. Symmetric,
        positive semidefinite, its rows add up to 0."""
        return self._admittance.clone()

    # -- cells --------------------------------------------------------------------------------------

    def cell_volts(self, v_in: Tensor, v_out: Tensor) -> Tensor:
        """Voltages (B, out, in) across the cells themselves, without their transistors, input side positive. Without
        gradients."""
        self._check(v_in, v_out)
        return self._cell_volts(torch.cat([v_in, v_out], 1))

    def transfer(self) -> Tensor:
        """(out * in, in + out): the cells' voltages (row-major) are `transfer @ [v_in, v_out]`.

        8 (in + out) out in bytes: 4 MB for 64 x 64, 34 MB for 128 x 128. The output may be the larger part."""
        unit = torch.eye(sum(self.shape), dtype=torch.float64, device=self.series_siemens.device)
        return self._cell_volts(unit).flatten(1).T.contiguous()

    # -- approximation ------------------------------------------------------------------------------

    def approximation(self) -> Tensor:
        """(out, in): output currents are about v_in @ approximation'; see `ladder_conductance`. No elimination."""
        return ladder_conductance(self.conductance, self.wires, self.selected)

    def approximation_error(self, v_in: Tensor | None = None) -> float:
        """|W v - i| / |i| of the approximation's output currents against the exact ones, over a batch v_in (B, in).

        Without v_in that of the matrices, which is the error for random inputs around 0. One elimination."""
        if v_in is None:
            v_in = torch.eye(self.shape[1], dtype=torch.float64, device=self.series_siemens.device)
        with torch.no_grad():
            v_in = v_in.double()
            exact = self.matvec(v_in)
            found = v_in @ self.approximation().to(v_in).T
        if not (size := exact.norm()) > 0:
            raise ValueError(
                "v_in drives no current, so that there is no relative error; choose another input"
            )
        return float((found - exact).norm() / size)

    # -- the elimination ----------------------------------------------------------------------------

    @property
    def _inner_is_word(self) -> bool:
        """Whether the elimination takes the word lines one by one: it should take the more numerous lines."""
        n_out, n_in = self.shape
        return n_out <= n_in

    @cached_property
    def _elimination(self) -> LineElimination:
        """Word lines as inner ones, as they are: driven before node 0, bit lines sensed after the last. Or bit lines as
        inner ones, with both orders turned round, for their terminals are at the other ends."""
        wires, g = self.wires, self.series_siemens.cpu().numpy()
        word = (wires.word_ohm, wires.word_ohm + wires.source_ohm)
        bit = (wires.bit_ohm, wires.bit_ohm + wires.load_ohm)
        if self._inner_is_word:
            return LineElimination(g.T, word[0], bit[0], word[1], bit[1])
        return LineElimination(g[::-1, ::-1], bit[0], word[0], bit[1], word[1])

    @cached_property
    def _admittance(self) -> Tensor:
        y = self._elimination.admittance
        if not self._inner_is_word:  # outputs first, and both turned round
            y = y[::-1, ::-1].copy()
        return torch.from_numpy(y).to(self.series_siemens.device)

    @cached_property
    def _mutual(self) -> Tensor:
        """(in, out): what `matvec` multiplies by."""
        mutual = -self._elimination.mutual  # (outer, inner)
        mutual = mutual.T if self._inner_is_word else mutual[::-1, ::-1]
        return torch.from_numpy(mutual.copy()).to(self.series_siemens.device)

    @property
    def _has_gradient(self) -> bool:
        return self.conductance.requires_grad and torch.is_grad_enabled()

    def _cell_volts(self, volts: Tensor) -> Tensor:
        n_in = self.shape[1]
        v = volts.detach().cpu().double().numpy()
        v_in, v_out = v[:, :n_in], v[:, n_in:]
        if self._inner_is_word:
            u = self._elimination.cell_volts(v_in, v_out).swapaxes(1, 2)
        else:
            u = -self._elimination.cell_volts(v_out[:, ::-1], v_in[:, ::-1])[:, ::-1, ::-1]
        u = torch.from_numpy(np.ascontiguousarray(u)).to(self.series_siemens.device)
        return (u * self._share).to(volts)

    def _check(self, v_in: Tensor, v_out: Tensor) -> None:
        n_out, n_in = self.shape
        wanted = {"v_in": (v_in, n_in), "v_out": (v_out, n_out)}
        for name, (v, count) in wanted.items():
            if v.ndim != 2 or v.shape[1] != count or len(v) != len(v_in) or not v.is_floating_point():
                raise ValueError(
                    f"{name} is {tuple(v.shape)} of {v.dtype}; this array takes real voltages ({len(v_in)}, {count})"
                )


def _times(volts: Tensor, siemens: Tensor) -> Tensor:
    """volts @ siemens in float64, with the type and device of the volts."""
    return (volts.double() @ siemens.to(volts.device)).to(volts.dtype)


class _Currents(torch.autograd.Function):
    """Terminal currents Y v. With the adjoint voltages a, the gradient of a' Y v with respect to a cell is the product
    of what a and v leave across it, summed over the batch; with respect to v it is Y a, for Y is symmetric."""

    @staticmethod
    def forward(ctx, conductance: Tensor, volts: Tensor, array: WiredArray) -> Tensor:
        ctx.save_for_backward(volts)
        ctx.array, ctx.like = array, conductance.detach()
        return _times(volts, array._admittance)

    @staticmethod
    @once_differentiable
    def backward(ctx, adjoint: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (volts,) = ctx.saved_tensors
        cells = None
        if ctx.needs_input_grad[0]:
            both = ctx.array._cell_volts(torch.cat([volts, adjoint]).double())
            forward, backward = both.split(len(volts))
            cells = (forward * backward).sum(0).to(ctx.like)
        return cells, _times(adjoint, ctx.array._admittance) if ctx.needs_input_grad[1] else None, None

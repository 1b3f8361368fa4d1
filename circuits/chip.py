"""A circuit whose weights live on crossbars: the cells are the truth, Parameters mirror the last read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from circuits.base import EnergyCircuit, Params
from circuits.crossbar import Crossbar
from devices import Device


class Chip:
    """Puts every weight matrix of `circuit` on a crossbar of `device` and programs it there.

    A convolution's kernel is the matrix (out, in kh kw), its patches are the inputs of the rows. All else (biases,
    normalisation, embeddings) stays digital. w_range: a crossbar's w_max over the root mean square of the
    weights it is made with. rng: a generator on the circuit's device; all of the chip's randomness comes from it.
    `t_seconds` is the chip's clock, for drift: advance it between reads as the simulated machine would.
    """

    def __init__(
        self,
        circuit: EnergyCircuit,
        device: Device,
        rng: torch.Generator,
        *,
        w_range: float = 5.0,
        rounding: str = "nearest",
    ):
        if not w_range > 0:
            raise ValueError(f"w_range = {w_range}; choose w_range > 0, such as 5")
        self.circuit, self.device, self.rng = circuit, device, rng
        self.t_seconds = 0.0
        self.crossbars: dict[str, Crossbar] = {}
        self._last: dict[str, Tensor] = {}
        for name in circuit.weights:
            weight = circuit.params()[name].detach()
            if not bool(torch.isfinite(weight).all()):
                raise ValueError(
                    f"{name} holds NaN or infinity; check the network before making a chip of it"
                )
            w_max = w_range * weight.square().mean().sqrt().item()
            shape = tuple(weight.flatten(1).shape)
            self.crossbars[name] = Crossbar(shape, device, w_max, rng, rounding=rounding, dtype=weight.dtype)
        self.targets = {name: circuit.params()[name].detach().clone() for name in self.crossbars}
        self.program(self.targets)

    def program(self, params: Params) -> None:
        """Write these weights, by program rather than by pulses."""
        for name, crossbar in self.crossbars.items():
            crossbar.program(params[name].detach().flatten(1), self.t_seconds)
        self.read()

    @torch.no_grad()
    def read(self) -> Params:
        """All parameters as read at t_seconds: fresh tensors for what is on the array; mirrored into the
        circuit's Parameters."""
        params = self.circuit.params()
        for name, crossbar in self.crossbars.items():
            self._last[name] = crossbar.read(self.t_seconds).view(params[name].shape)
            params[name].copy_(self._last[name])
        return {**params, **self._last}

    def holds(self, name: str) -> bool:
        return name in self.crossbars

    @torch.no_grad()
    def write(self, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Change weights by `deltas` with whole pulses; returns what was nominally written."""
        written = {}
        for name, delta in deltas.items():
            last = self._last[name].flatten(1)
            written[name] = (
                self.crossbars[name].write(delta.flatten(1), last, self.t_seconds).view(delta.shape)
            )
        return written

    @property
    def pulses_per_device(self) -> float:
        """Mean number of pulses over all cells of the chip."""
        cells = {name: c.plus.pulses.numel() for name, c in self.crossbars.items()}
        total = sum(c.pulses_per_cell * cells[name] for name, c in self.crossbars.items())
        return total / sum(cells.values())

    def state_dict(self) -> dict:
        return {
            "crossbars": {name: c.state_dict() for name, c in self.crossbars.items()},
            "last": {name: w.clone() for name, w in self._last.items()},
            "t_seconds": self.t_seconds,
            "rng": self.rng.get_state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Back to where `state_dict()` was taken, of a chip of the same circuit and device."""
        params = self.circuit.params()
        for name, crossbar in self.crossbars.items():
            crossbar.load_state_dict(state["crossbars"][name])
            self._last[name] = state["last"][name].to(self._last[name])
            params[name].copy_(self._last[name])
        self.t_seconds = state["t_seconds"]
        self.rng.set_state(state["rng"].cpu())

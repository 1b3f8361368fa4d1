"""A circuit whose weights live on crossbars: the cells are the truth, Parameters mirror the last read."""

from __future__ import annotations

import collections.abc
import math

import torch
from torch import Tensor

from circuits.base import EnergyCircuit, Pairs, Params
from circuits.crossbar import Crossbar
from circuits.mapping import Mapping
from circuits.periphery import Converter
from circuits.pulse_trains import PulseTrains
from devices import Device, ProgramVerify


class Chip:
    """Puts every weight matrix of `circuit` on a crossbar of `device` and programs it there.

    A convolution's kernel is the matrix (out, in kh kw), its patches are the inputs of the rows. All else (biases,
    normalisation, embeddings) stays digital. w_range: a crossbar's w_max over the root mean square of the
    weights it is made with. rng: a generator on the circuit's device; all of the chip's randomness comes from it.
    mapping, rounding, programming: as of `Crossbar`. dac: converts what is driven into the first array. trains: learn
    by trains of pulses for each sample (`coincide`) in place of whole changes (`write`); what of their lines saturated
    last is in `saturated`, by weight.

    `t_seconds` is the chip's clock, for drift and slow noise: advance it between reads as the simulated machine would.
    Each read advances it by `read_seconds` itself, so that noise with a correlation time longer than that is shared by
    the reads of one step.
    """

    def __init__(
        self,
        circuit: EnergyCircuit,
        device: Device,
        rng: torch.Generator,
        *,
        w_range: float = 5.0,
        mapping: Mapping | None = None,
        rounding: str = "truncate",
        programming: ProgramVerify | None = None,
        dac: Converter | None = None,
        trains: PulseTrains | None = None,
        read_seconds: float = 0.0,
    ):
        if not w_range > 0:
            raise ValueError(f"w_range = {w_range}; choose w_range > 0, such as 5")
        if not 0 <= read_seconds < math.inf:
            raise ValueError(f"read_seconds = {read_seconds}; choose a finite time >= 0 s")
        mapping = circuit.mapping(device) if mapping is None else mapping
        circuit.check_mapping(mapping, device)
        self.circuit, self.device, self.rng = circuit, device, rng
        self.dac, self.trains, self.read_seconds = dac, trains, read_seconds
        self.saturated: dict[str, float] = {}
        self.t_seconds = 0.0
        self.crossbars: dict[str, Crossbar] = {}
        self._last: dict[str, Tensor] = {}
        for name in circuit.weights:
            weight = circuit.params()[name].detach()
            if not bool(torch.isfinite(weight).all()):
                raise ValueError(
                    f"{name} holds NaN or infinity; check the network before making a chip of it"
                )
            w_max = mapping.full_scale(weight, w_range, device)
            self.crossbars[name] = Crossbar(
                tuple(weight.flatten(1).shape),
                device,
                w_max,
                rng,
                mapping=mapping,
                rounding=rounding,
                programming=programming,
                dtype=weight.dtype,
            )
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
        self.t_seconds += self.read_seconds
        params = self.circuit.params()
        for name, crossbar in self.crossbars.items():
            self._last[name] = crossbar.read(self.t_seconds).view(params[name].shape)
            params[name].copy_(self._last[name])
        return {**params, **self._last}

    def drive(self, x: Tensor) -> Tensor:
        """The input (B, ...) as the chip sees it, through its DAC."""
        return x if self.dac is None else self.dac.convert(x, self.rng)

    def holds(self, name: str) -> bool:
        return name in self.crossbars

    @torch.no_grad()
    def write(self, deltas: collections.abc.Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Change weights by `deltas` with whole pulses; returns what was nominally written."""
        written = {}
        for name, delta in deltas.items():
            last = self._last[name].flatten(1)
            written[name] = (
                self.learning[name].write(delta.flatten(1), last, self.t_seconds).view(delta.shape)
            )
        return written

    @torch.no_grad()
    def coincide(self, factors: collections.abc.Mapping[str, Pairs], scale: float) -> None:
        """Change each weight by -scale post' pre, summed over its pairs, in the mean, with `trains` of pulses."""
        for name, pairs in factors.items():
            self.saturated[name] = self.learning[name].coincide(pairs, scale, self.trains, self.t_seconds)

    @property
    def learning(self) -> dict[str, Crossbar]:
        """The arrays that changes are written to."""
        return self.crossbars

    @property
    def arrays(self) -> list[Crossbar]:
        """All of them."""
        return list(self.crossbars.values())

    def calibrate(self) -> None:
        """Remember every array's response, for `compensate` to come back to; call it right after programming."""
        for crossbar in self.crossbars.values():
            crossbar.calibrate(self.t_seconds)

    def compensate(self, per: str = "column") -> None:
        """Undo drift by gains at the outputs, "global" (one per array) or per "column"; see `Crossbar.compensate`."""
        for crossbar in self.crossbars.values():
            crossbar.compensate(self.t_seconds, per)
        self.read()

    # -- costs --------------------------------------------------------------------------------------

    @property
    def pulses_per_device(self) -> float:
        """Mean number of pulses over all cells of the chip."""
        return sum(c.pulses for c in self.arrays) / sum(c.cell_count for c in self.arrays)

    @property
    def joules(self) -> tuple[float, float] | None:
        """Energy of all write pulses and of all reads so far, J; None where a device does not say its voltages."""
        if any(c.device.operation is None for c in self.arrays):
            return None
        writes, reads = zip(*(c.joules for c in self.arrays), strict=True)
        return sum(writes), sum(reads)

    @property
    def failed(self) -> dict[str, float]:
        """By weight, the share of its cells that the last program-and-verify gave up."""
        return {name: crossbar.failed for name, crossbar in self.crossbars.items()}

    # -- saving -------------------------------------------------------------------------------------

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

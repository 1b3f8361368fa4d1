"""The same device at another resolution."""

from __future__ import annotations

from dataclasses import replace

from devices.base import Device
from devices.cell import MemoryCell
from devices.checks import check_number
from devices.write_noise import HiddenStateNoise


def with_bits(device: Device, bits: int) -> MemoryCell:
    """The same device with 2**bits levels and 2**bits - 1 nominal steps across its window; bits from 1 to 16.

    Noise from pulse to pulse keeps its ratio to the step, write noise its siemens.

    Raises ValueError for a device that has neither levels nor pulses (`ideal`, `pcm`), or one that is not a
    MemoryCell: there is no resolution to set.
    """
    check_number("bits", bits, 1, 16, "6 makes 64 levels, or 63 pulses across the window.", whole=True)
    if not isinstance(device, MemoryCell) or (device.levels is None and device.pulses is None):
        raise ValueError(
            f"with_bits: {type(device).__name__} has neither levels nor pulses, so bits = {bits} means "
            "nothing to it. Start from a device that has (e.g. 'levels-6bit', 'soft-bounds-6bit'), or set "
            "`levels` on a MemoryCell."
        )
    levels = None if device.levels is None else 2**bits
    if device.pulses is None:
        return replace(device, levels=levels)
    changed = replace(device, levels=levels, pulses=device.pulses.with_steps(2**bits - 1))
    if device.write_noise is None:
        return changed
    sigma_steps = device.write_noise.sigma_steps * device.step_siemens / changed.step_siemens
    return replace(changed, write_noise=HiddenStateNoise(sigma_steps))

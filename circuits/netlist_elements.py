"""The elements, models and analyses of a SPICE netlist: frozen, checked as made, each knowing its card.

Every name is stored as SPICE compares it: in lower case, an element's with the letter of its kind in front
(a resistor "Load" is "rload"), ground as "0".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from circuits.netlist_names import node_name, number, plain_name, store, store_finite


@dataclass(frozen=True)
class PWL:
    """A waveform through these (seconds, volts or amperes) points, straight between, held before and after."""

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        points = tuple((float(seconds), float(value)) for seconds, value in self.points)
        if (
            len(points) < 2
            or points[0][0] < 0
            or not all(math.isfinite(v) for point in points for v in point)
        ):
            raise ValueError(f"PWL points {points}; give two or more finite (seconds, value), from 0 s on")
        for (before, _), (after, _) in pairwise(points):
            if not before < after:
                raise ValueError(f"PWL: {after} s follows {before} s; times must rise, an edge takes a while")
        store(self, "points", points)

    @property
    def tail(self) -> tuple[str, ...]:
        words = [number(value) for point in self.points for value in point]
        return (f"PWL({words[0]}", *words[1:-1], f"{words[-1]})")


@dataclass(frozen=True)
class Element:
    """What all elements share: a name, the nodes it joins, and the words of its card."""

    name: str
    letter: ClassVar[str]
    node_fields: ClassVar[tuple[str, ...]]
    conducting: ClassVar[tuple[int, int] | None] = (0, 1)
    """Which two of its nodes have a DC path between them."""

    def __post_init__(self) -> None:
        name = plain_name(self.name)
        store(self, "name", name if name.startswith(self.letter) else self.letter + name)
        for node in self.node_fields:
            store(self, node, node_name(getattr(self, node)))

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(getattr(self, node) for node in self.node_fields)

    @property
    def tail(self) -> tuple[str, ...]:
        """The words of the card behind name and nodes."""
        raise NotImplementedError


@dataclass(frozen=True)
class Resistor(Element):
    """`ohm` > 0 between a and b."""

    a: str
    b: str
    ohm: float
    letter = "r"
    node_fields = ("a", "b")

    def __post_init__(self) -> None:
        super().__post_init__()
        store_finite(self, "ohm", positive=True, zero=False)

    @property
    def tail(self) -> tuple[str, ...]:
        return (number(self.ohm),)


@dataclass(frozen=True)
class Capacitor(Element):
    """`farad` > 0 between a and b; a transient from initial conditions starts at v(a) - v(b) = `initial_volts`."""

    a: str
    b: str
    farad: float
    initial_volts: float | None = None
    letter = "c"
    node_fields = ("a", "b")
    conducting = None

    def __post_init__(self) -> None:
        super().__post_init__()
        store_finite(self, "farad", positive=True, zero=False)
        if self.initial_volts is not None:
            store_finite(self, "initial_volts")

    @property
    def tail(self) -> tuple[str, ...]:
        initial = () if self.initial_volts is None else (f"IC={number(self.initial_volts)}",)
        return (number(self.farad), *initial)


@dataclass(frozen=True)
class Diode(Element):
    """A diode of a `DiodeModel`, which conducts from anode to cathode."""

    anode: str
    cathode: str
    model: str
    letter = "d"
    node_fields = ("anode", "cathode")

    def __post_init__(self) -> None:
        super().__post_init__()
        store(self, "model", plain_name(self.model))

    @property
    def tail(self) -> tuple[str, ...]:
        return (self.model,)


@dataclass(frozen=True)
class Rectifier(Element):
    """A diode of two straight lines: v = v(anode) - v(cathode) drives on_siemens v above 0 V, off_siemens v below.

    0 <= off_siemens < on_siemens. SPICE's diodes are exponential; its cards have this one as a formula.
    """

    anode: str
    cathode: str
    on_siemens: float
    off_siemens: float = 0.0
    letter = "b"
    node_fields = ("anode", "cathode")

    def __post_init__(self) -> None:
        super().__post_init__()
        store_finite(self, "on_siemens", positive=True, zero=False)
        store_finite(self, "off_siemens", positive=True)
        if not self.off_siemens < self.on_siemens:
            raise ValueError(
                f"Rectifier {self.name}: off_siemens = {self.off_siemens}; choose less than on_siemens"
            )

    @property
    def tail(self) -> tuple[str, ...]:
        volts = f"v({self.anode},{self.cathode})"
        on, off = number(self.on_siemens), number(self.off_siemens)
        return (f"I={volts}>0?{on}*{volts}:{off}*{volts}",)


@dataclass(frozen=True)
class _Source(Element):
    """An independent source: a constant, or a waveform over time."""

    plus: str
    minus: str
    node_fields = ("plus", "minus")
    value_field: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(getattr(self, self.value_field), PWL):
            store_finite(self, self.value_field)

    @property
    def tail(self) -> tuple[str, ...]:
        value = getattr(self, self.value_field)
        return value.tail if isinstance(value, PWL) else ("DC", number(value))


@dataclass(frozen=True)
class VoltageSource(_Source):
    """v(plus) - v(minus) = `volts`; 0 V measures the current from plus to minus."""

    volts: float | PWL
    letter = "v"
    value_field = "volts"


@dataclass(frozen=True)
class CurrentSource(_Source):
    """`amperes` flow through the source from plus to minus: they leave the node plus and enter minus."""

    amperes: float | PWL
    letter = "i"
    value_field = "amperes"
    conducting = None


@dataclass(frozen=True)
class _VoltageControlled(Element):
    plus: str
    minus: str
    control_plus: str
    control_minus: str
    node_fields = ("plus", "minus", "control_plus", "control_minus")
    value_field: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        store_finite(self, self.value_field, zero=False)

    @property
    def tail(self) -> tuple[str, ...]:
        return (number(getattr(self, self.value_field)),)


@dataclass(frozen=True)
class VCVS(_VoltageControlled):
    """v(plus) - v(minus) = gain (v(control_plus) - v(control_minus))."""

    gain: float
    letter = "e"
    value_field = "gain"


@dataclass(frozen=True)
class VCCS(_VoltageControlled):
    """siemens (v(control_plus) - v(control_minus)) flow through the source from plus to minus."""

    siemens: float
    letter = "g"
    value_field = "siemens"
    conducting = None


@dataclass(frozen=True)
class CCCS(Element):
    """gain times the current through the voltage source `source` (plus to minus) flows from plus to minus."""

    plus: str
    minus: str
    source: str
    gain: float
    letter = "f"
    node_fields = ("plus", "minus")
    conducting = None

    def __post_init__(self) -> None:
        super().__post_init__()
        source = plain_name(self.source)
        store(self, "source", source if source.startswith("v") else f"v{source}")
        store_finite(self, "gain", zero=False)

    @property
    def tail(self) -> tuple[str, ...]:
        return (self.source, number(self.gain))


@dataclass(frozen=True)
class Instance(Element):
    """A subcircuit, its ports on these terminals (nodes) in order."""

    terminals: tuple[str, ...]
    subcircuit: str
    letter = "x"
    node_fields = ()
    conducting = None  # that depends on the subcircuit

    def __post_init__(self) -> None:
        super().__post_init__()
        store(self, "terminals", tuple(node_name(node) for node in self.terminals))
        store(self, "subcircuit", plain_name(self.subcircuit))

    @property
    def nodes(self) -> tuple[str, ...]:
        return self.terminals

    @property
    def tail(self) -> tuple[str, ...]:
        return (self.subcircuit,)


@dataclass(frozen=True)
class DiodeModel:
    """i = saturation_amperes (exp(u / (ideality kT/q)) - 1) behind series_ohm >= 0."""

    name: str
    saturation_amperes: float
    ideality: float = 1.0
    series_ohm: float = 0.0

    def __post_init__(self) -> None:
        store(self, "name", plain_name(self.name))
        store_finite(self, "saturation_amperes", positive=True, zero=False)
        store_finite(self, "ideality", positive=True, zero=False)
        store_finite(self, "series_ohm", positive=True)

    @property
    def parameters(self) -> str:
        values = (("IS", self.saturation_amperes), ("N", self.ideality), ("RS", self.series_ohm))
        return f"D({' '.join(f'{name}={number(value)}' for name, value in values)})"


@dataclass(frozen=True)
class OperatingPoint:
    """The DC solution: capacitors open, waveforms at 0 s."""

    card: ClassVar[str] = ".op"


@dataclass(frozen=True)
class TransientAnalysis:
    """From 0 s to `stop_seconds` in steps of at most `max_step_seconds`; `step_seconds` is the first guess.

    With `use_initial_conditions` it starts from the voltages given, 0 V elsewhere; without, from the
    operating point.
    """

    step_seconds: float
    stop_seconds: float
    max_step_seconds: float
    use_initial_conditions: bool = True

    def __post_init__(self) -> None:
        for name in ("step_seconds", "stop_seconds", "max_step_seconds"):
            store_finite(self, name, positive=True, zero=False)

    @property
    def card(self) -> str:
        step, stop, largest = map(number, (self.step_seconds, self.stop_seconds, self.max_step_seconds))
        return f".tran {step} {stop} 0 {largest}{' UIC' if self.use_initial_conditions else ''}"

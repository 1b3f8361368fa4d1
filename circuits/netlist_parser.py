"""Reads the decks that `circuits.netlist.write` writes, and the same dialect by other hands.

First line: the title. Then, without regard to case: elements R C D V I E F G X and, of B, the `Rectifier` only;
.model NAME D(IS= N= RS=); .subckt and .ends; .options NAME=VALUE; .ic V(NODE)=VALUE; .op or .tran STEP STOP 0
LARGEST [UIC]; .save ALL or V(NODE); .end last. Comments start with "*", or with ";" behind a card; "+" goes on with
the line before. Numbers may end in f p n u m k meg g t and a unit: 10pF, 2.2kohm; 1f is a femto, as in every SPICE.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal

from circuits.netlist import (
    CCCS,
    PWL,
    VCCS,
    VCVS,
    Capacitor,
    CurrentSource,
    Diode,
    DiodeModel,
    Element,
    Instance,
    Netlist,
    OperatingPoint,
    Rectifier,
    Resistor,
    Subcircuit,
    TransientAnalysis,
    VoltageSource,
)

SCALES = {"f": -15, "p": -12, "n": -9, "u": -6, "m": -3, "k": 3, "meg": 6, "g": 9, "t": 12, "": 0}
NUMBER = re.compile(
    r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(?:(meg|[fpnumkgt])(?:ohms?|[fvas])?|ohms?|[vs])?"
)


def parse(text: str) -> Netlist:
    """The netlist of a deck. Raises ValueError with the line's number for all that is outside the dialect."""
    title, *lines = text.split("\n")
    reader = _Reader()
    for line, card in _cards(lines):
        try:
            reader.read(card)
        except ValueError as error:
            raise ValueError(f"line {line}: {error}") from error
    return reader.netlist(title.strip())


def parse_number(word: str) -> float:
    """The float64 nearest to a SPICE number: "2.2k", "10pF", "1e-9", "3meg"."""
    match = NUMBER.fullmatch(word.lower())
    if not match:
        raise ValueError(f"{word!r} is no number; write digits, then one of f p n u m k meg g t or nothing")
    return float(Decimal(match[1]).scaleb(SCALES[match[2] or ""]))  # rounded once, so that 10p is 1e-11


def _cards(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Cards in lower case, whole and without comments, with the number of the line that each starts in."""
    start, card = 0, ""
    for line, text in enumerate(lines, start=2):
        text = "" if text.lstrip().startswith("*") else text.split(";")[0].strip().lower()
        if text.startswith("+"):
            if not card:
                raise ValueError(f"line {line}: nothing to go on with before this '+'")
            card += f" {text[1:]}"
        elif text:
            if card:
                yield start, card
            start, card = line, text
    if card:
        yield start, card


def _words(card: str) -> list[str]:
    """A card's words, NAME=VALUE being one; brackets and commas only separate."""
    return re.sub(r"\s*=\s*", "=", re.sub(r"[(),]", " ", card)).split()


def _take(words: list[str], count: int, form: str) -> list[str]:
    if len(words) != count:
        raise ValueError(f"{' '.join(words)!r} does not read {form!r}")
    return words


def _settings(words: list[str], form: str) -> dict[str, float]:
    """NAME=VALUE words as numbers by name."""
    values: dict[str, float] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name in values:
            raise ValueError(f"{word!r} does not read {form!r}, or comes twice")
        values[name] = parse_number(value)
    return values


def _resistor(words: list[str]) -> Element:
    name, a, b, ohm = _take(words, 4, "Rname a b ohm")
    return Resistor(name, a, b, parse_number(ohm))


def _capacitor(words: list[str]) -> Element:
    form = "Cname a b farad [IC=volts]"
    name, a, b, farad = _take(words[:4], 4, form)
    initial = _settings(words[4:], form)
    if initial.keys() - {"ic"}:
        raise ValueError(f"{' '.join(words)!r} does not read {form!r}")
    return Capacitor(name, a, b, parse_number(farad), initial.get("ic"))


def _diode(words: list[str]) -> Element:
    return Diode(*_take(words, 4, "Dname anode cathode model"))


def _rectifier(words: list[str]) -> Element:
    form = "Bname anode cathode I=v(anode,cathode)>0?on*v(anode,cathode):off*v(anode,cathode)"
    pattern = r"(\w+) (\w+) (\w+) i=v \2 \3 ?> ?0 ?\? ?(\S+?) ?\* ?v \2 \3 ?: ?(\S+?) ?\* ?v \2 \3"
    match = re.fullmatch(pattern, " ".join(words))
    if not match:
        raise ValueError(f"{words[0]} does not read {form!r}")
    return Rectifier(*match.group(1, 2, 3), *map(parse_number, match.group(4, 5)))


def _source(kind: Callable[..., Element]) -> Callable[[list[str]], Element]:
    def read(words: list[str]) -> Element:
        name, plus, minus, *value = words if len(words) > 3 else _take(words, 4, "name plus minus value")
        if value[0] == "pwl":
            numbers = [parse_number(word) for word in value[1:]]
            if len(numbers) % 2:
                raise ValueError(f"{name}: PWL holds {len(numbers)} numbers; give pairs of seconds and value")
            return kind(name, plus, minus, PWL(tuple(zip(numbers[::2], numbers[1::2], strict=True))))
        (constant,) = _take(value[1:] if value[0] == "dc" else value, 1, "DC value")
        return kind(name, plus, minus, parse_number(constant))

    return read


def _voltage_controlled(kind: Callable[..., Element]) -> Callable[[list[str]], Element]:
    def read(words: list[str]) -> Element:
        *names, value = _take(words, 6, "name plus minus control_plus control_minus value")
        return kind(*names, parse_number(value))

    return read


def _current_controlled(words: list[str]) -> Element:
    *names, gain = _take(words, 5, "Fname plus minus source gain")
    return CCCS(*names, parse_number(gain))


def _instance(words: list[str]) -> Element:
    if len(words) < 3:
        _take(words, 3, "Xname nodes subcircuit")
    return Instance(words[0], tuple(words[1:-1]), words[-1])


ELEMENTS: dict[str, Callable[[list[str]], Element]] = {
    "r": _resistor,
    "c": _capacitor,
    "d": _diode,
    "b": _rectifier,
    "v": _source(VoltageSource),
    "i": _source(CurrentSource),
    "e": _voltage_controlled(VCVS),
    "g": _voltage_controlled(VCCS),
    "f": _current_controlled,
    "x": _instance,
}


class _Reader:
    """What has been read so far, card by card."""

    def __init__(self) -> None:
        self.elements: list[Element] = []
        self.subcircuits: list[Subcircuit] = []
        self.models: list[DiodeModel] = []
        self.options: dict[str, float] = {}
        self.initial_volts: dict[str, float] = {}
        self.saved: list[str] | None = None
        self.analysis: OperatingPoint | TransientAnalysis | None = None
        self.open: tuple[str, tuple[str, ...], list[Element]] | None = None  # the subcircuit being read
        self.ended = False

    def read(self, card: str) -> None:
        if self.ended:
            raise ValueError(f"{card!r} follows .end")
        head = card.split()[0]
        if not head.startswith("."):
            if head[0] not in ELEMENTS:
                raise ValueError(f"{head}: no element of this dialect, which has {' '.join(ELEMENTS)}")
            (self.open[2] if self.open else self.elements).append(ELEMENTS[head[0]](_words(card)))
        elif self.open and head != ".ends":
            raise ValueError(
                f"{head} within subcircuit {self.open[0]}; only elements belong there, up to .ends"
            )
        elif head not in self.COMMANDS:
            raise ValueError(f"{head}: no card of this dialect, which has {' '.join(self.COMMANDS)}")
        else:
            self.COMMANDS[head](self, card[len(head) :])

    def _subckt(self, rest: str) -> None:
        name, *ports = _words(rest) or _take([], 1, ".subckt name ports")
        self.open = (name, tuple(ports), [])

    def _ends(self, rest: str) -> None:
        if not self.open or _words(rest) not in ([], [self.open[0]]):
            raise ValueError(f".ends{rest} closes no subcircuit of that name")
        self.subcircuits.append(Subcircuit(self.open[0], self.open[1], tuple(self.open[2])))
        self.open = None

    def _model(self, rest: str) -> None:
        form = ".model name D(IS= N= RS=)"
        name, kind, *words = _words(rest) if len(_words(rest)) > 1 else _take(_words(rest), 2, form)
        values = _settings(words, form)
        if kind != "d" or values.keys() - {"is", "n", "rs"}:
            raise ValueError(f"{kind} {' '.join(words)!r} does not read {form!r}")
        # what SPICE takes where a parameter is not given
        self.models.append(
            DiodeModel(name, values.get("is", 1e-14), values.get("n", 1.0), values.get("rs", 0.0))
        )

    def _options(self, rest: str) -> None:
        self.options |= _settings(_words(rest), ".options name=value")

    def _ic(self, rest: str) -> None:
        pattern = r"v\s*\(\s*([^\s()]+)\s*\)\s*=\s*([^\s()=]+)\s*"
        if re.sub(pattern, "", rest).strip():
            raise ValueError(f".ic{rest} does not read '.ic V(node)=volts'")
        self.initial_volts |= {node: parse_number(value) for node, value in re.findall(pattern, rest)}

    def _save(self, rest: str) -> None:
        pattern = r"v\s*\(\s*([^\s()]+)\s*\)\s*"
        if rest.strip() == "all":
            self.saved = None
        elif re.sub(pattern, "", rest).strip():
            raise ValueError(f".save{rest} does not read '.save all' or '.save V(node)'")
        else:
            self.saved = [*(self.saved or ()), *re.findall(pattern, rest)]

    def _op(self, rest: str) -> None:
        _take(_words(rest), 0, ".op")
        self._ask(OperatingPoint())

    def _tran(self, rest: str) -> None:
        form = ".tran step stop 0 largest [UIC]"
        words = _words(rest)
        uic = words[-1:] == ["uic"]
        step, stop, start, largest = map(parse_number, _take(words[:-1] if uic else words, 4, form))
        if start != 0:
            raise ValueError(f".tran{rest} keeps points from {start} s on; this dialect keeps all, from 0")
        self._ask(TransientAnalysis(step, stop, largest, uic))

    def _ask(self, analysis: OperatingPoint | TransientAnalysis) -> None:
        if self.analysis is not None:
            raise ValueError("a second analysis; give one .op or .tran a deck")
        self.analysis = analysis

    def _end(self, rest: str) -> None:
        _take(_words(rest), 0, ".end")
        self.ended = True

    COMMANDS = {  # noqa: RUF012 - a table of functions, which nobody changes
        ".subckt": _subckt,
        ".ends": _ends,
        ".model": _model,
        ".options": _options,
        ".ic": _ic,
        ".save": _save,
        ".op": _op,
        ".tran": _tran,
        ".end": _end,
    }

    def netlist(self, title: str) -> Netlist:
        if self.open:
            raise ValueError(f"subcircuit {self.open[0]} is not closed; add .ends")
        if not self.ended or self.analysis is None:
            raise ValueError(f"the deck lacks {'.op or .tran' if self.ended else '.end'}")
        return Netlist(
            title=title,
            elements=tuple(self.elements),
            subcircuits=tuple(self.subcircuits),
            models=tuple(self.models),
            options=self.options,
            analysis=self.analysis,
            initial_volts=self.initial_volts,
            saved=None if self.saved is None else tuple(self.saved),
        )

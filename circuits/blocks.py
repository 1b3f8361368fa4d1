"""A model cut into blocks: block i predicts state i from the state below, and from an earlier one it skips from.

Cuts are after every activation and before every weight, so that a weight sees the states at its two ends. What
follows an activation (pooling, normalisation, dropout) belongs to the next block: a kinked unit has its own state,
which can be held in the activation's range (see `circuits.feedforward`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from circuits.activations import Activation, from_module
from circuits.convolution import AveragePool, Convolution, GlobalAveragePool, MaxPool
from circuits.maps import BatchNormalise, Dense, Elementwise, Flatten, LayerNormalise, Lookup, Map, Mask
from circuits.residual import Residual

INPUT = -1  # the index of x among the states
SUPPORTED = (
    "Linear, Conv2d, Embedding (first), Residual, BatchNorm1d/2d, LayerNorm, AvgPool2d, AdaptiveAvgPool2d(1), "
    "MaxPool2d, Flatten, Dropout, Identity, ReLU, Tanh, Sigmoid, Hardsigmoid, Softplus, GELU"
)


@dataclass(frozen=True)
class Site:
    """A module and its dotted name in the circuit."""

    name: str
    module: nn.Module

    @property
    def phi(self) -> Activation | None:
        return from_module(self.module)

    @property
    def has_weight(self) -> bool:
        return isinstance(self.module, nn.Linear | nn.Conv2d)

    @property
    def mask(self) -> str:
        """The name a dropout mask has among the parameters."""
        return f"{self.name}.mask"

    def __str__(self) -> str:
        return f"module {self.name.removeprefix('model.')} ({type(self.module).__name__})"

    def bind(self, params: Mapping[str, Tensor]) -> Map | None:
        """The map this module computes with `params`; None where it changes nothing while settling."""
        m = self.module
        if (phi := self.phi) is not None:
            return Elementwise(phi)
        if isinstance(m, nn.Dropout):
            return Mask(params[self.mask]) if self.mask in params else None
        if isinstance(m, nn.Flatten):
            return Flatten()
        if isinstance(m, nn.MaxPool2d):
            return MaxPool(m)
        if isinstance(m, nn.AvgPool2d):
            return AveragePool(m)
        if isinstance(m, nn.AdaptiveAvgPool2d):
            return GlobalAveragePool()
        kinds = {
            nn.Linear: Dense,
            nn.Conv2d: Convolution,
            nn.Embedding: Lookup,
            nn.BatchNorm1d: BatchNormalise,
            nn.BatchNorm2d: BatchNormalise,
            nn.LayerNorm: LayerNormalise,
        }
        return kinds[type(m)](self.name, m, params)

    def complaint(self) -> str | None:
        """Why this module cannot be part of an energy, and what to do; None where it can."""
        m = self.module
        if isinstance(getattr(m, "weight", None), Tensor) and "weight" not in m._parameters:
            return "computes its weight from others (pruning, weight_norm); make that permanent first"
        if isinstance(m, nn.Conv2d) and (m.padding_mode != "zeros" or isinstance(m.padding, str)):
            return f"pads by {m.padding_mode}, {m.padding}; use zero padding of a given width"
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and not m.track_running_stats:
            return "has no running statistics to freeze while settling; leave track_running_stats on"
        if isinstance(m, nn.Embedding) and (m.max_norm is not None or m.scale_grad_by_freq or m.sparse):
            return "uses max_norm, scale_grad_by_freq or sparse; leave them out"
        if isinstance(m, nn.AvgPool2d) and (m.ceil_mode or not m.count_include_pad or m.divisor_override):
            return "uses ceil_mode, divisor_override or excludes padding; leave them out"
        if isinstance(m, nn.MaxPool2d) and (m.ceil_mode or m.return_indices):
            return "uses ceil_mode or return_indices; leave them out"
        if isinstance(m, nn.AdaptiveAvgPool2d) and m.output_size not in (1, (1, 1)):
            return f"has output size {m.output_size}; use 1, or AvgPool2d"
        if isinstance(m, nn.Flatten) and (m.start_dim, m.end_dim) != (1, -1):
            return "flattens only some dimensions; use Flatten()"
        known = (
            nn.Linear, nn.Conv2d, nn.Embedding, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm,
            nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d, nn.Flatten, nn.Dropout,
        )  # fmt: skip
        if self.phi is None and type(m) not in known:  # a subclass may compute something else
            return f"has no energy here; build the model of {SUPPORTED}"
        return None


@dataclass(frozen=True)
class Plan:
    """The modules of one block: f = tail(head(state below) + shortcut(state `skip`))."""

    head: tuple[Site, ...]
    skip: int | None = None
    shortcut: tuple[Site, ...] = ()
    tail: tuple[Site, ...] = ()

    @property
    def sites(self) -> tuple[Site, ...]:
        return (*self.head, *self.shortcut, *self.tail)

    @property
    def phi(self) -> Activation | None:
        """The activation the block ends in."""
        last = self.tail if self.tail or self.skip is not None else self.head
        return last[-1].phi if last else None

    def bind(self, params: Mapping[str, Tensor]) -> Block:
        head, shortcut, tail = (
            Chain([m for site in sites if (m := site.bind(params)) is not None])
            for sites in (self.head, self.shortcut, self.tail)
        )
        return Block(head, self.skip, shortcut, tail)


class Tape:
    """What each map of a chain had at its input: `base[k]`, plus `delta[k]` in deviations."""

    __slots__ = ("base", "delta")

    def __init__(self, base: Sequence[Tensor], delta: Sequence[Tensor] | None = None):
        self.base, self.delta = base, delta

    def at(self, k: int) -> Tensor:
        return self.base[k] if self.delta is None else self.base[k] + self.delta[k]

    def seen_by(self, m: Map, k: int) -> Tensor:
        """The input of map k as far as its Jacobian cares: an affine one has the same everywhere."""
        return self.base[k] if m.affine else self.at(k)


class Chain:
    """Maps in sequence."""

    def __init__(self, maps: Sequence[Map]):
        self.maps = maps
        learning = [k for k, m in enumerate(maps) if m.parameters]
        self.lowest = learning[0] if learning else len(maps)

    def run(self, x: Tensor) -> tuple[Tape, Tensor]:
        inputs = []
        for m in self.maps:
            inputs.append(x)
            x = m.value(x)
        return Tape(inputs), x

    def around(self, tape: Tape) -> Chain:
        """The chain that stands in for this one in deviations from the inputs on the tape."""
        return Chain([m.around(x) for m, x in zip(self.maps, tape.base, strict=True)])

    def move(self, base: Tape, d: Tensor | None) -> tuple[Tape, Tensor | None]:
        """The exact change of the output for a change d of the input; None is no change."""
        if d is None:
            return base, None
        deltas = []
        for k, m in enumerate(self.maps):
            deltas.append(d)
            d = m.difference(base.base[k], d)
        return Tape(base.base, deltas), d

    def push(self, tape: Tape, d: Tensor | None) -> Tensor | None:
        """J d."""
        if d is not None:
            for k, m in enumerate(self.maps):
                d = m.push(tape.seen_by(m, k), d)
        return d

    def pull(self, tape: Tape, e: Tensor) -> Tensor:
        """J' e."""
        for k in range(len(self.maps) - 1, -1, -1):
            e = self.maps[k].pull(tape.seen_by(self.maps[k], k), e)
        return e

    def errors(self, tape: Tape, e: Tensor) -> list[tuple[Map, Tensor, Tensor]]:
        """(map, its input, the error at its output) of every map that learns, top to bottom."""
        found = []
        for k in range(len(self.maps) - 1, self.lowest - 1, -1):
            m = self.maps[k]
            if m.parameters:
                found.append((m, tape.at(k), e))
            if k > self.lowest:
                e = m.pull(tape.seen_by(m, k), e)
        return found

    def norm(self, tape: Tape) -> float:
        """A bound of |J| at the inputs on the tape."""
        norm = 1.0
        for k, m in enumerate(self.maps):
            norm *= m.norm(tape.at(k))
        return norm


Tapes = tuple[Tape, Tape | None, Tape]  # of head, shortcut and tail


class Block:
    """A bound block; inputs are (state below, state skipped from)."""

    def __init__(self, head: Chain, skip: int | None, shortcut: Chain, tail: Chain):
        self.head, self.skip, self.shortcut, self.tail = head, skip, shortcut, tail

    def run(self, below: Tensor, skipped: Tensor | None) -> tuple[Tapes, Tensor]:
        head, y = self.head.run(below)
        shortcut = None
        if skipped is not None:
            shortcut, side = self.shortcut.run(skipped)
            y = y + side
        tail, y = self.tail.run(y)
        return (head, shortcut, tail), y

    def around(self, tapes: Tapes) -> Block:
        head, shortcut, tail = tapes
        beside = self.shortcut if shortcut is None else self.shortcut.around(shortcut)
        return Block(self.head.around(head), self.skip, beside, self.tail.around(tail))

    def move(self, base: Tapes, below: Tensor | None, skipped: Tensor | None) -> tuple[Tapes, Tensor | None]:
        """The change of the prediction for changes of the inputs; None is no change."""
        head, d = self.head.move(base[0], below)
        shortcut = base[1]
        if shortcut is not None:
            shortcut, side = self.shortcut.move(shortcut, skipped)
            d = _sum(d, side)
        tail, d = self.tail.move(base[2], d)
        return (head, shortcut, tail), d

    def bend(self, tapes: Tapes) -> Tensor:
        """The input of the last map, in the solver's coordinates."""
        tape = tapes[2] if self.tail.maps else tapes[0]
        return (tape.base if tape.delta is None else tape.delta)[-1]

    def bent(self, tapes: Tapes, at: Tensor) -> tuple[Tapes, Tensor]:
        """Tapes with another input of the last map, and the prediction from it."""
        head, shortcut, tail = tapes
        chain, tape = (self.tail, tail) if self.tail.maps else (self.head, head)
        if tape.delta is None:
            changed, f = Tape([*tape.base[:-1], at]), chain.maps[-1].value(at)
        else:
            changed = Tape(tape.base, [*tape.delta[:-1], at])
            f = chain.maps[-1].difference(tape.base[-1], at)
        return (head, shortcut, changed) if self.tail.maps else (changed, shortcut, tail), f

    def push(self, tapes: Tapes, below: Tensor | None, skipped: Tensor | None) -> Tensor | None:
        """J d of both inputs."""
        d = self.head.push(tapes[0], below)
        if tapes[1] is not None:
            d = _sum(d, self.shortcut.push(tapes[1], skipped))
        return self.tail.push(tapes[2], d)

    def pull(self, tapes: Tapes, e: Tensor) -> tuple[Tensor, Tensor | None]:
        """J' e for the state below and the state skipped from."""
        e = self.tail.pull(tapes[2], e)
        skipped = None if tapes[1] is None else self.shortcut.pull(tapes[1], e)
        return self.head.pull(tapes[0], e), skipped

    def errors(self, tapes: Tapes, e: Tensor) -> list[tuple[Map, Tensor, Tensor]]:
        """(map, its input, the error at its output) of everything that learns here, from the block's error."""
        found = self.tail.errors(tapes[2], e)
        e = self.tail.pull(tapes[2], e)
        if tapes[1] is not None:
            found += self.shortcut.errors(tapes[1], e)
        return found + self.head.errors(tapes[0], e)

    @property
    def observes(self) -> bool:
        return any(m.observes for chain in (self.head, self.shortcut, self.tail) for m in chain.maps)

    def observe(self, tapes: Tapes) -> None:
        """See a settled free phase in training."""
        for chain, tape in zip((self.head, self.shortcut, self.tail), tapes, strict=True):
            for k, m in enumerate(chain.maps):
                if m.observes:
                    m.observe(tape.base[k])

    def norms(self, tapes: Tapes) -> tuple[float, float]:
        """Bounds of the Jacobians in the state below and in the state skipped from."""
        above = self.tail.norm(tapes[2])
        beside = 0.0 if tapes[1] is None else self.shortcut.norm(tapes[1])
        return above * self.head.norm(tapes[0]), above * beside


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def parse(model: nn.Sequential, name: str = "model") -> tuple[Plan, ...]:
    """Cut a model into blocks; ValueError names a module that has no energy and says what to do."""
    parser = _Parser()
    parser.walk(model, name)
    plans = parser.finish()
    sites = [site for plan in plans for site in plan.sites]
    if not any(site.has_weight for site in sites):
        raise ValueError("the model has no Linear or Conv2d layer; an energy circuit needs at least one")
    owner: dict[nn.Parameter, Site] = {}
    for site in sites:
        for p in site.module.parameters(recurse=False):
            if owner.setdefault(p, site) is not site:
                raise ValueError(f"{site} shares a parameter with {owner[p]}; give each of them its own")
    if (phi := plans[-1].phi) is not None:
        raise ValueError(
            f"the output layer ends in {phi.name}; leave it linear, the cost applies its own softmax"
        )
    return plans


@dataclass
class _Parser:
    """Closed blocks, and the one that is open."""

    closed: list[Plan] = field(default_factory=list)
    head: list[Site] = field(default_factory=list)
    tail: list[Site] | None = None  # None until something is skipped to here
    skip: int | None = None
    shortcut: tuple[Site, ...] = ()

    @property
    def is_open(self) -> bool:
        return bool(self.head) or self.tail is not None

    def walk(self, module: nn.Module, name: str) -> None:
        forward = type(module).forward  # of a subclass, unless it computes something else
        if forward is nn.Sequential.forward:
            for child, part in module._modules.items():  # named_children() leaves repeated ones out
                self.walk(part, f"{name}.{child}")
        elif forward is Residual.forward:
            self._residual(module, name)
        elif type(module) is not nn.Identity:
            self._append(Site(name, module))

    def _append(self, site: Site) -> None:
        if (complaint := site.complaint()) is not None:
            raise ValueError(f"{site} {complaint}")
        is_lookup = isinstance(site.module, nn.Embedding)
        if is_lookup and (self.closed or self.is_open):
            raise ValueError(f"{site} is not at the input; only the first module can look up indices")
        if site.has_weight and (self.tail is not None or any(s.has_weight for s in self.head)):
            self._close()
        (self.head if self.tail is None else self.tail).append(site)
        if site.phi is not None or is_lookup:
            self._close()

    def _residual(self, module: Residual, name: str) -> None:
        if any(isinstance(m, nn.Embedding) for m in module.modules()):
            raise ValueError(
                f"{Site(name, module)} looks up indices; put Embedding before it, as the first module"
            )
        if self.is_open:
            self._close()
        source, before = len(self.closed) - 1, len(self.closed)
        shortcut = _Parser()
        shortcut.walk(module.shortcut, f"{name}.shortcut")
        if shortcut.closed or shortcut.tail is not None:
            raise ValueError(
                f"the shortcut of module {name.removeprefix('model.')} must be linear, one layer at most"
            )
        self.walk(module.body, f"{name}.body")
        if self.tail is not None:  # the body ends in a residual block of its own
            self._close()
        if not self.head and len(self.closed) > before:
            last = self.closed[-1]
            if last.skip is None and not last.phi.is_kinked:
                self.head = list(self.closed.pop().head)  # a smooth activation needs no state of its own
        self.skip, self.shortcut, self.tail = source, tuple(shortcut.head), []

    def _close(self) -> None:
        self.closed.append(Plan(tuple(self.head), self.skip, self.shortcut, tuple(self.tail or ())))
        self.head, self.tail, self.skip, self.shortcut = [], None, None, ()

    def finish(self) -> tuple[Plan, ...]:
        if self.is_open:
            self._close()
        if not self.closed:
            raise ValueError("the model is empty; an energy circuit needs at least one layer")
        return tuple(self.closed)

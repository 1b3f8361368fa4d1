"""The MEP energy on a feedforward network: E = 1/2 sum_i |s_i - f_i(s_{i-1})|^2 (+ beta C at the output).

f_i is a block of modules that predicts state i from the one below (`circuits.blocks`), s_0 = x. The errors
e_i = s_i - f_i(s_{i-1}) are the prediction errors of predictive coding (Whittington & Bogacz 2017, eq. 2.7);
the free equilibrium is the forward pass, e = 0.

A kink needs care. With ReLU and two or more hidden layers, a unit whose pre-activation is pushed through
zero by a negative error has no resting point: the force jumps, the state slides along the kink for ever
and the residual floors. Holding the states where ReLU can put them, s >= 0, removes it: the error that
pushed is then clamped to zero exactly where the slope vanishes. `constrain=False` gives plain ReLU back.
The price: an inactive unit can rise under beta and cannot sink under -beta, so that the centred estimate is of first
order in beta, as the one-sided one is. Smooth activations have neither trouble.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from circuits.acceleration import Anderson, Secant, UnitSecant, largest_eigenvalue
from circuits.base import Equilibrium, Layout, Pairs, Params, System
from circuits.blocks import INPUT, Block, Tapes
from circuits.costs import Cost
from circuits.norms import block_norm

if TYPE_CHECKING:
    from circuits.feedforward import FeedforwardCircuit

SECANT_SWEEPS = 80  # most nets need less than 6; a thousand layers, at a hundred times the bound, 62


class FeedforwardSystem(System):
    """The MEP energy bound to parameters and an input; see `circuits.base.System`."""

    def __init__(self, circuit: FeedforwardCircuit, layout: Layout, params: Params, x: Tensor):
        self.circuit, self.params, self.x = circuit, params, x
        self.plain: list[Block] = [plan.bind(params) for plan in circuit.plans]
        self.blocks = self.plain
        # the first prediction depends on the input alone
        skipped = None if self.blocks[0].skip is None else x
        self.fixed: tuple[Tapes, Tensor] = self.blocks[0].run(x, skipped)
        held = [plan.phi if circuit.constrain else None for plan in circuit.plans]
        ranges = [(-math.inf, math.inf) if phi is None else (phi.lower, phi.upper) for phi in held]
        super().__init__(layout, self.fixed[1].flatten(1), ranges)
        # Around a free state the tapes are the free ones, and a prediction counts from its free value.
        self.settled: list[Tapes] | None = None
        self.walls = self._walls()
        self._norms: list[tuple[float, float]] = []
        self._start: Tensor | None = None
        self._last: tuple | None = None  # (z, its version, tapes, errors)

    def rebind(self, params: Params) -> FeedforwardSystem:
        return self.circuit.bind({**self.params, **params}, self.x)

    def observe(self, free: Equilibrium) -> None:
        if any(block.observes for block in self.plain):
            tapes = self._errors(free.state)[0] if self.settled is None else self.settled
            for block, tape in zip(self.plain, tapes, strict=True):
                block.observe(tape)

    def _recentre(self, free: Tensor) -> None:
        if self.origin is not None:  # they count from another origin
            self.blocks, self.settled, self.origin, self._last = self.plain, None, None, None
        self.settled, _ = self._errors(free)
        self.blocks = [block.around(tapes) for block, tapes in zip(self.plain, self.settled, strict=True)]
        self.origin = free
        self.walls = self._walls()
        self._start = torch.zeros_like(free)
        self._keep(self._start, self.settled, None)

    def initial_state(self) -> Tensor:
        return super().initial_state() if self._start is None else self._start

    # -- coordinates ------------------------------------------------------------------------------

    def _views(self, z: Tensor) -> list[Tensor]:
        """The layers in their own shapes."""
        parts = zip(self.layout.split(z), self.layout.shapes, strict=True)
        return [part.view(len(part), *shape) for part, shape in parts]

    def _walls(self) -> list[tuple[Tensor | float | None, ...] | None]:
        """The ends of each held layer's range in the solver's coordinates (None: open), or None for a free layer."""
        origins = [0.0] * len(self.ranges) if self.origin is None else self._views(self.origin)
        return [
            tuple(end - origin if math.isfinite(end) else None for end in ends)
            if any(map(math.isfinite, ends))
            else None
            for ends, origin in zip(self.ranges, origins, strict=True)
        ]

    def _room(self, i: int, f: Tensor) -> tuple[Tensor | None, ...] | None:
        """The least and the largest error layer i may have when it is predicted at f; None where any."""
        wall = self.walls[i]
        return None if wall is None else tuple(None if end is None else end - f for end in wall)

    # -- energy and force -------------------------------------------------------------------------

    def _predict(self, i: int, layers: Sequence[Tensor]) -> tuple[Tapes, Tensor]:
        """Tapes and prediction f_i of layer i in the solver's coordinates."""
        block = self.blocks[i]
        if i == 0:
            return self.fixed if self.settled is None else (self.settled[0], torch.zeros_like(self.fixed[1]))
        skipped = None if block.skip in (None, INPUT) else layers[block.skip]
        if self.settled is not None:
            return block.move(self.settled[i], layers[i - 1], skipped)
        return block.run(layers[i - 1], self.x if block.skip == INPUT else skipped)

    def _errors(self, z: Tensor) -> tuple[list[Tapes], list[Tensor]]:
        """Tapes and errors e_i of every layer.

        Those of the last z are kept: an equilibrium is asked for its residual, contrast and energy, and a
        free one becomes an origin. Not with autograd on, where a result belongs to its graph.
        """
        if torch.is_grad_enabled() or z.is_inference():
            return self._compute_errors(z)
        if not self._knows(z):
            self._keep(z, *self._compute_errors(z))
        tapes, errors = self._last[2:]
        return tapes, [torch.zeros_like(s) for s in self._views(z)] if errors is None else errors

    def _keep(self, z: Tensor, tapes: list[Tapes], errors: list[Tensor] | None) -> None:
        """Remember these of z; None are errors of exactly zero. Sweeps hold errors as numbers of their own: in a
        deep net the difference of a state and its prediction would leave little of them."""
        if not (torch.is_grad_enabled() or z.is_inference()):
            self._last = (z, z._version, tapes, errors)

    def _knows(self, z: Tensor) -> bool:
        return self._last is not None and self._last[0] is z and self._last[1] == z._version

    def _is_forward(self, z: Tensor) -> bool:
        """Whether z is the forward pass of a free system, where energy and force are zero."""
        return self.nudge is None and self._knows(z) and self._last[3] is None and not torch.is_grad_enabled()

    def _compute_errors(self, z: Tensor) -> tuple[list[Tapes], list[Tensor]]:
        layers = self._views(z)
        predictions = [self._predict(i, layers) for i in range(len(layers))]
        return [tapes for tapes, _ in predictions], [
            s - f for s, (_, f) in zip(layers, predictions, strict=True)
        ]

    def energy(self, z: Tensor) -> Tensor:
        if self._is_forward(z):
            return self.drive.real.new_zeros(len(z))
        _, errors = self._errors(z)
        energy = 0.5 * sum(e.square().flatten(1).sum(1) for e in errors)
        if self.nudge is not None:
            energy = energy + self.nudge.beta * self.nudge.cost.value(self.readout(z), self.nudge.target)
        return energy

    def force(self, z: Tensor) -> Tensor:
        return _flat(self._forces(z))

    def _forces(self, z: Tensor) -> list[Tensor]:
        tapes, errors = self._errors(z)
        top = torch.zeros_like(errors[-1]) if self.nudge is None else self.nudge.force(self.readout(z))
        pulls = self._pull_down(tapes, top, lambda i, _: errors[i])
        return [pull - e for pull, e in zip(pulls, errors, strict=True)]

    def residual(self, z: Tensor) -> Tensor:
        if self._is_forward(z):
            return self.drive.real.new_zeros(len(z))
        flows = [
            _held(force, self._room(i, layer))
            for i, (force, layer) in enumerate(zip(self._forces(z), self._views(z), strict=True))
        ]
        return torch.stack([flow.flatten(1).abs().amax(1) for flow in flows]).amax(0)

    def scale(self, z: Tensor) -> Tensor:
        """Nudged, max |e|: the contrast is made of errors, and a deep net moves its output up to `amplification`
        times as far as its errors, so that a force small against that could be all of an error."""
        if self.origin is None or self.nudge is None:
            return super().scale(z)
        _, errors = self._errors(z)
        return torch.stack([e.flatten(1).abs().amax(1) for e in errors]).amax(0)

    def _pull_down(
        self, tapes: Sequence[Tapes], top: Tensor, send: Callable[[int, Tensor], Tensor] | None = None
    ) -> list[Tensor]:
        """What pulls on every layer, top to bottom: `top` on the output, below J' e of the blocks that read the layer.

        e_i = send(i, the pull on layer i), or that pull itself.
        """
        pulls: list[Tensor | None] = [*[None] * (len(tapes) - 1), top]

        def add(i: int, pull: Tensor) -> None:
            pulls[i] = pull if pulls[i] is None else pulls[i] + pull

        for i in range(len(tapes) - 1, 0, -1):
            error = pulls[i] if send is None else send(i, pulls[i])
            below, skipped = self.blocks[i].pull(tapes[i], error)
            add(i - 1, below)
            if skipped is not None and self.blocks[i].skip != INPUT:
                add(self.blocks[i].skip, skipped)
        return pulls

    # -- sweeps -----------------------------------------------------------------------------------

    def sweeps(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Free: the forward pass, exact at once. Nudged: errors down, states up, output relaxed.

        With the slopes held, one sweep maps the output error e_L to G(e_L), everything below follows from it,
        and G contracts where beta C'' sum_l |J_{l->L}|^2 < 1 + beta C''. A damped secant step per sample speeds
        that up and converges beyond. The slopes are those of the pre-activations of the last sweep. A
        unit pressed against its wall answers to itself there: its error is what its pre-activation exceeds the wall
        by, and pulls on just this pre-activation; undamped it would flip for ever. So the point at which a
        kinked block is linearised follows the pre-activations by a secant step of its own for every unit.

        Where slopes change much with the nudge (deep nets, normalised layers) that is too simple a picture. What is
        left after many sweeps is one fixed point for all errors together, and solved as that by Anderson's method.
        """
        if self.nudge is None:
            tapes, layers = self._run()
            z = _flat(layers)
            self._keep(z, tapes, None)
            while True:
                yield z, self.drive.real.new_zeros(len(self.drive))
        yield from itertools.islice(self._secant_sweeps(z), SECANT_SWEEPS)
        yield from self._anderson_sweeps(z)  # from z anew: secants that fail leave it far away

    def _secant_sweeps(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        coupling = Secant()
        bends = {i: UnitSecant() for i, wall in enumerate(self.walls) if i and wall is not None}
        tapes, _, rooms, output = self._relaxed(z)
        while True:
            pulls = self._pull_down(tapes, output, lambda i, pull, rooms=rooms: _held(pull, rooms[i]))
            tapes, predictions, rooms, errors = self._push_up(pulls)
            z = _flat([f + e for f, e in zip(predictions, errors, strict=True)])
            self._keep(z, tapes, errors)
            target = self._relax(predictions[-1], errors[-1])
            change = (target - output).abs().amax(1)
            output = coupling.next(output, target)
            tapes = list(tapes)  # those of z are kept as they are
            for i, bend in bends.items():
                seen = self.blocks[i].bend(tapes[i])
                at = bend.next(seen)
                change = torch.maximum(change, (at - seen).flatten(1).abs().amax(1))
                tapes[i], f = self.blocks[i].bent(tapes[i], at)
                rooms[i] = self._room(i, f)
            yield z, change

    def _anderson_sweeps(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        mixing = Anderson()
        while True:
            tapes, errors, rooms, output = self._relaxed(z)
            pulls = self._pull_down(tapes, output, lambda i, pull, rooms=rooms: _held(pull, rooms[i]))
            flat, image = _flat(errors), _flat(list(map(_held, pulls, rooms)))
            tapes, predictions, _, errors = self._push_up(self._views(mixing.next(flat, image)))
            z = _flat([f + e for f, e in zip(predictions, errors, strict=True)])
            self._keep(z, tapes, errors)
            yield z, (image - flat).abs().amax(1)

    def _relaxed(self, z: Tensor) -> tuple[list[Tapes], list[Tensor], list, Tensor]:
        """Tapes, errors and rooms at z, and the output's error once it is relaxed there."""
        tapes, errors = self._errors(z)
        predictions = [s - e for s, e in zip(self._views(z), errors, strict=True)]
        rooms = [self._room(i, f) for i, f in enumerate(predictions)]
        return tapes, errors, rooms, self._relax(predictions[-1], errors[-1])

    def _relax(self, f: Tensor, error: Tensor) -> Tensor:
        """The error with which the output, predicted at f, comes to rest under the nudge; `error` is a guess."""
        origin = 0.0 if self.origin is None else self.layout.output(self.origin)
        return self.nudge.cost.relax(f, origin, self.nudge.target, self.nudge.beta, f + error) - f

    def _run(self) -> tuple[list[Tapes], list[Tensor]]:
        """The forward pass: every state where it is predicted."""
        tapes, layers = [], []
        for i in range(len(self.blocks)):
            tape, f = self._predict(i, layers)
            tapes.append(tape)
            layers.append(f)
        return tapes, layers

    def _push_up(self, pulls: Sequence[Tensor]) -> tuple[list[Tapes], list[Tensor], list, list[Tensor]]:
        """Tapes, predictions, rooms and errors with those errors injected, bottom to top, each held in its range."""
        tapes, predictions, rooms, errors, layers = [], [], [], [], []
        for i, pull in enumerate(pulls):
            tape, f = self._predict(i, layers)
            tapes.append(tape)
            predictions.append(f)
            rooms.append(self._room(i, f))
            errors.append(_held(pull, rooms[i]))
            layers.append(f + errors[i])
        return tapes, predictions, rooms, errors

    # -- gradient ---------------------------------------------------------------------------------

    def contrast(self, free: Equilibrium, nudged: Equilibrium) -> Params:
        """-(phi'_i e_i) s_{i-1}^T / beta: the error of a layer times the activity below it.

        At the free state the errors, and with them its half of the contrast, are zero.
        """
        return gradient_of(self._layers(nudged), self._scale)

    def signals(self, nudged: Equilibrium) -> dict[str, tuple[Tensor, Tensor]]:
        """(post (R, n_l), pre (R, n_{l-1})) by weight name, a row per sample, and per position of a convolution:
        post' pre / B is that weight's contrast, post summed over its rows / B its bias's."""
        return self._signals_of(self._layers(nudged))

    def _signals_of(self, layers: Iterable[tuple[Block, Tapes, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}
        for block, tapes, error in layers:
            for m, x, e in block.errors(tapes, error * (-1.0 / self.nudge.beta)):
                if m.weight is not None:
                    found[m.weight] = m.rows(x, e)
        return found

    def factors(self, free: Equilibrium, nudged: Equilibrium) -> dict[str, Pairs]:
        return {name: (pair,) for name, pair in self.signals(nudged).items()}

    def one_sweep(self) -> Params:
        """The gradient after a single top-down sweep of errors from the free state: backprop, at any beta.

        Call it on a nudged system around a free equilibrium.
        """
        return gradient_of(self._swept(), self._scale)

    def one_sweep_factors(self) -> dict[str, Pairs]:
        """`factors` of `one_sweep`."""
        return {name: (pair,) for name, pair in self._signals_of(self._swept()).items()}

    def _swept(self) -> list[tuple[Block, Tapes, Tensor]]:
        top = self.nudge.force(self.readout(self.initial_state()))
        return list(zip(self.blocks, self.settled, self._pull_down(self.settled, top), strict=True))

    @property
    def _scale(self) -> float:
        return -1.0 / (self.nudge.beta * len(self.x))

    def _layers(self, at: Equilibrium) -> list[tuple[Block, Tapes, Tensor]]:
        z = at.state if self.origin is None else at.deviation
        return list(zip(self.blocks, *self._errors(z), strict=True))

    # -- bounds -----------------------------------------------------------------------------------

    def _slopes(self) -> list[tuple[float, float]]:
        """Bounds of the Jacobians of blocks 2 to L in the state below and in the one they skip from."""
        if not self._norms:
            tapes = self.settled or self._run()[0]
            self._norms += [b.norms(t) for b, t in zip(self.blocks[1:], tapes[1:], strict=True)]
        return self._norms

    def fastest_rate(self) -> float:
        """The Hessian is (I - J)^T (I - J) up to terms in e, with the norms of J's blocks below the diagonal."""
        blocks = np.eye(len(self.blocks))
        for i, (below, skipped) in enumerate(self._slopes(), start=1):
            blocks[i, i - 1] += below
            if (skip := self.blocks[i].skip) not in (None, INPUT):
                blocks[i, skip] += skipped
        return block_norm(blocks) ** 2 + (self.nudge.curvature if self.nudge else 0.0)

    def largest_beta(self, cost: Cost, enough: float = math.inf) -> float:
        """1 / (C'' lambda_max(I + sum_l J_{l->L} J_{l->L}^T)): beyond it E - beta C has no minimum.

        First from the norms of the weights; where that is not `enough`, measured for this batch.
        """
        reach = [0.0] * (len(self.blocks) - 1) + [1.0]  # of |J_{l->L}|, top to bottom
        for i in range(len(self.blocks) - 1, 0, -1):
            below, skipped = self._slopes()[i - 1]
            reach[i - 1] += below * reach[i]
            if (skip := self.blocks[i].skip) not in (None, INPUT):
                reach[skip] += skipped * reach[i]
        certified = 1 / (cost.curvature * sum(r * r for r in reach))
        if certified > enough or self.settled is None:
            return certified
        return 1 / (cost.curvature * self.amplification())

    def amplification(self) -> float:
        """lambda_max(I + sum_l J_{l->L} J_{l->L}^T) at the free state, the largest in the batch, by Lanczos: exact
        where the output has at most 12 units. Call it on a system around a free equilibrium."""
        return largest_eigenvalue(self._linear_sweep, self.readout(self.initial_state()))

    def _linear_sweep(self, v: Tensor) -> Tensor:
        """(I + sum_l J J^T) v, (B, C): errors v down and up again with the slopes of the free state."""
        pulls = self._pull_down(self.settled, v)
        moved: list[Tensor] = []
        for i, (block, tapes, pull) in enumerate(zip(self.blocks, self.settled, pulls, strict=True)):
            skipped = None if block.skip in (None, INPUT) else moved[block.skip]
            d = block.push(tapes, moved[-1], skipped) if i else None
            moved.append(pull if d is None else d + pull)
        return moved[-1]

    def margin(self, cost: Cost, beta: float) -> float:
        """1 - |beta| C'' lambda_max(I + sum_l J J^T): above 0 the nudge contracts, and -beta has a minimum."""
        return 1 - abs(beta) / self.largest_beta(cost, enough=abs(beta))


def _flat(layers: Sequence[Tensor]) -> Tensor:
    return torch.cat([layer.flatten(1) for layer in layers], dim=1)


def _held(error: Tensor, room: tuple[Tensor | None, ...] | None) -> Tensor:
    return error if room is None else torch.clamp(error, *room)


def gradient_of(layers: Iterable[tuple[Block, Tapes, Tensor]], scale: float) -> dict[str, Tensor]:
    """What the errors of these layers say about every parameter, times `scale`."""
    gradient: dict[str, Tensor] = {}
    for block, tapes, error in layers:
        for m, x, e in block.errors(tapes, error * scale):
            for name, part in m.local(x, e).items():
                gradient[name] = gradient[name] + part if name in gradient else part
    return gradient

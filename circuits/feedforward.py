"""The MEP energy on a feedforward network: E = 1/2 sum_i |s_i - f_i(s_{i-1})|^2 (+ beta C at the output).

f_i(s) = phi_i(W_i s + b_i), s_0 = x. The errors e_i = s_i - f_i(s_{i-1}) are the prediction errors of
predictive coding (Whittington & Bogacz 2017, eq. 2.7); the free equilibrium is the forward pass, e = 0.

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
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from circuits.activations import LINEAR, Activation, activation, as_module, from_module
from circuits.base import EnergyCircuit, Equilibrium, Layout, Params, System, block_norm, spectral_norm
from circuits.costs import Cost


class FeedforwardCircuit(EnergyCircuit):
    """A chain of Linear layers and activations with the MEP energy, sharing the Parameters of `model`.

    `constrain`: hold the states of units with a kinked activation (ReLU) in its range; see the module.
    """

    def __init__(self, model: nn.Sequential, constrain: bool = True):
        super().__init__()
        linears, self.activations = _parse(model)
        self.model = model
        self.features = linears[0][1].in_features
        self.layout = Layout(tuple(linear.out_features for _, linear in linears))
        self.weights = tuple(f"model.{name}.weight" for name, _ in linears)
        self.biases = tuple(None if linear.bias is None else f"model.{name}.bias" for name, linear in linears)
        self.constrain = constrain

    @classmethod
    def from_sequential(cls, model: nn.Sequential, constrain: bool = True) -> FeedforwardCircuit:
        return cls(model, constrain)

    @classmethod
    def from_sizes(
        cls,
        sizes: Sequence[int],
        hidden: str = "relu",
        *,
        rng: torch.Generator | None = None,
        constrain: bool = True,
    ) -> FeedforwardCircuit:
        """A fresh network of these layer sizes, input first. Hidden weights ~ N(0, gain^2 / fan_in)
        (He et al. 2015, eq. 10), output weights ~ N(0, 1 / fan_in), biases zero."""
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes {tuple(sizes)}; give at least an input and an output size, each >= 1")
        modules: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            linear = nn.Linear(fan_in, fan_out)
            is_output = len(modules) == 2 * (len(sizes) - 2)
            gain = 1.0 if is_output else activation(hidden).gain
            nn.init.normal_(linear.weight, std=gain / math.sqrt(fan_in), generator=rng)
            nn.init.zeros_(linear.bias)
            modules += [linear] if is_output else [linear, as_module(hidden)]
        return cls(nn.Sequential(*modules), constrain)

    def forward(self, x: Tensor) -> Tensor:
        """The free equilibrium's output, which is the plain forward pass."""
        return self.model(x)

    def bind(self, params: Params, x: Tensor) -> FeedforwardSystem:
        return FeedforwardSystem(self, params, self.check_input(x, self.features))


class FeedforwardSystem(System):
    """The MEP energy bound to parameters and an input; see `circuits.base.System`."""

    patience = 8  # sweeps before damping: by then a contracting sample has settled

    def __init__(self, circuit: FeedforwardCircuit, params: Params, x: Tensor):
        weights, biases = circuit.in_order(params)
        floors = [phi.lower if circuit.constrain else -math.inf for phi in circuit.activations]
        drive = torch.nn.functional.linear(x, weights[0], biases[0])
        layout = circuit.layout
        super().__init__(
            layout, drive, layout.fill(tuple(floors), drive), layout.fill((math.inf,) * len(floors), drive)
        )
        self.x = x
        self.names = tuple(zip(circuit.weights, circuit.biases, strict=True))
        self.phi: tuple[Activation, ...] = circuit.activations
        self.weights = weights
        # Pre-activations are base + W z. Around a free state the base is the free pre-activation
        # and a prediction counts from its free value; `settled` holds those bases.
        self.biases = biases
        self.settled: list[Tensor] | None = None
        self._sigma: dict[int, float] = {}
        self._last: tuple | None = None  # (z, its version, pre-activations, errors)

    def _recentre(self, free: Tensor) -> None:
        if self.origin is not None:
            self.settled = self._last = None  # they count from another origin
        self.settled, _ = self._errors(free)
        self.origin, self._last = free, None

    # -- energy and force -------------------------------------------------------------------------

    def _predict(self, i: int, below: Tensor | None) -> tuple[Tensor, Tensor]:
        """Pre-activation a_i and prediction f_i of layer i in the solver's coordinates."""
        phi = self.phi[i]
        if self.settled is None:
            a = self.drive if i == 0 else nn.functional.linear(below, self.weights[i], self.biases[i])
            return a, phi.value(a)
        if i == 0:
            return self.drive, torch.zeros_like(self.drive)
        delta = below @ self.weights[i].T
        return self.settled[i] + delta, phi.difference(self.settled[i], delta)

    def _errors(self, z: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Pre-activations a_i and errors e_i of every layer.

        Those of the last z are kept: an equilibrium is asked for its residual, contrast and energy, and a
        free one becomes an origin. Not with autograd on, where a result belongs to its graph.
        """
        if torch.is_grad_enabled() or z.is_inference():
            return self._compute_errors(z)
        if self._last is None or self._last[0] is not z or self._last[1] != z._version:
            self._last = (z, z._version, *self._compute_errors(z))
        return self._last[2:]

    def _compute_errors(self, z: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        layers = self.layout.split(z)
        pre, errors = [], []
        for i, layer in enumerate(layers):
            a, f = self._predict(i, layers[i - 1] if i else None)
            pre.append(a)
            errors.append(layer - f)
        return pre, errors

    def _through(self, i: int, a: Tensor, error: Tensor) -> Tensor:
        """phi'_i e_i: the error of layer i as its weights see it."""
        return error if self.phi[i] is LINEAR else self.phi[i].slope(a) * error

    def energy(self, z: Tensor) -> Tensor:
        _, errors = self._errors(z)
        energy = 0.5 * sum(e.square().sum(1) for e in errors)
        if self.nudge is not None:
            energy = energy + self.nudge.beta * self.nudge.cost.value(self.readout(z), self.nudge.target)
        return energy

    def force(self, z: Tensor) -> Tensor:
        pre, errors = self._errors(z)
        forces = [
            self._through(i + 1, pre[i + 1], errors[i + 1]) @ self.weights[i + 1] - errors[i]
            for i in range(len(errors) - 1)
        ]
        output = -errors[-1]
        if self.nudge is not None:
            output = output + self.nudge.force(self.readout(z))
        return torch.cat([*forces, output], dim=1)

    # -- sweeps -----------------------------------------------------------------------------------

    def sweeps(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Free: the forward pass, exact at once. Nudged: errors down, states up, output relaxed.

        One sweep maps the output error e_L to G(e_L): with the slopes held, everything below follows from it.
        G contracts where beta C'' sum_l |J_{l->L}|^2 < 1 + beta C''; a secant step per sample (Anderson
        acceleration of depth one) speeds it up and widens that. Samples that have not settled by then have
        kinked units that answer each other; their errors are damped by Aitken's rule.
        """
        if self.nudge is None:
            forward = self._forward()
            while True:
                yield forward, self.drive.new_zeros(len(self.drive))
        secant, aitken = _Secant(), _Aitken()
        pre, errors = self._errors(z)
        output = errors[-1]
        origin = 0.0 if self.origin is None else self.layout.output(self.origin)
        for sweep in itertools.count():
            pulls = self._pull_down(pre, output)
            if aitken.factor is not None:
                pulls = [old + aitken.factor * (pull - old) for pull, old in zip(pulls, errors, strict=True)]
            old, (pre, errors, layers) = errors, self._push_up(pulls)
            f = layers[-1] - errors[-1]
            relaxed = self.nudge.cost.relax(f, origin, self.nudge.target, self.nudge.beta)
            layers[-1], errors[-1] = relaxed, relaxed - f
            moved = [(new - e).abs().amax(1) for new, e in zip(errors, [*old[:-1], output], strict=True)]
            change = torch.stack(moved).amax(0)
            if aitken.factor is not None:
                change = change / aitken.factor[:, 0]
            if sweep >= self.patience:
                aitken.observe(torch.cat(errors, dim=1))
                output = output + aitken.factor * (errors[-1] - output)
            else:
                output = secant.next(output, errors[-1])
            yield torch.cat(layers, dim=1), change

    def _forward(self) -> Tensor:
        layers: list[Tensor] = []
        for i in range(len(self.weights)):
            layers.append(self._predict(i, layers[-1] if i else None)[1])
        return torch.cat(layers, dim=1)

    def _pull_down(self, pre: list[Tensor], output: Tensor) -> list[Tensor]:
        """J_{i+1}^T e_{i+1} for every layer, top to bottom, each error held in its box on the way."""
        pulls = [output]
        error = output
        for i in range(len(pre) - 1, 0, -1):
            pull = self._through(i, pre[i], error) @ self.weights[i]
            pulls.insert(0, pull)
            floor = self._floor(i - 1)
            error = pull if floor is None else torch.maximum(pull, -self.phi[i - 1].value(pre[i - 1]))
        return pulls

    def _push_up(self, pulls: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Pre-activations, errors and states with those errors injected, bottom to top."""
        pre, errors, layers = [], [], []
        for i, pull in enumerate(pulls):
            a, f = self._predict(i, layers[-1] if i else None)
            floor = self._floor(i)
            layer = f + pull if floor is None else torch.maximum(f + pull, floor)
            pre.append(a)
            layers.append(layer)
            errors.append(layer - f)
        return pre, errors, layers

    def _floor(self, i: int) -> Tensor | None:
        """The least value of layer i's coordinates, or None where it has none."""
        lower = self.layout.split(self.lower)[i]
        if math.isinf(self.phi[i].lower) or torch.isinf(lower[0]):
            return None
        return lower if self.origin is None else lower - self.layout.split(self.origin)[i]

    # -- gradient ---------------------------------------------------------------------------------

    def contrast(self, free: Equilibrium, nudged: Equilibrium) -> Params:
        """-(phi'_i e_i) s_{i-1}^T / beta: the error of a layer times the activity below it.

        At the free state the errors, and with them its half of the contrast, are zero.
        """
        z = nudged.state if self.origin is None else nudged.deviation
        return self._hebbian(*self._errors(z), nudged.state)

    def one_sweep(self) -> Params:
        """The gradient after a single top-down sweep of errors from the free state: backprop, at any beta.

        Call it on a nudged system around a free equilibrium.
        """
        output = self.nudge.force(self.readout(self.initial_state()))
        errors = [output]
        for i in range(len(self.weights) - 1, 0, -1):
            errors.insert(0, self._through(i, self.settled[i], errors[0]) @ self.weights[i])
        return self._hebbian(self.settled, errors, self.origin)

    def _hebbian(self, pre: list[Tensor], errors: list[Tensor], state: Tensor) -> Params:
        below = (self.x, *self.layout.split(state)[:-1])
        scale = -1.0 / (self.nudge.beta * len(self.x))
        gradient = {}
        for i, (weight, bias) in enumerate(self.names):
            local = self._through(i, pre[i], errors[i]) * scale
            gradient[weight] = local.T @ below[i]
            if bias is not None:
                gradient[bias] = local.sum(0)
        return gradient

    # -- bounds -----------------------------------------------------------------------------------

    def _slope_norms(self) -> list[float]:
        """max |phi'| sigma(W) of layers 2 to L: what each adds to the coupling."""
        for i in range(1, len(self.weights)):
            if i not in self._sigma:
                self._sigma[i] = self.phi[i].max_slope * spectral_norm(self.weights[i])
        return [self._sigma[i] for i in range(1, len(self.weights))]

    def fastest_rate(self) -> float:
        """The Hessian is (I - J)^T (I - J) up to terms in e, with the norms of J's blocks below the diagonal."""
        blocks = np.eye(len(self.weights)) + np.diag(self._slope_norms(), -1)
        return block_norm(blocks) ** 2 + (self.nudge.curvature if self.nudge else 0.0)

    def largest_beta(self, cost: Cost, enough: float = math.inf) -> float:
        """1 / (C'' lambda_max(I + sum_l J_{l->L} J_{l->L}^T)): beyond it E - beta C has no minimum.

        First from the norms of the weights; where that is not `enough`, exactly for this batch.
        """
        amplification = 1.0
        for sigma in self._slope_norms():
            amplification = 1 + sigma**2 * amplification
        certified = 1 / (cost.curvature * amplification)
        if certified > enough or self.settled is None:
            return certified
        return 1 / (cost.curvature * self._amplification())

    def _amplification(self) -> float:
        """lambda_max(I + sum_l J_{l->L} J_{l->L}^T) at the free state, the largest in the batch."""
        batch, classes = self.readout(self.initial_state()).shape
        # (B, C, n_l), from the output down
        jacobian = torch.eye(classes).to(self.drive).expand(batch, -1, -1)
        gram = jacobian
        for i in range(len(self.weights) - 1, 0, -1):
            jacobian = self._through(i, self.settled[i][:, None], jacobian) @ self.weights[i]
            gram = gram + jacobian @ jacobian.mT
        return torch.linalg.eigvalsh(gram)[:, -1].max().item()


class _Secant:
    """Anderson acceleration of depth one, sample by sample (Walker & Ni 2011, eq. 2.2 with m = 1)."""

    def __init__(self) -> None:
        self.residual: Tensor | None = None
        self.image: Tensor | None = None

    def next(self, x: Tensor, image: Tensor) -> Tensor:
        """The next iterate, given an iterate (B, n) and its image under the fixed-point map."""
        residual = image - x
        proposal = image
        if self.residual is not None:
            moved = residual - self.residual
            weight = (residual * moved).sum(1, keepdim=True) / moved.square().sum(1, keepdim=True).clamp(
                min=1e-38
            )
            # past 1 the two points say little about where the zero is: stay near the newest
            proposal = image - weight.clamp(-1, 1) * (image - self.image)
        self.residual, self.image = residual, image
        return proposal


class _Aitken:
    """Damping per sample from how successive steps align: 1 / (1 - lambda) for steps that shrink by lambda.

    Aitken's rule for vectors (Irons & Tuck 1969), kept in [1/64, 1]: steps that turn back are damped.
    """

    def __init__(self) -> None:
        self.factor: Tensor | None = None
        self.at: Tensor | None = None
        self.step: Tensor | None = None

    def observe(self, x: Tensor) -> None:
        step = None if self.at is None else x - self.at
        if self.step is not None:
            shrink = (step * self.step).sum(1, keepdim=True) / self.step.square().sum(1, keepdim=True).clamp(
                min=1e-38
            )
            self.factor = (self.factor / (1 - shrink.clamp(-3, 0.5))).clamp(1 / 64, 1)
        else:
            self.factor = x.new_ones(len(x), 1)
        self.at, self.step = x, step


def _parse(model: nn.Sequential) -> tuple[list[tuple[str, nn.Linear]], tuple[Activation, ...]]:
    """The Linear layers of a model by name, and the activation after each (linear where there is none)."""
    linears: list[tuple[str, nn.Linear]] = []
    activations: list[Activation] = []
    for name, module in model.named_children():
        phi = from_module(module)
        if isinstance(module, nn.Linear):
            linears.append((name, module))
            activations.append(LINEAR)
        elif phi is not None and linears and activations[-1] is LINEAR:
            activations[-1] = phi
        elif not (isinstance(module, nn.Flatten) and not linears):
            raise ValueError(
                f"module {name} ({type(module).__name__}) has no energy here; build the model of Linear layers, "
                "each followed by at most one of ReLU, Tanh, Sigmoid, Softplus, GELU (a leading Flatten is fine)"
            )
    if not linears:
        raise ValueError("the model has no Linear layer; an energy circuit needs at least one")
    if activations[-1] is not LINEAR:
        raise ValueError(
            f"the output layer ends in {activations[-1].name}; leave it linear, the cost applies its own softmax"
        )
    return linears, tuple(activations)

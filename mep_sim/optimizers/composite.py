"""`CompositeOptimizer`: gradient, feedback, update, consolidation, constraint and write, composed into one torch
optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from circuits import EnergyCircuit, FeedforwardCircuit
from circuits.base import Pairs
from circuits.chip import Chip
from mep_sim.optimizers.strategies.consolidation import ConsolidationStrategy, Evidence, NoConsolidation
from mep_sim.optimizers.strategies.constraint import (
    ConstraintStrategy,
    default_constraint,
    module_of,
)
from mep_sim.optimizers.strategies.exact import BackpropGradient
from mep_sim.optimizers.strategies.feedback import (
    ErrorFeedback,
    FeedbackStrategy,
    NoFeedback,
    NoWriteFeedback,
    WriteFeedback,
    WriteResidual,
)
from mep_sim.optimizers.strategies.gradient import Estimate, GradientStrategy
from mep_sim.optimizers.strategies.update import ROLES, PlainUpdate, UpdateStrategy, check_choice

GROUP_OPTIONS = {"params", "param_names", "lr", "initial_lr", "update", "role"}


class CompositeOptimizer(torch.optim.Optimizer):
    """One training step, composed of strategies.

    `optimizer.step(x=x, target=y)` learns by EP, and `loss.backward(); optimizer.step()` uses the same update on a
    gradient of one's own in `.grad`. With a `chip`, what reaches a weight on the array is what its pulses write;
    `write_feedback` sees to the rest. Where a chip learns by pulse trains, its weights take plain steps of -lr times
    the gradient, sample by sample: no `feedback`, `consolidation`, `constraint` or `clip_norm` comes in between.

    params: parameters, or groups of them, each with an `lr` and an `update` of its own if it likes, and a `role` where
    there is no model to tell it (see `role`): "embedding" for the tables of `loss.backward()` training. lr > 0.
    model: the circuit, or an nn.Sequential to make a FeedforwardCircuit of; needed for step(x=, target=).
    clip_norm: the largest norm of the gradient over all parameters, > 0; None leaves it. consolidation: protects what
    has been learned (see `strategies.consolidation`). The last `Estimate` is kept in `.estimate`; `state_dict` holds
    what runs (also `memory`, of gradient and consolidation), not the strategies' settings.
    """

    def __init__(
        self,
        params: Iterable,
        gradient: GradientStrategy | None = None,
        update: UpdateStrategy | None = None,
        constraint: ConstraintStrategy | None = None,
        feedback: FeedbackStrategy | None = None,
        lr: float = 0.01,
        model: nn.Module | None = None,
        chip: Chip | None = None,
        write_feedback: WriteFeedback | None = None,
        *,
        clip_norm: float | None = None,
        consolidation: ConsolidationStrategy | None = None,
    ):
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm = {clip_norm}; choose a norm > 0, such as 1, or None")
        self.gradient = gradient or BackpropGradient()
        self.update = update or PlainUpdate()
        self.circuit = _circuit_of(model, chip)
        self.constraint = constraint or default_constraint(self.circuit)
        self.clip_norm = clip_norm
        self.consolidation = consolidation or NoConsolidation()
        self.chip = chip
        self.feedback = feedback or (NoFeedback() if self._has_trains else ErrorFeedback())
        self.write_feedback = write_feedback or (NoWriteFeedback() if self._has_trains else WriteResidual())
        if self._has_trains:
            self._check_trains()
        if chip is not None:
            self.write_feedback.check(chip)
        self.constraint.check(self.circuit)
        self.consolidation.check(self.circuit)
        is_exact = isinstance(self.gradient, BackpropGradient)
        if not is_exact and self.circuit is not None:
            dtype = self.circuit.dtype(self.circuit.params())
            if dtype.itemsize < 4:
                raise ValueError(f"EP resolves nothing in {dtype}; use float32 or float64: model.float()")
        self.memory: dict = {}
        self.estimate: Estimate | None = None
        self._evidence: Evidence | None = None  # of the last gradient
        self._updates: list[UpdateStrategy] = []  # of the groups
        self._named: dict[str, nn.Parameter] = {}  # the parameters by the circuit's names
        self._roles: dict[str, str] = {}
        super().__init__(params, {"lr": lr})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with options `lr` and `update` where they differ from the optimizer's, and `role`."""
        group = dict(param_group)
        if unknown := group.keys() - GROUP_OPTIONS:
            raise ValueError(
                f"a parameter group sets {', '.join(sorted(unknown))}; it may set lr, update and role"
            )
        check_choice("role", group.get("role", "hidden"), ROLES)
        lr, update = group.get("lr", self.defaults["lr"]), group.pop("update", self.update)
        if not lr > 0:
            raise ValueError(f"lr = {lr}; choose a learning rate > 0, such as 0.01")
        if not isinstance(update, UpdateStrategy):
            raise ValueError(f"update = {update!r} of a group; give an UpdateStrategy, such as AdamUpdate()")
        super().add_param_group(group)
        try:
            named = self._names_of(self.param_groups[-1]["params"])
            roles = {name: group.get("role") or self._role_of(name, p) for name, p in named.items()}
            for name in self._matrices(roles):
                self.constraint.check_weight(name, named[name])
                if self._by_trains(name) and update != PlainUpdate():
                    raise ValueError(
                        f"update = {update} of {name}, which pulse trains move: use PlainUpdate()"
                    )
        except ValueError:
            self.param_groups.pop()
            raise
        self._named |= named
        self._roles |= roles
        self._updates.append(update)

    def _names_of(self, params: list[nn.Parameter]) -> dict[str, nn.Parameter]:
        if self.circuit is None:
            return {f"param-{len(self._named) + i}": p for i, p in enumerate(params)}
        names = {p: name for name, p in self.circuit.named_parameters()}
        if foreign := [tuple(p.shape) for p in params if p not in names]:
            raise ValueError(f"parameters of shapes {foreign} are not the model's; pass model.parameters()")
        return {names[p]: p for p in params}

    @property
    def _has_trains(self) -> bool:
        return self.chip is not None and self.chip.trains is not None

    def _by_trains(self, name: str) -> bool:
        return self._has_trains and self.chip.holds(name)

    def _check_trains(self) -> None:
        """That nothing is asked for between the gradient and trains of pulses, which know single samples only."""
        allowed = {
            "feedback": NoFeedback(),
            "write_feedback": NoWriteFeedback(),
            "constraint": default_constraint(self.circuit),  # cells keep to their window themselves
            "consolidation": NoConsolidation(),
        }
        for name, value in {**allowed, "clip_norm": None}.items():
            if (given := getattr(self, name)) != value:
                raise ValueError(
                    f"{name} = {given} with a chip that learns by pulse trains, which pulse sample by sample: leave "
                    "it out, or make the chip without trains"
                )

    def role(self, name: str) -> str:
        """What a parameter is for, one of `strategies.update.ROLES`. Without a model every parameter of two or more
        dimensions counts as a hidden weight, unless its group says otherwise."""
        return self._roles[name]

    def _role_of(self, name: str, p: Tensor) -> str:
        if p.ndim < 2:
            return "vector"
        if self.circuit is None:
            return "hidden"
        if name in self.circuit.weights:
            return "head" if name == self.circuit.weights[-1] else "hidden"
        return "embedding" if isinstance(module_of(name, self.circuit), nn.Embedding) else "vector"

    @staticmethod
    def _matrices(roles: dict[str, str]) -> list[str]:
        """The parameters that are linear maps: what a constraint is about."""
        return [name for name, role in roles.items() if role in ("hidden", "head")]

    # -- one step -----------------------------------------------------------------------------------

    def compute_gradient(self, x: Tensor, target: Tensor) -> Estimate:
        """Estimate the gradient at (x, target) and put it into `.grad`, so that it can be looked at before
        `step()`."""
        if self.circuit is None:
            raise ValueError("step(x=, target=) needs the network: pass model= when making the optimizer")
        for name, value in (("x", x), ("target", target)):
            if not isinstance(value, Tensor):
                raise ValueError(f"{name} is a {type(value).__name__}; give a torch.Tensor, batch first")
        if torch.is_inference_mode_enabled():  # its tensors could not be updated later
            raise ValueError("an optimizer cannot learn in torch.inference_mode(); use torch.no_grad()")
        read = self.circuit.params if self.chip is None else self.chip.read
        x = x if self.chip is None else self.chip.drive(x)
        estimate = self.gradient.estimate(self.circuit, read, x, target, memory=self.memory)
        learning = {name: g for name, g in estimate.gradient.items() if self._learns(name)}
        factors = self._factors_of(estimate)
        self._evidence = Evidence(learning, estimate.loss, len(estimate.output), factors)
        self.estimate = dataclasses.replace(estimate, factors=None)  # or the system would live on
        for name, p in self._named.items():
            p.grad = learning.get(name)
        return self.estimate

    def _learns(self, name: str) -> bool:
        return name in self._named and self._named[name].requires_grad

    def _factors_of(self, estimate: Estimate) -> dict[str, Pairs] | None:
        """What single samples say, where somebody wants to know."""
        wanting = self.chip if self._has_trains else self.consolidation
        if not (self._has_trains or self.consolidation.needs_factors):
            return None
        if estimate.factors is None:
            raise ValueError(
                f"{type(self.gradient).__name__} gives no factors of single samples, which "
                f"{type(wanting).__name__} needs; use EPGradient (its one_sweep is backprop)"
            )
        return estimate.factors()

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Tensor] | None = None,
        *,
        x: Tensor | None = None,
        target: Tensor | None = None,
    ) -> Tensor | None:
        """Learn from a batch (x, target), or from the gradients already in `.grad`; returns the loss if known.

        A batch leaves no `.grad` behind (its gradient is in `.estimate`): a later backward() would add to it.
        """
        loss = self._gather(closure, x, target)
        self._consolidate(loss, alone=x is not None)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._named.values(), self.clip_norm)
        proposed = self._propose()
        states = {name: self.state[self._named[name]] for name in proposed}
        weights = {name: proposed[name] for name in self._matrices(self._roles) if name in proposed}
        self._write(proposed | self.constraint.project(weights, self.circuit, states))
        self._coincide()
        self._evidence = None
        if x is not None:
            self.zero_grad()
        elif self.chip is not None:
            self.chip.read()  # a forward pass of one's own sees the weights by their last read
        return loss

    def _gather(self, closure: Callable | None, x: Tensor | None, target: Tensor | None) -> Tensor | None:
        """Get the gradient into `.grad`, or see that it is there; the loss where it is known."""
        if (x is None) != (target is None):
            raise ValueError(
                "step() got only one of x and target; give both, or neither after loss.backward()"
            )
        if x is not None and closure is not None:
            raise ValueError("step() got a closure and a batch; give one of them")
        if x is not None:
            loss = self.compute_gradient(x, target).loss
        elif closure is not None:
            self._evidence = None  # of another gradient
            with torch.enable_grad():
                loss = closure()
        elif self._has_trains:
            raise ValueError("pulse trains learn sample by sample: step(x=x, target=y)")
        else:
            self._check_gradients()
            return None
        value = torch.as_tensor(loss)
        if value.device.type == "cpu" and not value.isfinite():  # a look would stall a GPU's queue
            self.zero_grad()
            raise ValueError(
                f"the loss is {value.item()}; lower lr, lower beta or bound the weights (SpectralConstraint)"
            )
        if closure is not None:
            self._check_gradients()
        return loss

    def _check_gradients(self) -> None:
        """That somebody put gradients into `.grad` which can be learnt from, before anything is changed."""
        gradients = {name: p.grad for name, p in self._named.items() if p.grad is not None}
        if not gradients and not isinstance(self.gradient, BackpropGradient):
            raise ValueError(
                f"{type(self.gradient).__name__} has no batch to learn from: step(x=x, target=y)"
            )
        for name, g in gradients.items():
            if g.is_sparse:
                raise ValueError(f"the gradient of {name} is sparse; make its Embedding with sparse=False")
            if g.device.type == "cpu" and not g.sum().isfinite():
                raise ValueError(
                    f"the gradient of {name} has NaN or infinite entries; check the data, or lower lr"
                )

    def _consolidate(self, loss: Tensor | None, alone: bool) -> None:
        """Show the raw gradient to the synapses, and learn from what they make of it. alone: nobody else had a hand in
        `.grad`."""
        gradient = {name: p.grad for name, p in self._named.items() if p.grad is not None}
        evidence = self._evidence
        if evidence is None:
            evidence = Evidence(gradient, None if loss is None else torch.as_tensor(loss))
        else:  # without what was taken out of `.grad` since
            raw = {name: g for name, g in evidence.gradient.items() if name in gradient}
            evidence = dataclasses.replace(evidence, gradient=raw)
        if self.consolidation.needs_factors and evidence.factors is None:
            raise ValueError(
                f"{type(self.consolidation).__name__} learns from single samples, and `.grad` holds their mean: use "
                "step(x=, target=), or AutoEWC"
            )
        states = self._states
        weights = {name: self._named[name] for name in states}
        self.consolidation.observe(evidence, weights, states, self.memory)
        for name, g in self.consolidation.contrast(gradient, states, evidence if alone else None).items():
            self._named[name].grad = g

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As of torch; what a batch told the synapses beside its gradient is forgotten with it."""
        super().zero_grad(set_to_none)
        self._evidence = None

    @property
    def _states(self) -> dict[str, dict]:
        return {name: self.state[p] for name, p in self._named.items() if p.grad is not None}

    def _propose(self) -> dict[str, Tensor]:
        """Where every parameter with a gradient should go, by name."""
        groups = zip(self.param_groups, self._updates, strict=True)
        options = {p: (group["lr"], update) for group, update in groups for p in group["params"]}
        proposed, rates = {}, {}
        for name, p in self._named.items():
            if p.grad is None or self._by_trains(name):
                continue
            (lr, update), state = options[p], self.state[p]
            rule = update.rule(p, self.role(name))
            if rule.has_own_memory:
                direction, _ = rule.direction(p.grad, state, p)
            else:
                signal = self.feedback.signal(p.grad, state)
                direction, kept = rule.direction(signal, state, p)
                self.feedback.keep(signal, kept, state)
            soft = self.consolidation.plasticity(state)
            proposed[name] = torch.sub(p, direction if soft is None else soft * direction, alpha=lr)
            rates[name] = lr
        return self.consolidation.pulled(proposed, rates, self._states, self.memory)

    def _write(self, weights: dict[str, Tensor]) -> None:
        wanted = {}
        for name, weight in weights.items():
            p = self._named[name]
            if self.chip is not None and self.chip.holds(name):
                delta = self.write_feedback.wanted(weight - p, self.state[p])
                if delta is not None:
                    wanted[name] = delta
            else:
                p.copy_(weight)
        for name, written in (self.chip.write(wanted) if wanted else {}).items():
            self.write_feedback.written(wanted[name], written, self.state[self._named[name]])

    def _coincide(self) -> None:
        """Pulse sample by sample what learns by trains."""
        if not self._has_trains:
            return
        rates = {p: group["lr"] for group in self.param_groups for p in group["params"]}
        for name, pairs in self._evidence.factors.items():
            p = self._named.get(name)
            if p is not None and p.grad is not None and self._by_trains(name):
                self.chip.coincide({name: pairs}, rates[p] / self._evidence.samples)

    # -- saving -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As of torch, with the gradient strategy's `memory` and the state of the circuit's dropout generator.
        Strategies are settings: make the optimizer anew with the same ones, then load."""
        own = {"memory": self.memory}
        if self._dropout is not None:
            own["dropout"] = self._dropout.get_state()
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        device = self.param_groups[0]["params"][0].device
        self.memory = {name: _copied(value, device) for name, value in state_dict.get("memory", {}).items()}
        if self._dropout is not None and "dropout" in state_dict:
            self._dropout.set_state(state_dict["dropout"].cpu())

    @property
    def _dropout(self) -> torch.Generator | None:
        return getattr(self.circuit, "dropout", None)

    def __getstate__(self) -> dict[str, Any]:
        # to be copied or pickled: torch's own would leave all but three attributes behind
        own = (
            "gradient",
            "update",
            "constraint",
            "feedback",
            "write_feedback",
            "clip_norm",
            "consolidation",
            "chip",
            "circuit",
        )
        running = ("memory", "estimate", "_evidence", "_updates", "_named", "_roles")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in (*own, *running)}}


def _circuit_of(model: nn.Module | None, chip: Chip | None) -> EnergyCircuit | None:
    if chip is not None:
        if model is not None and model not in (chip.circuit, getattr(chip.circuit, "model", None)):
            raise ValueError("the chip was made of another circuit than model; pass model=chip.circuit")
        return chip.circuit
    if model is None or isinstance(model, EnergyCircuit):
        return model
    if isinstance(model, nn.Sequential):
        return FeedforwardCircuit.from_sequential(model)
    raise ValueError(f"cannot make a circuit of {type(model).__name__}; pass an nn.Sequential or a circuit")


def _copied(value: Any, device: torch.device) -> Any:
    """An entry of a gradient strategy's memory; a generator's state (bytes) stays where it is."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device if value.is_floating_point() else value.device, copy=True)

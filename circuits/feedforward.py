"""A feedforward network as a circuit with the MEP energy: its blocks, shapes, masks and what one layer sees.

The energy itself, bound to parameters and an input, is `circuits.feedforward_system`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from circuits.activations import activation, as_module
from circuits.base import EnergyCircuit, Layout, Params
from circuits.blocks import INPUT, parse
from circuits.feedforward_system import FeedforwardSystem, gradient_of


class FeedforwardCircuit(EnergyCircuit):
    """A model of layers in sequence with the MEP energy, sharing the Parameters of `model`.

    model: an nn.Sequential of the modules in `circuits.blocks.SUPPORTED`, with a linear output (B, C).
    constrain: hold the states of units with a kinked activation in its range; see `circuits.feedforward_system`.
    dropout: None leaves Dropout out while settling; a generator draws one mask per `bind` in training mode,
    which all phases share.
    input_shape: of one sample, to know the layout before the first `bind`; models that begin with a Linear
    layer know it.
    """

    def __init__(
        self,
        model: nn.Sequential,
        constrain: bool = True,
        dropout: torch.Generator | None = None,
        input_shape: tuple[int, ...] | None = None,
    ):
        super().__init__()
        self.plans = parse(model)
        self.model, self.constrain, self.dropout = model, constrain, dropout
        sites = [site for plan in self.plans for site in plan.sites]
        self.weights = tuple(f"{site.name}.weight" for site in sites if site.has_weight)
        self._first = next(site for site in sites if not isinstance(site.module, nn.Flatten))
        first = self._first.module
        self.features = first.in_features if isinstance(first, nn.Linear) else None
        self._shapes: dict[tuple[int, ...], tuple[Layout, dict[str, torch.Size]]] = {}
        self._layout: Layout | None = None
        if self.features is not None:
            input_shape = (self.features,)
        if input_shape is not None:
            dtype = torch.int64 if isinstance(first, nn.Embedding) else next(self.parameters()).dtype
            like = next(self.parameters()).new_zeros((1, *input_shape), dtype=dtype)
            self._layout, _ = self._measure(self.check_input(like, self.params()))

    @classmethod
    def from_sequential(cls, model: nn.Sequential, constrain: bool = True, **options) -> FeedforwardCircuit:
        return cls(model, constrain, **options)

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

    # -- shapes -----------------------------------------------------------------------------------

    @property
    def layout(self) -> Layout:
        """Of the last input bound; known from the start where `features` or `input_shape` is."""
        if self._layout is None:
            raise ValueError(
                "the layout depends on the input's shape: give input_shape=, or bind an input first"
            )
        return self._layout

    def check_input(self, x: Tensor, params: Params) -> Tensor:
        """x as the model takes it, or a ValueError. A model that begins with a Linear layer takes any (B, ...)
        of as many numbers."""
        if self.features is not None:
            return self.check_dense(x, self.features, params)
        m, problem = self._first.module, None
        if isinstance(m, nn.Embedding):
            if x.ndim < 2 or x.dtype not in (torch.int64, torch.int32):
                problem = "integer indices (B, length)"
            elif not x.is_cuda and x.numel() and not 0 <= int(x.min()) <= int(x.max()) < m.num_embeddings:
                problem = f"indices from 0 to {m.num_embeddings - 1}"
        elif x.real.dtype != self.dtype(params) or x.ndim < 2:
            problem = f"floats (B, ...) of type {self.dtype(params)}"
        elif isinstance(m, nn.Conv2d) and (x.ndim != 4 or x.shape[1] != m.in_channels):
            problem = f"images (B, {m.in_channels}, H, W)"
        elif (
            isinstance(m, nn.BatchNorm2d | nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d) and x.ndim != 4
        ):
            problem = "images (B, C, H, W)"
        if not len(x):
            problem = "batches of at least one sample"
        if problem is not None:
            raise ValueError(
                f"input of shape {tuple(x.shape)} and type {x.dtype}; this circuit takes {problem}"
            )
        return x

    @torch.no_grad()
    def _measure(self, x: Tensor) -> tuple[Layout, dict[str, torch.Size]]:
        """The layout for inputs like x, and the shapes of one sample at every Dropout, by running one."""
        key = tuple(x.shape[1:])
        if key not in self._shapes:
            params = {name: p.detach() for name, p in self.params().items()}
            dropouts = [s for plan in self.plans for s in plan.sites if isinstance(s.module, nn.Dropout)]
            like = next(iter(params.values()))
            whole = {site.mask: like.new_ones(()) for site in dropouts}
            sample = x[:1].to(like.device, like.dtype if x.is_floating_point() else x.dtype)
            states, at = [sample], {}
            try:
                for plan in self.plans:
                    block = plan.bind({**params, **whole})
                    tapes, f = block.run(states[-1], None if plan.skip is None else states[plan.skip + 1])
                    states.append(f)
                    for sites, tape in zip((plan.head, plan.shortcut, plan.tail), tapes, strict=True):
                        if tape is not None:
                            at |= {s.name: i.shape[1:] for s, i in zip(sites, tape.base, strict=True)}
            except (RuntimeError, IndexError) as error:
                raise ValueError(f"the model does not take inputs of shape {key}: {error}") from error
            if states[-1].ndim != 2:
                raise ValueError(
                    f"the output has shape {tuple(states[-1].shape)}; end the model so that it is (B, C), "
                    "with Flatten() say"
                )
            shapes = tuple(tuple(s.shape[1:]) for s in states[1:])
            self._shapes[key] = Layout.of(shapes), {s.mask: at[s.name] for s in dropouts}
        return self._shapes[key]

    # -- binding ----------------------------------------------------------------------------------

    def bind(self, params: Params, x: Tensor) -> FeedforwardSystem:
        """The system at x (B, ...); `params` may hold dropout masks, else they are drawn where there are any."""
        x = self.check_input(x, params)
        layout, masked = self._measure(x.real if x.is_complex() else x)
        self._layout = layout
        missing = [name for name in masked if name not in params]
        if missing and self.dropout is not None:
            params = {**params, **self._draw_masks({name: masked[name] for name in missing}, x)}
        return FeedforwardSystem(self, layout, params, x)

    def _draw_masks(self, shapes: Mapping[str, torch.Size], x: Tensor) -> dict[str, Tensor]:
        """Of the Dropout modules that are in training mode, on the generator's device and from there to x's."""
        like = next(self.parameters())
        masks = {}
        for plan in self.plans:
            for site in plan.sites:
                if site.mask in shapes and site.module.training:
                    keep = 1 - site.module.p
                    mask = like.new_empty((len(x), *shapes[site.mask]), device=self.dropout.device)
                    mask = mask.bernoulli_(keep, generator=self.dropout) / max(keep, 1e-30)
                    masks[site.mask] = mask.to(x.device)
        return masks

    def not_analytic(self) -> tuple[str, ...]:
        """The modules that have no complex continuation here."""
        real_only = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.Embedding)
        sites = [site for plan in self.plans for site in plan.sites]
        return tuple(
            str(s)
            for s in sites
            if isinstance(s.module, real_only) or (s.phi is not None and not s.phi.analytic)
        )

    # -- one layer on its own ---------------------------------------------------------------------

    def inputs_of(self, layer: int) -> tuple[int, ...]:
        """The states that layer's block reads, -1 for x: the one below, and one a residual skips from."""
        skip = self.plans[layer].skip
        return (layer - 1,) if skip is None else (layer - 1, skip)

    def layer_parameters(self, layer: int) -> tuple[str, ...]:
        """Names of the parameters and dropout masks of that layer's block."""
        plan = self.plans[layer]
        learnt = (f"{s.name}.{p}" for s in plan.sites for p, _ in s.module.named_parameters(recurse=False))
        return (*learnt, *(s.mask for s in plan.sites if isinstance(s.module, nn.Dropout)))

    def local_contrast(
        self,
        layer: int,
        params: Params,
        inputs: Sequence[tuple[Tensor, Tensor]],
        own: tuple[Tensor, Tensor],
        beta: float,
    ) -> Params:
        """The contrast of one layer from what is at its synapses: its parameters, its inputs and its own state,
        each state as (free (B, n), deviation (B, n))."""
        free, moved = [], []
        for i, (state, deviation) in zip(self.inputs_of(layer), inputs, strict=True):
            shape = state.shape[1:] if i == INPUT else self.layout.shapes[i]
            free.append(state.view(-1, *shape))
            moved.append(None if i == INPUT else deviation.view(-1, *shape))
        if len(free) == 1:
            free.append(None)
            moved.append(None)
        block = self.plans[layer].bind(params)
        tapes, _ = block.run(*free)
        block = block.around(tapes)
        tapes, f = block.move(tapes, *moved)
        deviation = own[1].view(-1, *self.layout.shapes[layer])
        error = deviation if f is None else deviation - f
        return gradient_of([(block, tapes, error)], -1 / (beta * len(error)))

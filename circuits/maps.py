"""The differentiable maps a block's prediction is chained from, bound to their parameters.

Every map takes a batch first. Beside its value it knows what settling needs, written out by hand: the exact
difference m(x + d) - m(x), which float32 could not get by subtracting, the Jacobian's two products, the
gradient of its own parameters from what it sees locally, and a bound of its slope.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circuits.activations import Activation
from circuits.norms import spectral_norm


class Map(ABC):
    """y = m(x). `parameters` names what it learns; `weight` is the name of its weight matrix, if it has one;
    `affine`: the Jacobian is the same everywhere;
    `observes`: it keeps statistics of its input."""

    parameters: tuple[str, ...] = ()
    weight: str | None = None
    affine = True
    observes = False

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """m(x)."""

    @abstractmethod
    def push(self, x: Tensor, d: Tensor) -> Tensor:
        """J(x) d."""

    @abstractmethod
    def pull(self, x: Tensor, e: Tensor) -> Tensor:
        """J(x)' e."""

    @abstractmethod
    def norm(self, x: Tensor) -> float:
        """A bound of |J| for inputs like x."""

    def difference(self, x: Tensor, d: Tensor) -> Tensor:
        """m(x + d) - m(x); here of a map whose Jacobian is constant."""
        return self.push(x, d)

    def around(self, x: Tensor) -> Map:
        """The map that stands in for this one in deviations from x: itself, but for one that has to choose."""
        return self

    def local(self, x: Tensor, e: Tensor) -> dict[str, Tensor]:
        """e' dm/dtheta summed over the batch, by parameter name: what the errors e at y and the input say."""
        return {}

    def rows(self, x: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """(post (R, out), pre (R, in)) of a weight: local = post' pre, a row per sample (and position)."""
        raise NotImplementedError(f"{type(self).__name__} has no weight matrix")

    def observe(self, x: Tensor) -> None:
        """See the input x of a settled free phase in training: where running statistics move."""


class Dense(Map):
    """W x + b on the last dimension of x (B, ..., in)."""

    def __init__(self, name: str, module: nn.Linear, params: Mapping[str, Tensor]):
        self.weight, self.bias = f"{name}.weight", f"{name}.bias" if module.bias is not None else None
        self.parameters = (self.weight,) if self.bias is None else (self.weight, self.bias)
        self.w, self.b = params[self.weight], None if self.bias is None else params[self.bias]

    def value(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w, self.b)

    def push(self, x: Tensor, d: Tensor) -> Tensor:
        return d @ self.w.T

    def pull(self, x: Tensor, e: Tensor) -> Tensor:
        return e @ self.w

    def rows(self, x: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        return e.reshape(-1, e.shape[-1]), x.reshape(-1, x.shape[-1])

    def local(self, x: Tensor, e: Tensor) -> dict[str, Tensor]:
        post, pre = self.rows(x, e)
        gradient = {self.weight: post.T @ pre}
        return gradient if self.bias is None else {**gradient, self.bias: post.sum(0)}

    def norm(self, x: Tensor) -> float:
        return self._sigma

    @cached_property
    def _sigma(self) -> float:
        return spectral_norm(self.w)


@dataclass
class Elementwise(Map):
    """An activation."""

    phi: Activation
    affine = False

    def value(self, x: Tensor) -> Tensor:
        return self.phi.value(x)

    def difference(self, x: Tensor, d: Tensor) -> Tensor:
        return self.phi.difference(x, d)

    def push(self, x: Tensor, d: Tensor) -> Tensor:
        return self.phi.slope(x) * d

    def pull(self, x: Tensor, e: Tensor) -> Tensor:
        return self.phi.slope(x) * e

    def norm(self, x: Tensor) -> float:
        return self.phi.max_slope


class BatchNormalise(Map):
    """Batch normalisation with frozen statistics: gamma (x - mean) / sqrt(var + eps) + beta, per channel.

    Settling sees the running statistics, so that samples of a batch stay independent and the energy is one
    per sample; in training they move once per step towards those of the free phase.
    """

    observes = True

    def __init__(self, name: str, module: nn.Module, params: Mapping[str, Tensor]):
        self.module = module
        self.parameters = (f"{name}.weight", f"{name}.bias") if module.affine else ()
        # copies: the running statistics may move while this system is in use
        self.mean = module.running_mean.clone()
        self.rate = torch.rsqrt(module.running_var + module.eps)
        self.gamma, self.beta = (params[p] for p in self.parameters) if module.affine else (None, None)

    @staticmethod
    def _spread(channel: Tensor, x: Tensor) -> Tensor:
        """A value per channel, shaped to meet x; the module's statistics may be of another type than `params`."""
        return channel.to(x).view(x.shape[1], *(1,) * (x.ndim - 2))

    def _slope(self, x: Tensor) -> Tensor:
        rate = self._spread(self.rate, x)
        return rate if self.gamma is None else rate * self._spread(self.gamma, x)

    def value(self, x: Tensor) -> Tensor:
        y = (x - self._spread(self.mean, x)) * self._slope(x)
        return y if self.beta is None else y + self._spread(self.beta, x)

    def push(self, x: Tensor, d: Tensor) -> Tensor:
        return d * self._slope(d)

    def pull(self, x: Tensor, e: Tensor) -> Tensor:
        return e * self._slope(e)

    def norm(self, x: Tensor) -> float:
        return self._slope(x).abs().max().item()

    def local(self, x: Tensor, e: Tensor) -> dict[str, Tensor]:
        if not self.parameters:
            return {}
        normal = (x - self._spread(self.mean, x)) * self._spread(self.rate, x)
        over = [0, *range(2, x.ndim)]
        return dict(zip(self.parameters, ((e * normal).sum(over), e.sum(over)), strict=True))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        m = self.module
        if not m.training:
            return
        if x.numel() <= x.shape[1]:
            raise ValueError(
                f"one value per channel (input {tuple(x.shape)}) has no variance for batch normalisation to learn; "
                "give larger batches, or call .eval() on that module"
            )
        variance, mean = torch.var_mean(x, [0, *range(2, x.ndim)])  # unbiased, as torch keeps it
        m.num_batches_tracked += 1
        share = 1.0 / float(m.num_batches_tracked) if m.momentum is None else m.momentum
        m.running_mean.lerp_(mean.to(m.running_mean), share)
        m.running_var.lerp_(variance.to(m.running_var), share)


class LayerNormalise(Map):
    """Layer normalisation gamma u / r + beta, u = x - mean, r = sqrt(mean u^2 + eps), over the last dimensions."""

    affine = False

    def __init__(self, name: str, module: nn.LayerNorm, params: Mapping[str, Tensor]):
        learned = [p for p in ("weight", "bias") if getattr(module, p) is not None]
        self.parameters = tuple(f"{name}.{p}" for p in learned)
        self.gamma = params[f"{name}.weight"] if "weight" in learned else None
        self.beta = params[f"{name}.bias"] if "bias" in learned else None
        self.eps, self.shape = module.eps, module.normalized_shape
        self.over = tuple(range(-len(self.shape), 0))

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(self.over, keepdim=True)

    def _radius(self, u: Tensor) -> Tensor:
        return torch.sqrt((u * u).mean(self.over, keepdim=True) + self.eps)

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.gamma is None else x * self.gamma

    def value(self, x: Tensor) -> Tensor:
        if x.shape[-len(self.shape) :] != self.shape:
            raise RuntimeError(f"LayerNorm of {self.shape} met {tuple(x.shape)}")  # in place of broadcasting
        u = self._centre(x)
        y = self._scaled(u / self._radius(u))
        return y if self.beta is None else y + self.beta

    def difference(self, x: Tensor, d: Tensor) -> Tensor:
        # with 1/r' - 1/r = -(r'^2 - r^2) / (r r' (r + r')), whose numerator is mean(d (2 u + d)): nothing cancels
        u, d = self._centre(x), self._centre(d)
        before, after = self._radius(u), self._radius(u + d)
        grown = (d * (2 * u + d)).mean(self.over, keepdim=True)
        return self._scaled(d / after - u * grown / (before * after * (before + after)))

    def push(self, x: Tensor, d: Tensor) -> Tensor:
        return self._scaled(self._project(x, d))

    def pull(self, x: Tensor, e: Tensor) -> Tensor:
        return self._project(x, self._scaled(e))

    def _project(self, x: Tensor, d: Tensor) -> Tensor:
        """The Jacobian of u / r, which is symmetric."""
        u, d = self._centre(x), self._centre(d)
        r = self._radius(u)
        return (d - u * (u * d).mean(self.over, keepdim=True) / (r * r)) / r

    def local(self, x: Tensor, e: Tensor) -> dict[str, Tensor]:
        u = self._centre(x)
        over = tuple(range(x.ndim - len(self.over)))
        sums = {"weight": (e * u / self._radius(u)).sum(over), "bias": e.sum(over)}
        return {name: sums[name.rpartition(".")[2]] for name in self.parameters}

    def norm(self, x: Tensor) -> float:
        """At x itself: the slope 1 / r has no useful bound over all inputs."""
        gamma = 1.0 if self.gamma is None else self.gamma.abs().max().item()
        return gamma / self._radius(self._centre(x)).abs().min().item()


@dataclass
class Flatten(Map):
    """(B, ...) as (B, n)."""

    def value(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def push(self, x: Tensor, d: Tensor) -> Tensor:
        return d.flatten(1)

    def pull(self, x: Tensor, e: Tensor) -> Tensor:
        return e.reshape(-1, *x.shape[1:])

    def norm(self, x: Tensor) -> float:
        return 1.0


@dataclass
class Mask(Map):
    """Dropout with a mask that all phases share: 0 or 1 / (1 - p) per unit."""

    mask: Tensor

    def value(self, x: Tensor) -> Tensor:
        return x * self.mask

    def push(self, x: Tensor, d: Tensor) -> Tensor:
        return d * self.mask

    def pull(self, x: Tensor, e: Tensor) -> Tensor:
        return e * self.mask

    def norm(self, x: Tensor) -> float:
        return self.mask.max().item()


class Lookup(Map):
    """An embedding table at the input: x (B, ...) int64 to (B, ..., dim). Errors stop here, its rows learn."""

    def __init__(self, name: str, module: nn.Embedding, params: Mapping[str, Tensor]):
        self.parameters = (f"{name}.weight",)
        self.table, self.padding = params[self.parameters[0]], module.padding_idx

    def value(self, x: Tensor) -> Tensor:
        return F.embedding(x, self.table)

    def push(self, x: Tensor, d: Tensor) -> Tensor:
        raise NotImplementedError("indices do not deviate")

    pull = push

    def norm(self, x: Tensor) -> float:
        return 1.0

    def local(self, x: Tensor, e: Tensor) -> dict[str, Tensor]:
        gradient = torch.zeros_like(self.table)
        gradient.index_add_(0, x.flatten(), e.reshape(-1, e.shape[-1]))
        if self.padding is not None:
            gradient[self.padding] = 0
        return {self.parameters[0]: gradient}

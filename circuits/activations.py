"""Elementwise activations with what settling needs of them: value, slope and an exact difference.

`difference(a, delta) = phi(a + delta) - phi(a)` is computed without subtracting two nearly equal numbers:
a nudge moves a unit by 1e-6 or less, and in float32 a plain subtraction would leave nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Activation:
    """phi, its slope and its exact difference; all map tensors of any shape to the same shape.

    `lower`, `upper`: the range of an activation with kinks at its ends, which states are held in (see
    `FeedforwardCircuit`); infinite where nothing needs holding.
    `gain`: the He/Glorot gain of the layer that feeds it.
    `max_slope`: sup |phi'|.
    `analytic`: value and slope take complex numbers.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    difference: Callable[[Tensor, Tensor], Tensor]
    lower: float = -math.inf
    upper: float = math.inf
    gain: float = 1.0
    max_slope: float = 1.0
    analytic: bool = True

    @property
    def is_kinked(self) -> bool:
        return math.isfinite(self.lower) or math.isfinite(self.upper)


def _relu_difference(a: Tensor, delta: Tensor) -> Tensor:
    return torch.maximum(delta + a.clamp(max=0), -a.clamp(min=0))


def _hard_sigmoid(a: Tensor) -> Tensor:
    return (a / 6 + 0.5).clamp(0, 1)


def _hard_sigmoid_difference(a: Tensor, delta: Tensor) -> Tensor:
    inside = a.clamp(-3, 3)  # near a kink, where it matters, these differences are exact
    return (delta + (a - inside)).clamp(-3 - inside, 3 - inside) / 6


def _tanh_difference(a: Tensor, delta: Tensor) -> Tensor:
    # addition theorem: tanh(a + d) - tanh(a) = (1 - t^2) tanh(d) / (1 + t tanh(d)), t = tanh(a)
    # while delta is small; from one saturation to the other it is 0 / 0, and subtracting loses nothing
    t, u = torch.tanh(a), torch.tanh(delta.clamp(-1, 1))
    return torch.where(delta.abs() < 1, (1 - t * t) * u / (1 + t * u), torch.tanh(a + delta) - t)


def _softplus_difference(a: Tensor, delta: Tensor) -> Tensor:
    return torch.where(
        delta.abs() < 1,
        torch.log1p(torch.sigmoid(a) * torch.expm1(delta.clamp(-1, 1))),
        _softplus(a + delta) - _softplus(a),
    )


def _sigmoid_difference(a: Tensor, delta: Tensor) -> Tensor:
    # sigmoid is a rescaled tanh: sigmoid(a) = (1 + tanh(a / 2)) / 2
    return 0.5 * _tanh_difference(0.5 * a, 0.5 * delta)


def _gelu_slope(a: Tensor) -> Tensor:
    density = torch.exp(-0.5 * a * a) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(a / math.sqrt(2))) + a * density


def _gelu_difference(a: Tensor, delta: Tensor) -> Tensor:
    # integral of the slope over [a, a + delta]: four-point Gauss-Legendre, error O(delta^9), while
    # delta is small; where it is not, subtracting loses nothing.
    quadrature = torch.zeros_like(delta)
    for node, weight in (
        (0.8611363115940526, 0.34785484513745385),
        (0.3399810435848563, 0.6521451548625461),
    ):
        for sign in (-1, 1):
            quadrature = quadrature + 0.5 * weight * _gelu_slope(a + 0.5 * (1 + sign * node) * delta)
    return torch.where(delta.abs() < 0.03, delta * quadrature, F.gelu(a + delta) - F.gelu(a))


def _falling_exp(a: Tensor) -> Tensor:
    """exp(-a) or exp(a) of complex a, whichever does not overflow."""
    return torch.exp(torch.where(a.real > 0, -a, a))


def _softplus(a: Tensor) -> Tensor:
    if a.is_complex():
        return torch.log1p(_falling_exp(a)) + torch.where(a.real > 0, a, 0)
    return F.softplus(a, threshold=80.0)  # torch's default of 20 is a visible kink in float64


def _sigmoid(a: Tensor) -> Tensor:
    if a.is_complex():  # torch's own overflows where Re a << 0
        small = _falling_exp(a)
        return torch.where(a.real > 0, 1, small) / (1 + small)
    return torch.sigmoid(a)


LINEAR = Activation("linear", lambda a: a, torch.ones_like, lambda a, delta: delta)
RELU = Activation(
    "relu",
    torch.relu,
    lambda a: (a > 0).to(a.dtype),
    _relu_difference,
    lower=0.0,
    gain=math.sqrt(2),
    analytic=False,
)
HARD_SIGMOID = Activation(
    "hard_sigmoid",
    _hard_sigmoid,
    lambda a: (a.abs() < 3).to(a.dtype) / 6,
    _hard_sigmoid_difference,
    lower=0.0,
    upper=1.0,
    max_slope=1 / 6,
    analytic=False,
)
TANH = Activation("tanh", torch.tanh, lambda a: 1 - torch.tanh(a) ** 2, _tanh_difference, gain=5 / 3)
SIGMOID = Activation(
    "sigmoid",
    _sigmoid,
    lambda a: _sigmoid(a) * _sigmoid(-a),
    _sigmoid_difference,
    max_slope=0.25,
)
SOFTPLUS = Activation("softplus", _softplus, _sigmoid, _softplus_difference, gain=math.sqrt(2))
GELU = Activation(  # analytic too, but torch has no complex erf
    "gelu", F.gelu, _gelu_slope, _gelu_difference, gain=math.sqrt(2), max_slope=1.13, analytic=False
)

_BY_NAME = {phi.name: phi for phi in (LINEAR, RELU, HARD_SIGMOID, TANH, SIGMOID, SOFTPLUS, GELU)}
_MODULES = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "hard_sigmoid": nn.Hardsigmoid,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
}


def activation(name: str) -> Activation:
    """The activation of that name; ValueError lists the known ones."""
    if name not in _BY_NAME:
        raise ValueError(f"unknown activation {name!r}; choose one of {', '.join(sorted(_BY_NAME))}")
    return _BY_NAME[name]


def as_module(name: str) -> nn.Module:
    """The torch module that computes the activation of that name."""
    phi = activation(name)
    return nn.Softplus(threshold=80.0) if phi is SOFTPLUS else _MODULES[name]()


def from_module(module: nn.Module) -> Activation | None:
    """The activation a torch module computes, or None where the module is no activation we know."""
    if type(module) is nn.Softplus:
        return SOFTPLUS if module.beta == 1 else None
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return None
    return next((_BY_NAME[name] for name, kind in _MODULES.items() if type(module) is kind), None)

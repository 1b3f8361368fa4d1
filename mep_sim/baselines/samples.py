"""Squares of per-sample gradients, summed: by the factors of dense layers, or sample by sample for any module."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from circuits import Params
from mep_sim.optimizers.strategies.layers import mean_squares


def summed_squares(model: nn.Module, learning: Params, x: Tensor, pull: Tensor, share: Tensor) -> Params:
    """sum_i share_i g_i^2 by parameter name, g_i the gradient of pull_i' output_i, for x (B, ...), pull (B, C) and
    share (B,). The parameters `learning` are the model's; its samples must not act on each other."""
    layers = _dense_layers(model, learning)
    found = None if layers is None else _by_factors(model, learning, layers, x, pull, share)
    return _by_vmap(model, learning, x, pull, share) if found is None else found


def _by_vmap(model: nn.Module, learning: Params, x: Tensor, pull: Tensor, share: Tensor) -> Params:
    def pulled(params: Params, sample: Tensor, pull: Tensor) -> Tensor:
        return (functional_call(model, params, (sample[None],))[0] * pull).sum()

    params = {name: p.detach() for name, p in learning.items()}
    each = vmap(grad(pulled), in_dims=(None, 0, 0))(params, x, pull)
    return {name: torch.tensordot(share, g.square(), 1) for name, g in each.items()}


def _dense_layers(model: nn.Module, learning: Params) -> dict[str, nn.Linear] | None:
    """The Linear layers that hold all that learns, None where something else does, or shares it."""
    layers = {
        name: m
        for name, m in model.named_modules()
        if type(m) is nn.Linear and any(p.requires_grad for p in m.parameters())
    }
    own = {_join(name, p) for name, m in layers.items() for p, _ in m.named_parameters()}
    named = [name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    return layers if learning.keys() == set(named) and own.issuperset(named) else None


def _join(layer: str, parameter: str) -> str:
    return f"{layer}.{parameter}" if layer else parameter


def _by_factors(
    model: nn.Module, learning: Params, layers: dict[str, nn.Linear], x: Tensor, pull: Tensor, share: Tensor
) -> Params | None:
    """Of a layer with input u and output v, g_i = (dC/dv)_i u_i': its square is the product of theirs. None where a
    layer is not met exactly once with one row per sample."""
    met: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}

    def look(name: str, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        met[name].append((inputs[0].detach(), output))
        return output.clone()  # what comes next may work in place

    handles = [m.register_forward_hook(partial(look, name)) for name, m in layers.items()]
    try:
        with torch.enable_grad():
            output = model(x)
    finally:
        for handle in handles:
            handle.remove()
    if any(len(calls) != 1 or calls[0][0].shape[:-1] != x.shape[:1] for calls in met.values()):
        return None
    outputs = [calls[0][1] for calls in met.values()]
    errors = torch.autograd.grad(output, outputs, pull, materialize_grads=True)
    factors = {
        _join(name, "weight"): [(post, pre)]
        for name, ((pre, _),), post in zip(layers, met.values(), errors, strict=True)
    }
    return {name: len(x) * mean for name, mean in mean_squares(factors, learning, len(x), share).items()}

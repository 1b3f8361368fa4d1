"""Convolution and pooling as maps of a block; images are (B, C, H, W)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad

from circuits.maps import Map
from circuits.norms import conv_norm


class Convolution(Map):
    """nn.Conv2d with zero padding, any stride, dilation and groups."""

    def __init__(self, name: str, module: nn.Conv2d, params: Mapping[str, Tensor]):
        self.weight, self.bias = f"{name}.weight", f"{name}.bias" if module.bias is not None else None
        self.parameters = (self.weight,) if self.bias is None else (self.weight, self.bias)
        self.w, self.b = params[self.weight], None if self.bias is None else params[self.bias]
        self.geometry = (module.stride, module.padding, module.dilation, module.groups)

    def value(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, *self.geometry)

    def push(self, x: Tensor, d: Tensor) -> Tensor:
        return F.conv2d(d, self.w, None, *self.geometry)

    def pull(self, x: Tensor, e: Tensor) -> Tensor:
        return grad.conv2d_input(x.shape, self.w, e, *self.geometry)

    def local(self, x: Tensor, e: Tensor) -> dict[str, Tensor]:
        gradient = {self.weight: grad.conv2d_weight(x, self.w.shape, e, *self.geometry)}
        return gradient if self.bias is None else {**gradient, self.bias: e.sum((0, 2, 3))}

    def rows(self, x: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        stride, padding, dilation, groups = self.geometry
        if groups != 1:
            raise ValueError(f"{self.weight}: a grouped convolution is no single matrix; use groups = 1")
        patches = F.unfold(x, self.w.shape[2:], dilation, padding, stride)  # (B, in k k, positions)
        return e.flatten(2).transpose(1, 2).flatten(0, 1), patches.transpose(1, 2).flatten(0, 1)

    def norm(self, x: Tensor) -> float:
        return self._sigma

    @cached_property
    def _sigma(self) -> float:
        stride, _, dilation, groups = self.geometry
        return conv_norm(self.w, stride, groups, dilation)


class AveragePool(Map):
    """nn.AvgPool2d, a fixed convolution of every channel alone."""

    def __init__(self, module: nn.AvgPool2d):
        pair = nn.modules.utils._pair
        self.size, self.stride, self.padding = (
            pair(module.kernel_size),
            pair(module.stride),
            pair(module.padding),
        )

    def _kernel(self, x: Tensor) -> Tensor:
        return x.new_full((x.shape[1], 1, *self.size), 1 / math.prod(self.size))

    def value(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.size, self.stride, self.padding)

    def push(self, x: Tensor, d: Tensor) -> Tensor:
        return self.value(d)

    def pull(self, x: Tensor, e: Tensor) -> Tensor:
        geometry = (self.stride, self.padding, (1, 1), x.shape[1])
        return grad.conv2d_input(x.shape, self._kernel(x), e, *geometry)

    def norm(self, x: Tensor) -> float:
        return conv_norm(self._kernel(x), self.stride, x.shape[1])


class GlobalAveragePool(Map):
    """nn.AdaptiveAvgPool2d(1): (B, C, H, W) to (B, C, 1, 1)."""

    def value(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)

    def push(self, x: Tensor, d: Tensor) -> Tensor:
        return self.value(d)

    def pull(self, x: Tensor, e: Tensor) -> Tensor:
        return (e / math.prod(x.shape[2:])).expand(x.shape)

    def norm(self, x: Tensor) -> float:
        return 1 / math.sqrt(math.prod(x.shape[2:]))


class MaxPool(Map):
    """nn.MaxPool2d. Which unit of a window wins is decided in the free phase and held while nudged.

    Where a nudge pushes the winner below its neighbour the force would jump, and the state slide along that
    kink for ever; with the winners held the nudged state exists. The gradient is the same as beta -> 0.
    """

    affine = False

    def __init__(self, module: nn.MaxPool2d):
        self.window = (module.kernel_size, module.stride, module.padding, module.dilation)

    def _winners(self, x: Tensor) -> Select:
        _, winners = F.max_pool2d(x, *self.window, return_indices=True)
        return Select(winners)

    def value(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, *self.window)

    def push(self, x: Tensor, d: Tensor) -> Tensor:
        return self._winners(x).push(x, d)

    def pull(self, x: Tensor, e: Tensor) -> Tensor:
        return self._winners(x).pull(x, e)

    def around(self, x: Tensor) -> Map:
        return self._winners(x)

    def norm(self, x: Tensor) -> float:
        return self._winners(x).norm(x)


class Select(Map):
    """Takes one unit of each window: `winners` (B, C, h, w) index into H W."""

    def __init__(self, winners: Tensor):
        self.winners = winners

    def value(self, x: Tensor) -> Tensor:
        return x.flatten(2).gather(2, self.winners.flatten(2)).view(self.winners.shape)

    def push(self, x: Tensor, d: Tensor) -> Tensor:
        return self.value(d)

    def pull(self, x: Tensor, e: Tensor) -> Tensor:
        into = e.new_zeros(*x.shape[:2], math.prod(x.shape[2:]))
        return into.scatter_add(2, self.winners.flatten(2), e.flatten(2)).view(x.shape)

    def norm(self, x: Tensor) -> float:
        """Root of how many windows one unit wins at most."""
        wins = torch.zeros_like(x.flatten(2)).scatter_add(
            2, self.winners.flatten(2), torch.ones_like(self.winners.flatten(2), dtype=x.dtype)
        )
        return math.sqrt(wins.max().item())

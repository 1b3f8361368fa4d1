"""A layer's weight and bias as one matrix [W, b], whose inputs end with a 1, and what its samples tell it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from circuits import Params
from circuits.base import Pairs


def bias_of(weight: str) -> str:
    """The name of the bias that belongs to a weight."""
    return weight.removesuffix("weight") + "bias"


def joined(params: Params, weight: str) -> Tensor:
    """[W, b] of a layer, (n_out, n_in + 1), or W alone, (n_out, n_in), where `params` has no bias of it; of a kernel,
    its rows flattened."""
    w = params[weight].flatten(1)
    bias = params.get(bias_of(weight))
    return w if bias is None else torch.cat([w, bias[:, None]], 1)


def parted(layer: Tensor, like: Params, weight: str) -> dict[str, Tensor]:
    """The parameters of a layer from [W, b]."""
    n_in = like[weight][0].numel()
    parts = {weight: layer[:, :n_in].reshape(like[weight].shape)}
    return parts | ({bias_of(weight): layer[:, n_in]} if layer.shape[1] > n_in else {})


def joined_pairs(factors: Mapping[str, Pairs], params: Params, weight: str) -> Pairs:
    """The pairs of a weight, a 1 appended to the inputs where `params` has the layer's bias."""
    if bias_of(weight) not in params:
        return factors[weight]
    return [(post, F.pad(pre, (0, 1), value=1.0)) for post, pre in factors[weight]]


def mean_squares(
    factors: Mapping[str, Pairs], params: Params, batch: int, share: Tensor | None = None
) -> dict[str, Tensor]:
    """Mean over samples of the squared gradient of each alone, for those weights and their biases that `params` has:
    the diagonal of the empirical Fisher matrix at the targets given. share (B,): what each sample counts, 1 unless
    given."""
    found = {}
    for weight, pairs in factors.items():
        if weight in params:
            found[weight] = _mean_square(pairs, batch, share).reshape(params[weight].shape)
        if (bias := bias_of(weight)) in params:
            ones = [(post, post.new_ones(len(post), 1)) for post, _ in pairs]
            found[bias] = _mean_square(ones, batch, share)[:, 0]
    return found


def _mean_square(pairs: Pairs, batch: int, share: Tensor | None) -> Tensor:
    """Mean over samples of (sum of post' pre over pairs and positions)^2, entry by entry (out, in)."""
    if any(len(post) != batch for post, _ in pairs):
        # positions of a convolution: whole gradients, one by one
        each = sum(
            torch.einsum("bpo,bpi->boi", post.unflatten(0, (batch, -1)), pre.unflatten(0, (batch, -1)))
            for post, pre in pairs
        )
        squares = each.square() if share is None else each.square() * share[:, None, None]
        return squares.sum(0) / batch
    total = 0
    for (post, pre), (post2, pre2) in itertools.product(_from_the_first(pairs), repeat=2):
        both = post * post2 if share is None else post * post2 * share[:, None]
        total = total + both.T @ (pre * pre2)
    return total / batch


def _from_the_first(pairs: Pairs) -> Pairs:
    """The same sum of products, with activities counted from those of the first pair: two phases, as they pulse, are
    large beside their difference, and more so are the squares."""
    first = pairs[0][1]
    return [(sum(post for post, _ in pairs), first), *((post, pre - first) for post, pre in pairs[1:])]

"""Models and inputs without an energy: each is refused by name, in one line, with a way out."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from circuits import FeedforwardCircuit, Residual


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


SHARED = linear()


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class Twice(nn.Linear):
    def forward(self, x):
        return super().forward(super().forward(x))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([nn.Conv1d(1, 1, 3), linear()], r"module 0 \(Conv1d\) has no energy here; build the model of Linear, Conv2d"),
        ([linear(), nn.LSTM(4, 4), linear()], r"module 1 \(LSTM\) has no energy here"),
        ([linear(), nn.Softplus(beta=2), linear()], r"module 1 \(Softplus\) has no energy"),
        ([linear(), nn.GELU("tanh"), linear()], r"module 1 \(GELU\) has no energy"),
        ([linear(), nn.Sequential(nn.Tanh(), nn.Dropout2d()), linear()], r"module 1.1 \(Dropout2d\)"),
        ([prune.random_unstructured(linear(), "weight", 0.5), linear()], r"module 0 \(Linear\) computes its weight"),
        ([Twice(4, 4), linear()], r"module 0 \(Twice\) has no energy"),
        ([linear(), Doubled(linear()), linear()], r"module 1 \(Doubled\) has no energy"),
        ([linear(), nn.BatchNorm1d(4, track_running_stats=False), linear()], "has no running statistics"),
        ([nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), linear()], "pads by circular.*use zero padding"),
        ([nn.Conv2d(1, 1, 3, padding="same"), linear()], "pads by zeros, same; use zero padding of a given width"),
        ([nn.MaxPool2d(2, ceil_mode=True), linear()], r"module 0 \(MaxPool2d\) uses ceil_mode"),
        ([nn.MaxPool2d(2, return_indices=True), linear()], "or return_indices; leave them out"),
        ([nn.AvgPool2d(2, ceil_mode=True), linear()], r"AvgPool2d\) uses ceil_mode"),
        ([nn.AvgPool2d(2, padding=1, count_include_pad=False), linear()], "excludes padding"),
        ([nn.AvgPool2d(2, divisor_override=3), linear()], "divisor_override"),
        ([nn.AdaptiveAvgPool2d(2), linear()], "has output size 2; use 1, or AvgPool2d"),
        ([nn.Flatten(2), linear()], r"flattens only some dimensions; use Flatten\(\)"),
        ([linear(), nn.Embedding(3, 4), linear()], r"module 1 \(Embedding\) is not at the input"),
        ([nn.Embedding(3, 4, max_norm=1.0), linear()], "max_norm"),
        ([nn.Embedding(3, 4, sparse=True), linear()], "sparse"),
        ([Residual(nn.Embedding(3, 4)), linear()], r"module 0 \(Residual\) looks up indices; put Embedding before it"),
        ([linear(), nn.ReLU()], "the output layer ends in relu; leave it linear"),
        ([linear(), Residual(linear()), nn.Sigmoid()], "the output layer ends in sigmoid"),
        ([nn.Flatten()], "no Linear or Conv2d layer"),
        ([nn.Tanh(), nn.LayerNorm(4)], "no Linear or Conv2d layer"),
        ([], "the model is empty"),
        ([Residual(linear(), shortcut=nn.Sequential(nn.Tanh(), linear())), linear()], "module 0 must be linear"),
        ([Residual(linear(), shortcut=nn.Sequential(linear(), linear())), linear()], "one layer at most"),
        ([Residual(linear(), shortcut=Residual(linear())), linear()], "one layer at most"),
        ([Residual(linear(), shortcut=nn.Conv1d(1, 1, 1)), linear()], r"module 0.shortcut \(Conv1d\)"),
        ([SHARED, nn.Tanh(), SHARED], r"module 2 \(Linear\) shares a parameter with module 0 \(Linear\)"),
    ],
)  # fmt: skip
def test_models_without_an_energy_are_refused_with_a_way_out(modules, message):
    with pytest.raises(ValueError, match=message) as caught:
        FeedforwardCircuit(nn.Sequential(*modules))
    assert "\n" not in str(caught.value)


def test_an_empty_residual_block_is_refused():
    with pytest.raises(ValueError, match="a residual block without a body"):
        Residual()


CONV = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
EMBEDDING = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 2))
NORM = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
POOL = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (nn.Sequential(linear()), torch.zeros(3, 5), r"\(3, 5\).*takes floats \(B, 4\)"),
        (nn.Sequential(linear()), torch.zeros(4), r"takes floats \(B, 4\)"),
        (nn.Sequential(linear()), torch.zeros(3, 4, dtype=torch.int64), r"int64; this circuit takes floats"),
        (CONV, torch.zeros(3, 1, 4, 4), r"takes images \(B, 2, H, W\)"),
        (CONV, torch.zeros(2, 4, 4), r"takes images \(B, 2, H, W\)"),
        (CONV, torch.zeros(3, 2, 4, 4, dtype=torch.uint8), r"uint8; this circuit takes floats"),
        (CONV, torch.zeros(3, 2, 5, 5), r"the model does not take inputs of shape \(2, 5, 5\)"),
        (POOL, torch.zeros(3, 4, 4), r"takes images \(B, C, H, W\)"),
        (EMBEDDING, torch.zeros(3, 3), r"takes integer indices \(B, length\)"),
        (EMBEDDING, torch.full((3, 3), 5), "takes indices from 0 to 4"),
        (EMBEDDING, torch.full((3, 3), -1), "takes indices from 0 to 4"),
        (EMBEDDING, torch.zeros(3, 4, dtype=torch.int64), r"does not take inputs of shape \(4,\)"),
        (NORM, torch.zeros(3, 1), r"does not take inputs of shape \(1,\)"),
        (nn.Sequential(nn.LayerNorm(4), linear()), torch.zeros(3, 1), r"does not take inputs of shape \(1,\)"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear()), torch.zeros(3, 4), "images"),
        (nn.Sequential(nn.Conv2d(1, 2, 3)), torch.zeros(3, 1, 4, 4), r"the output has shape .*with Flatten\(\)"),
    ],
)  # fmt: skip
def test_inputs_are_checked(model, x, message):
    circuit = FeedforwardCircuit(model)
    with pytest.raises(ValueError, match=message):
        circuit.bind(circuit.params(), x)


def test_the_layout_of_images_is_known_from_the_first_input_or_its_shape():
    circuit = FeedforwardCircuit(CONV)
    with pytest.raises(ValueError, match="give input_shape=, or bind an input first"):
        _ = circuit.layout
    circuit.bind(circuit.params(), torch.zeros(1, 2, 4, 4))
    assert circuit.layout == FeedforwardCircuit(CONV, input_shape=(2, 4, 4)).layout
    assert circuit.layout.shapes == ((3, 2, 2), (2,))
    assert circuit.layout.sizes == (12, 2)

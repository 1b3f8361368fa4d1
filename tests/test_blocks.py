"""Where models are cut into blocks, and what blocks compute: of named models and of any."""

import copy
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import functional as autograd

from circuits import FeedforwardCircuit, Residual
from circuits.activations import as_module
from circuits.blocks import Block, Chain, parse
from mep_sim.optimizers import BackpropGradient, EPGradient
from mep_sim.settling import settle
from tests.conformance import flat

seeds = st.integers(0, 2**31)

# -- where models are cut ------------------------------------------------------------------------------


def cuts(*modules: nn.Module) -> list[str]:
    """A line per block: its modules, and "(modules + shortcut of state) modules" where it skips from a state."""
    lines = []
    for plan in parse(nn.Sequential(*modules)):
        head, shortcut, tail = (
            " ".join(type(s.module).__name__ for s in sites)
            for sites in (plan.head, plan.shortcut, plan.tail)
        )
        beside = f"{shortcut} of {plan.skip}" if shortcut else plan.skip
        lines.append(head if plan.skip is None else f"({head or 'as is'} + {beside}) {tail}".strip())
    return lines


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ([linear(), nn.Tanh(), linear()], ["Linear Tanh", "Linear"]),
        ([linear(), linear()], ["Linear", "Linear"]),
        ([linear(), nn.ReLU(), nn.Tanh(), linear()], ["Linear ReLU", "Tanh", "Linear"]),
        (
            [nn.Identity(), nn.Sequential(linear(), nn.Sequential(nn.Tanh())), linear()],
            ["Linear Tanh", "Linear"],
        ),
        (
            [
                nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), conv(), nn.Tanh()),
                nn.Sequential(nn.AvgPool2d(2), nn.Dropout(), nn.Flatten(), linear()),
            ],
            ["Conv2d BatchNorm2d ReLU", "MaxPool2d Conv2d Tanh", "AvgPool2d Dropout Flatten Linear"],
        ),
        ([linear(), nn.LayerNorm(4), linear(), nn.LayerNorm(4)], ["Linear LayerNorm", "Linear LayerNorm"]),
        ([nn.Embedding(9, 4), nn.Flatten(), linear()], ["Embedding", "Flatten Linear"]),
        # a smooth activation adds up with the skipped state in one block, a kinked one has a state to hold
        (
            [linear(), Residual(linear(), nn.Tanh()), nn.LayerNorm(4), linear()],
            ["Linear", "(Linear Tanh + 0) LayerNorm", "Linear"],
        ),
        (
            [linear(), Residual(linear(), nn.ReLU()), linear()],
            ["Linear", "Linear ReLU", "(as is + 0)", "Linear"],
        ),
        (
            [conv(), Residual(conv(), nn.ReLU(), conv(), shortcut=conv()), nn.ReLU(), nn.Flatten(), linear()],
            ["Conv2d", "Conv2d ReLU", "(Conv2d + Conv2d of 0) ReLU", "Flatten Linear"],
        ),
        ([Residual(linear(), nn.Tanh()), linear()], ["(Linear Tanh + -1)", "Linear"]),
        (
            [Residual(linear(), shortcut=nn.Sequential(nn.AvgPool2d(2), linear())), linear()],
            ["(Linear + AvgPool2d Linear of -1)", "Linear"],
        ),
        (
            [linear(), Residual(Residual(linear(), nn.Tanh()), linear()), linear()],
            ["Linear", "(Linear Tanh + 0)", "(Linear + 0)", "Linear"],
        ),
        (
            [linear(), Residual(linear(), Residual(linear(), nn.Tanh())), linear()],
            ["Linear", "Linear", "(Linear Tanh + 1)", "(as is + 0)", "Linear"],
        ),
        ([Residual(linear()), Residual(linear())], ["(Linear + -1)", "(Linear + 0)"]),
        ([linear(), Residual(nn.Tanh()), linear()], ["Linear", "(Tanh + 0)", "Linear"]),
    ],
)
def test_models_are_cut_after_activations_and_before_weights(modules, expected):
    assert cuts(*modules) == expected


def test_one_activation_module_may_serve_all_layers():
    act = nn.Tanh()
    assert cuts(linear(), act, linear(), act, linear()) == ["Linear Tanh", "Linear Tanh", "Linear"]


def test_names_are_the_circuits_own():
    model = nn.Sequential(OrderedDict(first=linear(), act=nn.Tanh(), block=Residual(linear()), head=linear()))
    circuit = FeedforwardCircuit(model)
    assert circuit.weights == ("model.first.weight", "model.block.body.0.weight", "model.head.weight")
    assert all(
        circuit.get_submodule(name.rpartition(".")[0]).weight is circuit.params()[name]
        for name in circuit.weights
    )
    assert [circuit.inputs_of(layer) for layer in range(3)] == [(-1,), (0, 0), (1,)]
    assert circuit.layer_parameters(1) == ("model.block.body.0.weight", "model.block.body.0.bias")


# -- any model -----------------------------------------------------------------------------------------

ACTIVATIONS = (
    "relu",
    "tanh",
    "sigmoid",
    "softplus",
    "gelu",
)  # torch's hard sigmoid differentiates in float32


@st.composite
def vector_part(draw, n: int) -> tuple[list[nn.Module], int]:
    out = draw(st.integers(1, 5))
    kind = draw(st.integers(0, 7))
    act = as_module(draw(st.sampled_from(ACTIVATIONS)))
    parts = [
        ([nn.Linear(n, out, bias=draw(st.booleans()))], out),
        ([nn.Linear(n, out), act], out),
        ([act], n),
        ([nn.BatchNorm1d(n, affine=draw(st.booleans()))], n),
        ([nn.LayerNorm(n, eps=0.1), nn.Dropout(0.5)], n),
        ([Residual(nn.Linear(n, n), act)], n),
        ([Residual(Residual(nn.Linear(n, n), act), nn.Linear(n, n)), nn.Identity()], n),
        ([Residual(nn.Sequential(nn.Linear(n, 3), act), nn.Linear(3, out), shortcut=nn.Linear(n, out))], out),
    ]
    return parts[kind]


@st.composite
def image_part(draw, c: int) -> tuple[list[nn.Module], int]:
    out = draw(st.integers(1, 3))
    act = as_module(draw(st.sampled_from(ACTIVATIONS)))
    parts = [
        ([nn.Conv2d(c, out, 3, padding=1, stride=draw(st.integers(1, 2))), act], out),
        ([nn.Conv2d(c, 2 * c, (1, 2), groups=c, padding=1, bias=False)], 2 * c),
        ([nn.BatchNorm2d(c), act], c),
        ([nn.MaxPool2d(2, stride=1, padding=1)], c),
        ([nn.AvgPool2d(2, padding=1)], c),
        ([Residual(nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c), act)], c),
        ([Residual(nn.Conv2d(c, out, 3, 2, padding=1), shortcut=nn.Conv2d(c, out, 1, 2)), act], out),
    ]
    return parts[draw(st.integers(0, len(parts) - 1))]


@st.composite
def models(draw) -> tuple[nn.Sequential, Tensor]:
    """A model in float64 and eval mode, with statistics of no data in particular, and inputs (3, ...)."""
    start, rng = (
        draw(st.sampled_from(["vector", "image", "tokens"])),
        torch.Generator().manual_seed(draw(seeds)),
    )
    modules: list[nn.Module] = []
    if start == "image":
        x, channels = torch.randn(3, 2, 5, 4, generator=rng, dtype=torch.float64), 2
        for _ in range(draw(st.integers(0, 4))):
            part, channels = draw(image_part(channels))
            modules += part
        modules += [nn.AdaptiveAvgPool2d(1)] if draw(st.booleans()) else []
        modules.append(nn.Flatten())
    elif start == "tokens":
        x = torch.randint(7, (3, 2), generator=rng)
        modules += [nn.Embedding(7, 2, padding_idx=0), nn.Flatten()]
    else:
        x = torch.randn(3, 4, generator=rng, dtype=torch.float64)
    n = nn.Sequential(*copy.deepcopy(modules)).double().eval()(x).shape[1]
    for _ in range(draw(st.integers(0, 4))):
        part, n = draw(vector_part(n))
        modules += part
    model = nn.Sequential(*modules, nn.Linear(n, 3)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.5, generator=rng)
        for b in model.buffers():
            if b.is_floating_point():
                b.uniform_(0.5, 2.0, generator=rng)
    return model, x


@settings(max_examples=40, deadline=None)
@given(models())
def test_any_model_settles_to_its_forward_pass_and_differentiates_as_it_does(drawn):
    """The circuit shares the model's parameters, its free equilibrium is the model's output in eval mode, of zero
    energy, and one sweep of errors is the model's gradient."""
    model, x = drawn
    circuit = FeedforwardCircuit(model)
    assert {id(p) for p in circuit.parameters()} == {id(p) for p in model.parameters()}
    system = circuit.bind(circuit.params(), x)
    free = settle(system)
    assert torch.allclose(system.readout(free.state), model(x), rtol=1e-9, atol=1e-11)
    assert free.converged.all()
    assert system.energy(free.state.clone()).abs().max() < 1e-24 * (1 + free.state.abs().max() ** 2)
    assert sum(circuit.layout.sizes) == free.state.shape[1]
    labels = torch.tensor([0, 2, 1])
    one_sweep = EPGradient("mse", phases="one_sweep").estimate(circuit, circuit.params, x, labels)
    backprop = BackpropGradient("mse").estimate(circuit, circuit.params, x, labels)
    assert one_sweep.gradient.keys() == backprop.gradient.keys() == circuit.params().keys()
    found, expected = flat(one_sweep.gradient), flat(backprop.gradient)
    assert (found - expected).abs().max() <= 1e-9 * (1 + expected.abs().max())


@settings(max_examples=25, deadline=None)
@given(models(), seeds, st.floats(-3, 0))
def test_blocks_move_push_and_pull_as_their_run_does(drawn, seed, exponent):
    """move is the difference of two runs, push and pull are the Jacobian's products, in both inputs of a block."""
    model, x = drawn
    rng = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=rng, dtype=torch.float64)

    circuit = FeedforwardCircuit(model)
    params, states = {n: p.detach() for n, p in circuit.params().items()}, [x]
    for plan in circuit.plans:
        block = plan.bind(params)
        inputs = (states[-1],) if plan.skip is None else (states[-1], states[plan.skip + 1])
        tapes, f = block.run(*inputs, *[None] * (2 - len(inputs)))
        states.append(f)
        if not inputs[0].is_floating_point():
            continue
        held, d = block.around(tapes), [10**exponent * normal(i) for i in inputs]
        both = d + [None] * (2 - len(d))
        run = lambda *i, held=held: held.run(*i, *[None] * (2 - len(i)))[1]  # noqa: E731
        after = run(*(i + change for i, change in zip(inputs, d, strict=True)))
        moved, change = held.move(tapes, *both)
        assert torch.allclose(change, after - f, rtol=1e-8, atol=1e-11)
        _, pushed = autograd.jvp(run, inputs, tuple(d))
        assert torch.allclose(held.push(tapes, *both), pushed, rtol=1e-9, atol=1e-12)
        # around the moved inputs, where what is not affine has another Jacobian
        e, at = normal(f), [i + change for i, change in zip(inputs, d, strict=True)]
        _, pulled = autograd.vjp(run, tuple(at), e)
        for ours, expected in zip(held.pull(moved, e), pulled, strict=False):
            assert torch.allclose(ours, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("last", [nn.Tanh(), nn.ReLU()])
def test_a_block_may_be_bent_at_its_activation(last):
    """Another input of the last map, another prediction and slope; nothing below knows."""
    body = Residual(nn.Conv2d(2, 3, 3, padding=1), shortcut=nn.Conv2d(2, 3, 1))
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Tanh(), body, last, nn.Flatten(), nn.Linear(27, 2)).double()
    plan = FeedforwardCircuit(model).plans[1]
    block = plan.bind({f"model.{n}": p.detach() for n, p in model.named_parameters()})
    rng = torch.Generator().manual_seed(0)
    x, d, e = (torch.randn(3, c, 3, 3, generator=rng, dtype=torch.float64) for c in (2, 2, 3))
    plain, f = block.run(x, x)
    moved, change = block.move(plain, d, d)
    seen = plain[2].base[-1]
    for tapes, prediction, of in (
        (plain, f, plan.phi.value),
        (moved, change, lambda at: last(at + seen) - f),
    ):
        same, again = block.bent(tapes, block.bend(tapes))
        assert torch.equal(again, prediction)
        assert torch.equal(block.pull(same, e)[0], block.pull(tapes, e)[0])
        at = torch.randn(f.shape, generator=rng, dtype=torch.float64)
        bent, elsewhere = block.bent(tapes, at)
        assert torch.equal(block.bend(bent), at)
        assert torch.allclose(elsewhere, of(at), rtol=1e-10, atol=1e-13)
        pre = at if tapes is plain else seen + at
        linear = Block(block.head, block.skip, block.shortcut, Chain(()))
        for ours, expected in zip(
            block.pull(bent, e), linear.pull(tapes, plan.phi.slope(pre) * e), strict=True
        ):
            assert torch.allclose(ours, expected, rtol=1e-10, atol=1e-13)

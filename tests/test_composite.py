"""The optimizer as a whole: it learns, it is a torch optimizer, it resumes, it complains."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import devices
from circuits import FeedforwardCircuit, HopfieldCircuit
from circuits.chip import Chip
from mep_sim import checkpoint, sdmep, smep
from mep_sim.optimizers import (
    AdamUpdate,
    AutoBeta,
    BackpropGradient,
    CompositeOptimizer,
    DionUpdate,
    EPGradient,
    ErrorFeedback,
    ImplicitGradient,
    MuonUpdate,
    NaturalGradient,
    NoFeedback,
    PlainUpdate,
    SpectralConstraint,
)
from mep_sim.settling import EPWarning
from tests.device_conformance import generator

XOR = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]), torch.tensor([0, 1, 1, 0])


def network(sizes=(4, 16, 3), seed: int = 0) -> nn.Sequential:
    return FeedforwardCircuit.from_sizes(sizes, "tanh", rng=generator(seed)).model


def toy(samples: int = 64) -> tuple[Tensor, Tensor]:
    """Three classes by a linear rule."""
    rng = generator(9)
    x = torch.randn(samples, 4, generator=rng)
    return x, (x @ torch.randn(4, 3, generator=rng)).argmax(1)


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return nn.functional.cross_entropy(model(x), y).item()


def same_parameters(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# -- it learns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_xor_is_learnt_to_the_last_sample(seed):
    """100 % at the default bound on the weights, and confidently where gamma leaves room for it."""
    for gamma, cost in ((2.0, 0.5), (5.0, 0.05)):
        model = network((2, 16, 2), seed)
        optimizer = smep(model.parameters(), model=model, lr=0.05, mode="ep", gamma=gamma)
        for _ in range(100):
            optimizer.step(x=XOR[0], target=XOR[1])
        assert torch.equal(model(XOR[0]).argmax(1), XOR[1])
        assert cross_entropy(model, *XOR) < cost


GRADIENTS = {
    "ep": EPGradient(),
    "centred": EPGradient(phases="centred"),
    "one_sweep": EPGradient(phases="one_sweep"),
    "euler": EPGradient(settle_steps=100, settle_lr=0.05),
    "backprop": BackpropGradient(),
    "implicit": ImplicitGradient(),
}
UPDATES = {
    "plain": (PlainUpdate(), 0.1),
    "adam": (AdamUpdate(), 0.03),
    "muon": (MuonUpdate(), 0.05),
    "dion": (DionUpdate(2, dion_thresh=0), 0.05),
}


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_every_gradient_learns(gradient):
    learns(GRADIENTS[gradient], *UPDATES["plain"])


@pytest.mark.parametrize("update", UPDATES)
def test_every_update_learns(update):
    learns(GRADIENTS["ep"], *UPDATES[update])


def learns(gradient, update, lr: float) -> None:
    """The cost halves in 25 steps, and step() returns it as it was before the step."""
    model, (x, y) = network(), toy()
    before = cross_entropy(model, x, y)
    optimizer = CompositeOptimizer(model.parameters(), gradient, update, lr=lr, model=model)
    losses = [optimizer.step(x=x, target=y).item() for _ in range(25)]
    if gradient != GRADIENTS["euler"]:  # whose output is not quite the forward pass
        assert losses[0] == pytest.approx(before, rel=1e-5)
    assert cross_entropy(model, x, y) < before / 2


def test_a_hopfield_network_learns():
    circuit, (x, y) = HopfieldCircuit((4, 32, 3), rng=generator()), toy()
    gradient = EPGradient(beta=0.3, phases="centred")
    optimizer = CompositeOptimizer(circuit.parameters(), gradient, AdamUpdate(), lr=0.03, model=circuit)
    losses = [optimizer.step(x=x, target=y).item() for _ in range(25)]
    assert losses[-1] < losses[0] / 2


def test_targets_may_be_values():
    """Squared error on a linear map: a linear network recovers it."""
    rng = generator(3)
    # single precision would have nothing left to settle for where the targets are reached
    x, truth = (torch.randn(n, 4, generator=rng, dtype=torch.float64) for n in (64, 2))
    model = network((4, 2)).double()
    gradient = EPGradient("mse", beta=0.1)
    optimizer = CompositeOptimizer(model.parameters(), gradient, feedback=NoFeedback(), lr=0.5, model=model)
    for _ in range(40):
        optimizer.step(x=x, target=x @ truth.T)
    assert torch.allclose(model[0].weight, truth, rtol=0, atol=1e-3)


# -- it is a torch optimizer -------------------------------------------------------------------------


@pytest.mark.parametrize("update", UPDATES)
def test_step_with_a_batch_is_backward_and_step(update):
    """With backprop as the gradient both forms are the same training."""
    rule, lr = UPDATES[update]
    models, (x, y) = [network(), network()], toy()
    direct, own = (
        CompositeOptimizer(m.parameters(), update=rule, lr=lr, model=m if i == 0 else None)
        for i, m in enumerate(models)
    )
    for _ in range(5):
        direct.step(x=x, target=y)
        own.zero_grad()
        nn.functional.cross_entropy(models[1](x), y).backward()
        own.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-5)


def test_a_closure_is_called_with_gradients_on():
    model, (x, y) = network(), toy()
    optimizer = CompositeOptimizer(model.parameters(), lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    before = cross_entropy(model, x, y)
    assert optimizer.step(closure).item() == pytest.approx(before)
    assert cross_entropy(model, x, y) < before


def test_one_step_is_the_recipe_by_hand():
    """project(W - lr sqrt(out / in) polar(g + carry)) with every strategy taken from its own test."""
    model, (x, y) = network(), toy()
    w = model[0].weight.detach().clone()
    optimizer = CompositeOptimizer(
        model.parameters(),
        BackpropGradient(),
        MuonUpdate(30, "cubic"),
        SpectralConstraint(0.7),
        lr=0.1,
        model=model,
    )
    gradient = optimizer.compute_gradient(x, y).gradient["model.0.weight"].clone()
    optimizer.step()
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    u, sigma, vh = torch.linalg.svd(w - 0.1 * 2 * u @ vh, full_matrices=False)
    expected = u * sigma.clamp(max=0.7) @ vh
    assert torch.allclose(model[0].weight, expected, rtol=0, atol=1e-5)


def test_the_gradient_can_be_looked_at_and_changed_before_the_step():
    model, (x, y) = network(), toy()
    optimizer = CompositeOptimizer(model.parameters(), feedback=NoFeedback(), lr=0.1, model=model)
    estimate = optimizer.compute_gradient(x, y)
    assert optimizer.estimate is estimate
    before = [p.detach().clone() for p in model.parameters()]
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()
    moved = torch.cat([(p - q).flatten() for p, q in zip(model.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize("mode", ["ep", "backprop"])
def test_clipping_bounds_the_norm_over_all_parameters(mode):
    """A gradient within the bound passes; one beyond it keeps its direction. The carry sees what is clipped."""
    (x, y), gradient = toy(), {"ep": EPGradient(), "backprop": BackpropGradient()}[mode]
    whole, model = network(), network()
    exact = (
        CompositeOptimizer(whole.parameters(), gradient, lr=0.1, model=whole).compute_gradient(x, y).gradient
    )
    norm = torch.cat([g.flatten() for g in exact.values()]).norm().item()
    for clip_norm, factor in ((2 * norm, 1.0), (0.1 * norm, 0.1)):
        model = network()
        before = copy.deepcopy(model)
        optimizer = CompositeOptimizer(model.parameters(), gradient, lr=0.1, model=model, clip_norm=clip_norm)
        optimizer.step(x=x, target=y)
        for p, q, g in zip(model.parameters(), before.parameters(), exact.values(), strict=True):
            assert torch.allclose(p, q - 0.1 * factor * g, rtol=0, atol=1e-6)
            assert torch.allclose(optimizer.state[p]["carry"], 0.9 * factor * g, rtol=0, atol=1e-6)


def test_zero_grad_and_parameters_without_a_gradient():
    model, (x, y) = network(), toy()
    optimizer = CompositeOptimizer(model.parameters(), lr=0.1, model=model)
    optimizer.compute_gradient(x, y)
    assert all(p.grad is not None for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    before = copy.deepcopy(model)
    optimizer.step()
    assert same_parameters(model, before)


def test_only_the_parameters_handed_over_move():
    model, (x, y) = network(), toy()
    before = copy.deepcopy(model)
    CompositeOptimizer(model[2].parameters(), lr=0.1, model=model).step(x=x, target=y)
    assert same_parameters(model[0], before[0])
    assert not same_parameters(model[2], before[2])
    assert all(p.grad is None for p in model[0].parameters())


def test_a_frozen_parameter_stays():
    model, (x, y) = network(), toy()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    CompositeOptimizer(model.parameters(), EPGradient(), lr=0.1, model=model).step(x=x, target=y)
    assert torch.equal(model[0].weight, before[0].weight)
    assert not torch.equal(model[0].bias, before[0].bias)


def test_parameter_groups_have_their_own_learning_rate():
    model, (x, y) = network(), toy()
    before = copy.deepcopy(model)
    groups = [{"params": model[0].parameters(), "lr": 0.3}, {"params": model[2].parameters()}]
    optimizer = CompositeOptimizer(groups, lr=0.1, model=model)
    optimizer.step(x=x, target=y)
    for layer, lr in ((0, 0.3), (2, 0.1)):
        step = before[layer].weight - lr * optimizer.estimate.gradient[f"model.{layer}.weight"]
        assert torch.allclose(model[layer].weight, step, rtol=0, atol=1e-7)


def test_parameter_groups_have_their_own_update():
    """Adam's first step is lr in the direction of the sign, on the group that asks for it only."""
    model, (x, y) = network(), toy()
    before = copy.deepcopy(model)
    optimizer = CompositeOptimizer(model[0].parameters(), lr=0.1, model=model)
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.02, "update": AdamUpdate()})
    optimizer.step(x=x, target=y)
    gradient = optimizer.estimate.gradient
    plain = before[0].weight - 0.1 * gradient["model.0.weight"]
    adam = before[2].weight - 0.02 * gradient["model.2.weight"].sign()
    assert torch.allclose(model[0].weight, plain, rtol=0, atol=1e-7)
    assert torch.allclose(model[2].weight, adam, rtol=0, atol=1e-5)


def test_every_parameter_is_given_its_role():
    circuit = FeedforwardCircuit.from_sizes((4, 8, 8, 3))
    optimizer = CompositeOptimizer(circuit.parameters(), model=circuit)
    roles = {name: optimizer.role(name) for name in circuit.params()}
    assert [roles[name] for name in circuit.weights] == ["hidden", "hidden", "head"]
    assert {role for name, role in roles.items() if name not in circuit.weights} == {"vector"}
    text = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = CompositeOptimizer(text.parameters(), model=text)
    roles = [optimizer.role(name) for name, _ in optimizer.circuit.named_parameters()]
    assert roles == ["embedding", "hidden", "vector", "head", "vector"]
    unnamed = CompositeOptimizer([nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))])
    assert [unnamed.role(f"param-{i}") for i in range(2)] == ["hidden", "vector"]


def test_a_learning_rate_scheduler_of_torch_sets_the_step():
    """Gradient 1 throughout, lr 1 falling by half each step: 1 + 1/2 + 1/4 + 1/8."""
    p = nn.Parameter(torch.zeros(3))
    optimizer = CompositeOptimizer([p], feedback=NoFeedback(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for _ in range(4):
        p.grad = torch.ones(3)
        optimizer.step()
        scheduler.step()
    assert torch.allclose(p, torch.full((3,), -1.875))


# -- it resumes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("through_a_file", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda m: smep(m.parameters(), model=m),
        lambda m: sdmep(m.parameters(), model=m, rank=2, dion_thresh=0),
        lambda m: smep(m.parameters(), model=m, use_error_feedback=True, gamma=0.5),
        lambda m: CompositeOptimizer(m.parameters(), EPGradient(), AdamUpdate(), model=m),
        lambda m: CompositeOptimizer(m.parameters(), EPGradient(phases="random_sign", seed=5), model=m),
        lambda m: CompositeOptimizer(m.parameters(), EPGradient(beta=AutoBeta(remeasure=3)), model=m),
        lambda m: CompositeOptimizer(m.parameters(), NaturalGradient(refresh=3), lr=0.1, model=m),
        lambda m: CompositeOptimizer(
            [{"params": m[0].parameters()}, {"params": m[2].parameters(), "update": MuonUpdate()}], model=m
        ),
    ],
    ids=["smep", "sdmep", "error feedback", "adam", "random sign", "automatic beta", "natural", "groups"],
)
def test_training_goes_on_bit_for_bit(tmp_path, make, through_a_file):
    model, (x, y) = network(), toy()
    optimizer = make(model)
    for _ in range(4):
        optimizer.step(x=x, target=y)
    optimizer.param_groups[0]["lr"] = 0.007
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if through_a_file:
        checkpoint.save(tmp_path / "c.pt", state)
        state = checkpoint.load(tmp_path / "c.pt")
    else:
        state = copy.deepcopy(state)
    resumed = network(seed=1)
    resumed.load_state_dict(state["model"])
    again = make(resumed)
    again.load_state_dict(state["optimizer"])
    for _ in range(4):
        assert torch.equal(optimizer.step(x=x, target=y), again.step(x=x, target=y))
    assert same_parameters(model, resumed)


def test_shared_dropout_masks_go_on_bit_for_bit():
    """The optimizer's state holds that of the circuit's generator."""

    def make(seed: int) -> tuple[nn.Module, CompositeOptimizer]:
        model = network(seed=seed)
        model.insert(2, nn.Dropout(0.5))
        circuit = FeedforwardCircuit(model, dropout=generator(seed))
        return model, CompositeOptimizer(circuit.parameters(), EPGradient(), model=circuit)

    (model, optimizer), (resumed, again), (x, y) = make(0), make(1), toy()
    for _ in range(3):
        optimizer.step(x=x, target=y)
    resumed.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        assert torch.equal(optimizer.step(x=x, target=y), again.step(x=x, target=y))
    assert same_parameters(model, resumed)


def test_what_is_loaded_is_a_copy_of_the_memory():
    """Two optimizers loaded from one state go their own ways."""
    model, (x, y) = network(), toy()
    optimizer = CompositeOptimizer(model.parameters(), NaturalGradient(), model=model)
    optimizer.step(x=x, target=y)
    state = optimizer.state_dict()
    kept = copy.deepcopy(state["memory"])
    again = CompositeOptimizer(model.parameters(), NaturalGradient(), model=model)
    again.load_state_dict(state)
    again.step(x=2 * x, target=y)
    assert state["memory"].keys() == kept.keys()
    assert all(torch.equal(torch.as_tensor(state["memory"][k]), torch.as_tensor(kept[k])) for k in kept)
    assert again.memory["step"] == 2


def test_a_deep_copy_trains_on_alone():
    model, (x, y) = network(), toy()
    optimizer = smep(model.parameters(), model=model)
    optimizer.step(x=x, target=y)
    model2, twin = copy.deepcopy((model, optimizer))
    before = copy.deepcopy(model)
    twin.step(x=x, target=y)
    assert same_parameters(model, before)
    optimizer.step(x=x, target=y)
    assert same_parameters(model, model2)


# -- it complains ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [0.0, -0.01, math.nan])
def test_a_learning_rate_is_positive(lr):
    with pytest.raises(ValueError, match=f"lr = {lr}; choose a learning rate > 0, such as 0.01"):
        CompositeOptimizer(network().parameters(), lr=lr)


@pytest.mark.parametrize("given", ["x", "target"])
def test_half_a_batch_is_refused(given):
    model, (x, y) = network(), toy()
    optimizer = CompositeOptimizer(model.parameters(), model=model)
    with pytest.raises(ValueError, match="only one of x and target; give both, or neither"):
        optimizer.step(**{given: {"x": x, "target": y}[given]})


def test_a_batch_and_a_closure_are_refused():
    model, (x, y) = network(), toy()
    with pytest.raises(ValueError, match="a closure and a batch; give one"):
        CompositeOptimizer(model.parameters(), model=model).step(lambda: None, x=x, target=y)


def test_a_batch_without_the_network_is_refused():
    x, y = toy()
    with pytest.raises(ValueError, match="needs the network: pass model="):
        CompositeOptimizer(network().parameters()).step(x=x, target=y)


@pytest.mark.parametrize("gradient", [EPGradient(), ImplicitGradient(), NaturalGradient()])
def test_a_step_without_a_batch_is_refused_where_there_is_no_gradient(gradient):
    model, (x, y) = network(), toy()
    optimizer = CompositeOptimizer(model.parameters(), gradient, model=model)
    with pytest.raises(ValueError, match=r"has no batch to learn from: step\(x=x, target=y\)"):
        optimizer.step()
    before = copy.deepcopy(model)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert not same_parameters(model, before)
    optimizer.step(x=x, target=y)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="has no batch to learn from"):  # the gradient is used up
        optimizer.step()
    assert same_parameters(model, before)


def test_a_batch_leaves_nothing_for_backward_to_add_to():
    model, (x, y) = network(), toy()
    optimizer = smep(model.parameters(), model=model)
    optimizer.step(x=x, target=y)
    nn.functional.cross_entropy(model(x), y).backward()
    exact = BackpropGradient().estimate(optimizer.circuit, optimizer.circuit.params, x, y).gradient
    for name, p in optimizer.circuit.named_parameters():
        assert torch.allclose(p.grad, exact[name], rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_is_refused_before_anything_moves():
    model, (x, y) = network(), toy()
    before = copy.deepcopy(model)
    optimizer = CompositeOptimizer(model.parameters(), model=model)
    with pytest.raises(ValueError, match="the loss is nan; lower lr, lower beta or bound the weights"):
        optimizer.step(x=x * math.nan, target=y)
    with pytest.raises(ValueError, match="the loss is inf; lower lr"):
        optimizer.step(lambda: math.inf)
    assert same_parameters(model, before)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"lr": -1.0}, "lr = -1.0; choose a learning rate > 0"),
        ({"momentum": 0.9}, "a parameter group sets momentum; it may set lr, update and role"),
        ({"update": "adam"}, "update = 'adam' of a group; give an UpdateStrategy"),
        ({"params": network().parameters()}, r"\(16, 4\).* are not the model's"),
    ],
)
def test_a_bad_parameter_group_is_refused_and_leaves_the_optimizer_as_it_was(group, message):
    model, (x, y) = network(), toy()
    optimizer = CompositeOptimizer(model[0].parameters(), lr=0.1, model=model)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": model[2].parameters(), **group})
    before = copy.deepcopy(model)
    optimizer.step(x=x, target=y)
    assert len(optimizer.param_groups) == 1
    assert same_parameters(model[2], before[2])


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan])
def test_a_bound_of_the_gradient_is_positive(clip_norm):
    with pytest.raises(ValueError, match=f"clip_norm = {clip_norm}; choose a norm > 0, such as 1, or None"):
        CompositeOptimizer(network().parameters(), clip_norm=clip_norm)


def test_a_chip_of_another_circuit_is_refused():
    chip = Chip(FeedforwardCircuit(network()), devices.preset("soft-bounds-6bit"), generator())
    with pytest.raises(ValueError, match=r"another circuit than model; pass model=chip\.circuit"):
        CompositeOptimizer(chip.circuit.parameters(), model=network(), chip=chip)
    CompositeOptimizer(chip.circuit.parameters(), model=chip.circuit.model, chip=chip)


def test_parameters_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"\(16, 4\).* are not the model's; pass model.parameters\(\)"):
        CompositeOptimizer(network().parameters(), model=network())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(4, 3), "cannot make a circuit of Linear; pass an nn.Sequential or a circuit"),
        (nn.Sequential(nn.RNN(4, 3)), "RNN"),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU()), "leave it linear"),
    ],
)
def test_a_model_without_an_energy_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        CompositeOptimizer(model.parameters(), model=model)


def test_a_gradient_that_is_not_finite_is_refused_and_forgotten():
    model, (x, y) = network(), toy()
    before, optimizer = copy.deepcopy(model), smep(model.parameters(), model=model, mode="backprop")
    loss = nn.functional.cross_entropy(model(x), y)
    (math.nan * loss).backward(retain_graph=True)
    with pytest.raises(ValueError, match=r"gradient of model.0.weight has NaN or infinite entries"):
        optimizer.step()
    assert same_parameters(model, before)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    assert cross_entropy(model, x, y) < loss


def test_a_sparse_gradient_is_refused():
    table = nn.Embedding(9, 4, sparse=True)
    optimizer = CompositeOptimizer([{"params": table.parameters(), "role": "embedding"}], update=MuonUpdate())
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(
        ValueError, match="gradient of param-0 is sparse; make its Embedding with sparse=False"
    ):
        optimizer.step()


def test_a_table_without_a_model_is_told_by_its_role():
    """Else it counts as a weight: orthogonalised, and bounded by gamma, rows never looked up included."""
    table, head = nn.Embedding(9, 4), nn.Linear(4, 3)
    groups = [{"params": table.parameters(), "role": "embedding"}, {"params": head.parameters()}]
    optimizer = CompositeOptimizer(groups, None, MuonUpdate(), SpectralConstraint(0.1), lr=1e-6)
    before = table.weight.detach().clone()
    head(table(torch.tensor([1, 2]))).square().sum().backward()
    optimizer.step()
    moved = (table.weight - before).abs().amax(1)
    assert (moved > 0).tolist() == [row in (1, 2) for row in range(9)]
    assert torch.linalg.matrix_norm(head.weight, 2) <= 0.1 * (1 + 1e-5)
    with pytest.raises(ValueError, match="unknown role 'table'; choose one of hidden"):
        optimizer.add_param_group({"params": nn.Linear(2, 2).parameters(), "role": "table"})


def test_where_equilibria_cannot_be_resolved_it_says_so():
    model, (x, y) = network(), toy()
    half = network().half()
    with pytest.raises(ValueError, match=r"EP resolves nothing in torch.float16.*model.float\(\)"):
        smep(half.parameters(), model=half)
    optimizer = smep(model.parameters(), model=model)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="autocast off"):
        optimizer.step(x=x, target=y)
    with torch.inference_mode(), pytest.raises(ValueError, match="an optimizer cannot learn in"):
        optimizer.step(x=x, target=y)


def test_what_does_not_settle_warns_once(recwarn):
    model, (x, y) = network(), toy()
    optimizer = smep(model.parameters(), model=model, settle_steps=2, settle_lr=0.1)
    for _ in range(3):
        optimizer.step(x=x, target=y)
    told = {str(w.message) for w in recwarn if w.category is EPWarning}
    assert len(told) == 1
    assert "fewer than 95 % of a batch settled (beta = 0.1" in told.pop()
    smep(model.parameters(), model=model).step(x=x, target=y)
    assert len({str(w.message) for w in recwarn if w.category is EPWarning}) == 1


@pytest.mark.parametrize(
    ("x", "target", "message"),
    [
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), r"\(0, 4\).*B >= 1"),
        (torch.randn(5, 4).double(), torch.zeros(5, dtype=torch.long), "float64.*of type torch.float32"),
        (torch.randn(5, 4).numpy(), torch.zeros(5, dtype=torch.long), "x is a ndarray; give a torch.Tensor"),
        (torch.randn(5, 4), [0] * 5, "target is a list; give a torch.Tensor"),
        (
            torch.randn(5, 4),
            torch.full((5, 3), 0.5),
            r"\[0.5, 0.5, 0.5\] is no distribution.*loss_type = 'mse'",
        ),
        (torch.randn(5, 4), torch.tensor([0, 1, 2, 3, -1]), "class 3 is none of 0 to 2"),
        (torch.randn(5, 7), torch.zeros(5, dtype=torch.long), r"\(5, 7\).*takes floats \(B, 4\)"),
        (torch.zeros(5, 4, dtype=torch.long), torch.zeros(5, dtype=torch.long), "int64.*takes floats"),
        (torch.randn(5, 4), torch.zeros(6, dtype=torch.long), "6 targets for 5 inputs"),
        (torch.randn(5, 4), torch.zeros(5), r"target of shape \(5,\).*give int64 class indices"),
    ],
)
def test_a_batch_that_does_not_fit_is_named(x, target, message):
    model = network()
    for gradient in (EPGradient(), EPGradient(phases="one_sweep"), BackpropGradient()):
        optimizer = CompositeOptimizer(model.parameters(), gradient, model=model)
        with pytest.raises(ValueError, match=message):
            optimizer.step(x=x, target=target)


def test_error_feedback_is_the_default_carry():
    assert CompositeOptimizer(network().parameters()).feedback == ErrorFeedback(0.9)

"""Read noise that differs between the phases: by hand on one layer, by its curvature elsewhere, and what removes it."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuits import FeedforwardCircuit, HopfieldCircuit
from experiments.phase_noise import METHODS, ROWS, PhaseNoiseConfig, Row, run
from mep_sim.optimizers import (
    BackpropGradient,
    EPGradient,
    HolomorphicGradient,
    InParts,
    LocalEPGradient,
)
from mep_sim.phase_noise import PhaseNoise, free_curvature, read_out_curvature
from mep_sim.settling import Sweep
from tests.conformance import CASES, EXACT, Case, case, flat, relative

TIGHT = {"solver": EXACT, "nudged_tolerance": 1e-11}


def one_layer(kind: str, x: Tensor) -> Case:
    """A single linear layer 4 -> 3 at inputs x (B, 4), read as s = W x + b."""
    build = {
        "hopfield": lambda sizes, rng: HopfieldCircuit(sizes, rng=rng),
        "feedforward": lambda sizes, rng: FeedforwardCircuit.from_sizes(sizes, "linear", rng=rng),
    }[kind]
    made = case(build, (4, 3), batch=len(x))
    return dataclasses.replace(made, x=x)


def noise_like(of: Case, scale: float, seed: int = 1) -> dict[str, Tensor]:
    """Noise on every weight matrix."""
    rng = torch.Generator().manual_seed(seed)
    params = of.params()
    return {
        name: scale * torch.randn(params[name].shape, generator=rng, dtype=torch.float64)
        for name in of.circuit.weights
    }


def shifted(params: dict[str, Tensor], change: dict[str, Tensor] | None) -> dict[str, Tensor]:
    return {**params, **{name: params[name] + d for name, d in (change or {}).items()}}


def estimate(of: Case, strategy, *changes: dict[str, Tensor] | None) -> Tensor:
    """The estimate, flat, where one read after the other sees these changes of the weights, again and again."""
    params, order = of.params(), itertools.cycle(changes or (None,))
    return flat(strategy.estimate(of.circuit, lambda: shifted(params, next(order)), of.x, of.labels).gradient)


def only(weights: dict[str, Tensor], of: Case) -> Tensor:
    """As `flat` orders them: a gradient of these weights and zero biases."""
    return flat({name: weights.get(name, torch.zeros_like(p)) for name, p in of.params().items()})


# -- one layer, by hand ---------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_one_hopfield_layer_by_hand(beta):
    """s_n = (W x + b + d x + beta y) / (1 + beta): the read adds -d x x' / (beta (1 + beta)), -d x without x' to b."""
    of = one_layer("hopfield", torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=torch.float64))
    d = noise_like(of, 0.1)["layers.0.weight"]
    ep = EPGradient("mse", beta, independent_reads=True, **TIGHT)
    extra = estimate(of, ep, None, {"layers.0.weight": d}) - estimate(of, ep)
    by_hand = {"layers.0.weight": -(d @ of.x.T) @ of.x, "layers.0.bias": -(d @ of.x.T)[:, 0]}
    assert relative(extra, flat(by_hand) / (beta * (1 + beta))) < 1e-9


@pytest.mark.parametrize(("kind", "power"), [("same", 0.0), ("orthogonal", -0.5)])
def test_a_batch_averages_curvature_and_not_noise(kind, power):
    """All samples see one d. F'' d = -d mean(x x'): the same for copies of one sample, and for B orthonormal ones
    -d P / B, P their projector: over white d the mean square is that of one sample over B."""
    norms = []
    for batch in (1, 2, 4):
        x = torch.eye(4, dtype=torch.float64)[: batch if kind == "orthogonal" else 1]
        of = one_layer("hopfield", x.expand(batch, 4) if kind == "same" else x)
        units = torch.eye(12, dtype=torch.float64).view(
            12, 3, 4
        )  # their mean square is that over white noise
        weights = (
            free_curvature(of.circuit, of.params(), of.x, {"layers.0.weight": d}, EXACT)["layers.0.weight"]
            for d in units
        )
        norms.append(math.sqrt(sum(w.square().sum().item() for w in weights)))
    assert norms[0] == pytest.approx(math.sqrt(3))
    for factor, norm in zip((1, 2, 4), norms, strict=True):
        assert norm == pytest.approx(norms[0] * factor**power)


def test_errors_read_out_of_one_layer_by_hand():
    """e = s_n - (W + d) x - b: the contrast -e x' / beta gains d x x' / beta; measured against the free state under the
    same read, nothing at all."""
    of = one_layer("feedforward", torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=torch.float64))
    (name,), beta = of.circuit.weights, 0.1
    d = noise_like(of, 0.1)
    held = estimate(of, EPGradient("mse", beta, **TIGHT))
    read = estimate(of, EPGradient("mse", beta, errors="read", **TIGHT), None, d) - held
    dx = d[name] @ of.x.T
    assert relative(read, flat({name: dx @ of.x, "b": dx[:, 0]}) / beta) < 1e-9
    sampled = EPGradient("mse", beta, errors="double_sampled", **TIGHT)
    assert relative(estimate(of, sampled, None, d), held) < 1e-9


# -- any circuit: the curvature of the free energy ------------------------------------------------------


@pytest.mark.parametrize("name", ["hopfield-1", "hopfield-2"])
def test_noise_is_the_curvature_of_the_free_energy_over_beta(name):
    of = CASES[name]()
    d = noise_like(of, 1e-7)
    curvature = flat(free_curvature(of.circuit, of.params(), of.x, d, EXACT))
    for beta in (1e-4, 1e-3):
        ep = EPGradient(beta=beta, independent_reads=True, **TIGHT)
        extra = estimate(of, ep, None, d) - estimate(of, ep)
        assert relative(extra, curvature / beta) < 20 * beta


def test_the_curvature_is_the_hessian_of_the_free_energy():
    """By autograd, of a network without walls: F = -1/2 b' (I - W)^-1 b, b the drive of every layer."""
    of = CASES["hopfield-linear"]()
    d, params = noise_like(of, 1.0), of.params()

    def free_energy(weights: tuple[Tensor, ...]) -> Tensor:
        w, b, sizes = weights, [params[n] for n in of.circuit.biases], of.circuit.layout.sizes
        coupling = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
        ends = [0, *itertools.accumulate(sizes)]
        for i in range(1, len(sizes)):
            coupling[ends[i] : ends[i + 1], ends[i - 1] : ends[i]] = w[i]
        drive = torch.cat([of.x @ w[0].T + b[0], *(row.expand(len(of.x), -1) for row in b[1:])], 1)
        eye = torch.eye(len(coupling), dtype=torch.float64)
        rest = torch.linalg.solve(eye - coupling - coupling.T, drive.T).T
        return -0.5 * (drive * rest).sum(1).mean()

    names = of.circuit.weights
    _, by_autograd = torch.autograd.functional.hvp(
        lambda *w: free_energy(w), tuple(params[n] for n in names), tuple(d[n] for n in names)
    )
    small = {name: 1e-4 * change for name, change in d.items()}
    found = free_curvature(of.circuit, params, of.x, small, EXACT)
    ours = torch.cat([found[n].flatten() for n in names]) / 1e-4
    assert relative(ours, torch.cat([h.flatten() for h in by_autograd])) < 1e-6


@pytest.mark.parametrize("name", ["feedforward-tanh-2", "feedforward-relu-2", "conv-tanh"])
@pytest.mark.parametrize("phases", ["one_sided", "random_sign"])
def test_the_feedforward_energy_feels_only_the_nudged_read(name, phases):
    """F = 0 whatever the weights: the estimate is the one at the weights that the nudged phase has read."""
    of = CASES[name]()
    d = noise_like(of, 0.1)
    apart = EPGradient(beta=1e-3, phases=phases, independent_reads=True, **TIGHT)
    shared = dataclasses.replace(apart, independent_reads=False)
    assert relative(estimate(of, apart, None, d), estimate(of, shared, d)) < 1e-7
    assert not flat(free_curvature(of.circuit, of.params(), of.x, d, EXACT)).any()


@pytest.mark.parametrize("name", ["feedforward-tanh-2", "conv-tanh"])
def test_reading_errors_out_adds_the_curvature_of_the_energy_itself(name):
    of, beta = CASES[name](), 1e-4
    d = noise_like(of, 1e-7)
    extra = estimate(of, EPGradient(beta=beta, errors="read", **TIGHT), None, d)
    extra = extra - estimate(of, EPGradient(beta=beta, **TIGHT))
    assert (
        relative(extra, flat(read_out_curvature(of.circuit, of.params(), of.x, d, EXACT)) / beta) < 100 * beta
    )


# -- what removes it ------------------------------------------------------------------------------------


def test_centred_phases_do_not_feel_the_free_read():
    """n_+ - n_- over 2 beta: of first order in the noise nothing is left of the free read."""
    of, beta = CASES["hopfield-1"](), 1e-3
    free, plus, minus = (noise_like(of, 1e-7, seed) for seed in (1, 2, 3))
    ep = EPGradient(beta=beta, phases="centred", independent_reads=True, **TIGHT)
    apart = {name: plus[name] - minus[name] for name in plus}
    by_curvature = flat(free_curvature(of.circuit, of.params(), of.x, apart, EXACT)) / (2 * beta)
    extra = estimate(of, ep, free, plus, minus) - estimate(of, ep)
    assert relative(extra, by_curvature) < 20 * beta


@pytest.mark.parametrize(
    ("name", "quiet", "loud"),
    [
        (
            "hopfield-2",
            {"independent_reads": True, "auto_zero": True},
            {"independent_reads": True},
        ),
        ("feedforward-tanh-2", {"errors": "double_sampled"}, {"errors": "read"}),
    ],
)
def test_auto_zero_and_double_sampling_leave_no_noise_over_beta(name, quiet, loud):
    """Their error is that of a gradient at slightly other weights, the same for any beta."""
    of = CASES[name]()
    d = noise_like(of, 1e-4)

    def error(beta: float, reading: dict) -> float:
        ep = EPGradient("mse", beta, **reading, **TIGHT)
        return relative(estimate(of, ep, None, d), estimate(of, ep))

    assert error(1e-4, loud) / error(1e-2, loud) == pytest.approx(100, rel=0.1)
    assert error(1e-4, quiet) == pytest.approx(error(1e-2, quiet), rel=0.1)
    assert error(1e-4, quiet) < 1e-3


@settings(max_examples=5, deadline=None)
@given(reads=st.integers(1, 6))
def test_averaged_reads_are_the_read_of_the_mean(reads):
    of = CASES["hopfield-1"]()
    params, changes = of.params(), [noise_like(of, 0.02, seed) for seed in range(2 * reads)]
    seen = iter(changes)
    ep = EPGradient("mse", independent_reads=True, reads=reads, **TIGHT)
    found = flat(ep.estimate(of.circuit, lambda: shifted(params, next(seen)), of.x, of.labels).gradient)
    assert next(seen, None) is None
    means = [
        {name: sum(c[name] for c in half) / reads for name in half[0]}
        for half in (changes[:reads], changes[reads:])
    ]
    once = dataclasses.replace(ep, reads=1)
    assert relative(found, estimate(of, once, *means)) < 1e-9


@pytest.mark.parametrize(
    ("beta", "phases", "reads", "correlation"),
    [
        (0.01, "one_sided", 1, 0.0),
        (0.01, "one_sided", 4, 0.0),
        (0.01, "centred", 1, 0.0),
        (0.01, "one_sided", 1, 0.9),
    ],
)
def test_predicted_noise_and_cosine_are_those_of_many_draws(beta, phases, reads, correlation):
    """Of a hundred noisy estimates of a small Hopfield network."""
    of, rng, sigma = CASES["hopfield-1"](), torch.Generator().manual_seed(5), 0.004
    params = of.params()

    def draw() -> dict[str, Tensor]:
        return {
            n: sigma * torch.randn(params[n].shape, generator=rng, dtype=torch.float64)
            for n in of.circuit.weights
        }

    squares = [flat(free_curvature(of.circuit, params, of.x, draw())).square().sum() for _ in range(100)]
    ep = EPGradient("mse", beta, phases, Sweep(1e-7))
    clean = estimate(of, ep)
    noise = PhaseNoise(clean.norm().item(), torch.stack(squares).mean().sqrt().item())

    def read_pairs():
        while True:
            common = draw()
            for _ in range((3 if phases == "centred" else 2) * reads):
                own = draw()
                yield {
                    n: math.sqrt(correlation) * common[n] + math.sqrt(1 - correlation) * own[n] for n in own
                }

    source = read_pairs()
    noisy = dataclasses.replace(ep, independent_reads=True, reads=reads)
    found = [
        flat(noisy.estimate(of.circuit, lambda: shifted(params, next(source)), of.x, of.labels).gradient)
        for _ in range(100)
    ]
    measured = torch.stack([(g - clean).square().sum() for g in found]).mean().sqrt().item()
    reading = {"centred": phases == "centred", "reads": reads, "correlation": correlation}
    assert measured == pytest.approx(noise.noise(beta, **reading), rel=0.2)


@given(beta=st.floats(1e-3, 10), reads=st.integers(1, 100), snr=st.floats(0.01, 100))
def test_the_scaling_of_the_formula(beta, reads, snr):
    noise = PhaseNoise(signal=snr, unit_noise=1.0)
    assert noise.noise(beta) == pytest.approx(math.sqrt(2) / beta)
    assert noise.noise(beta, reads=reads) == pytest.approx(noise.noise(beta) / math.sqrt(reads))
    assert noise.noise(beta, centred=True) == pytest.approx(noise.noise(beta) / 2)
    assert noise.noise(beta, correlation=0.5) == pytest.approx(1 / beta)
    assert noise.noise(beta, correlation=1.0) == 0
    ratio = noise.noise(beta) / snr
    assert noise.cosine(beta) == pytest.approx(math.cos(math.atan(ratio)))


# -- batches in parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inner", [EPGradient("mse", **TIGHT), EPGradient(phases="centred", **TIGHT), BackpropGradient()]
)
@pytest.mark.parametrize("parts", [1, 3, 50])
def test_parts_give_the_estimate_of_the_batch(inner, parts):
    """Four samples in three parts of 2, 1 and 1, weighted by their size."""
    of = CASES["feedforward-tanh-2"]()
    whole = inner.estimate(of.circuit, of.params, of.x, of.labels)
    apart = InParts(inner, parts).estimate(of.circuit, of.params, of.x, of.labels)
    assert relative(flat(apart.gradient), flat(whole.gradient)) < 1e-9
    assert apart.loss.item() == pytest.approx(whole.loss.item(), rel=1e-12)
    assert torch.allclose(apart.output, whole.output)
    assert len(apart.nudged) == len(whole.nudged)
    for a, b in zip(apart.nudged, whole.nudged, strict=True):
        assert torch.allclose(a.state, b.state)
        assert a.converged.all()
    assert apart.beta == pytest.approx(whole.beta, nan_ok=True)


def test_each_part_has_reads_of_its_own():
    of, reads = CASES["feedforward-tanh-1"](), []

    def read():
        reads.append(1)
        return of.params()

    InParts(EPGradient(independent_reads=True), 3).estimate(of.circuit, read, of.x, of.labels)
    assert len(reads) == 6


# -- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EPGradient(reads=0), "reads = 0; average a whole number of 1 or more"),
        (lambda: EPGradient(reads=2.5), "reads = 2.5"),
        (lambda: EPGradient(errors="lost"), "unknown errors 'lost'; choose one of held, read"),
        (lambda: EPGradient(errors="read", phases="one_sweep"), "one_sweep settles none"),
        (lambda: EPGradient(auto_zero=True), "choose independent_reads = True with it"),
        (lambda: LocalEPGradient(errors="read"), "not a layer's own"),
        (lambda: HolomorphicGradient(errors="read"), "real nudges only"),
        (lambda: InParts(EPGradient(), 0), "parts = 0"),
        (lambda: PhaseNoise(1, 1).noise(0), "choose beta > 0"),
        (lambda: PhaseNoise(1, 1).noise(0.1, correlation=1.1), "a correlation in"),
        (lambda: PhaseNoiseConfig(draws=0), "draws = 0"),
        (lambda: CASES["hopfield-1"]().gradient(EPGradient(errors="read")), "is made of states alone"),
    ],
)
def test_out_of_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- the experiment -------------------------------------------------------------------------------------


def test_smoke_tabulates_predicts_and_draws(tmp_path):
    rows = ("feedforward, noiseless", "errors read, beta 1, 4 reads", "hopfield, auto-zero")
    options = PhaseNoiseConfig(smoke=True, seeds=1, workers=1, draws=1, rows=rows, out=tmp_path)
    clean, read, hopfield = run(options)
    assert (clean["reads/sample"], read["reads/sample"], hopfield["reads/sample"]) == (2, 12, 3)
    assert clean["cosine"] == hopfield["cosine"] == 1 > read["cosine"] > 0
    assert read["energy (1e9)"] > read["cell reads (1e9)"] == pytest.approx(6 * clean["cell reads (1e9)"])
    assert (tmp_path / "phase_noise.png").stat().st_size > 10_000


def test_every_row_has_a_method_and_a_reference_of_its_circuit():
    for row in ROWS.values():
        assert row.method in METHODS
        if row.reference is not None:
            reference = ROWS[row.reference]
            assert (reference.circuit, reference.noise) == (row.circuit, 0)
    assert Row().reads_per_sample == 2
    assert Row(phases="centred", method="errors read", reads=4).reads_per_sample == 20

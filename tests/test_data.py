import gzip
import struct
import time

import numpy as np
import pooch
import pytest
import torch

from mep_sim import data

TRAIN, TEST, SIDE = 300, 50, 4


def idx(array):
    """The bytes of an IDX file."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def arrays():
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (TRAIN, SIDE, SIDE)),
        "train-labels-idx1-ubyte": rng.permutation(np.arange(TRAIN) % 10),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (TEST, SIDE, SIDE)),
        "t10k-labels-idx1-ubyte": rng.permutation(np.arange(TEST) % 10),
    }


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A small MNIST in a folder that MEP_SIM_DATA names; yields the folder of the files."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, array in arrays().items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    monkeypatch.setenv("MEP_SIM_DATA", str(tmp_path))
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No MEP_SIM_DATA, an empty cache, and mirrors that refuse the connection."""
    monkeypatch.delenv("MEP_SIM_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(data, "MNIST_MIRRORS", ("http://127.0.0.1:9/", "http://127.0.0.1:9/other/"))


def counts(labels):
    return torch.bincount(labels, minlength=10)


def same(a, b):
    return a.shape == b.shape and torch.equal(a, b)


def test_idx_files_come_back_as_the_pixels_that_were_written(mnist):
    d = data.load("mnist", validation=0)
    raw = arrays()
    assert (d.name, d.features, d.classes) == ("mnist", SIDE * SIDE, 10)
    assert str(mnist) in d.source
    assert d.train_x.dtype == torch.float32
    assert d.train_y.dtype == torch.int64
    pixels = raw["train-images-idx3-ubyte"].reshape(TRAIN, -1) / 255
    expected = (raw["t10k-images-idx3-ubyte"].reshape(TEST, -1) / 255 - pixels.mean()) / pixels.std()
    torch.testing.assert_close(d.test_x, torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-5)
    assert same(d.test_y, torch.tensor(raw["t10k-labels-idx1-ubyte"]))


@pytest.mark.parametrize("rename", [lambda n: n, lambda n: n.replace("-idx", ".idx")])
@pytest.mark.parametrize("packed", [True, False])
def test_every_usual_file_name_is_found(mnist, rename, packed):
    expected = data.load("mnist", validation=10)
    for path in list(mnist.iterdir()):
        content = path.read_bytes() if packed else gzip.decompress(path.read_bytes())
        path.unlink()
        plain = rename(path.name.removesuffix(".gz"))
        (mnist / (f"{plain}.gz" if packed else plain)).write_bytes(content)
    assert same(data.load("mnist", validation=10).train_x, expected.train_x)


def test_training_pixels_have_mean_zero_and_deviation_one(mnist):
    d = data.load("mnist", validation=0.2)
    assert d.train_x.mean().item() == pytest.approx(0, abs=1e-6)
    assert d.train_x.std(correction=0).item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("samples", [1, 20, 100, 240])
def test_parts_share_no_image_and_validation_stays_when_samples_change(mnist, samples):
    whole = data.load("mnist", validation=60)
    part = data.load("mnist", validation=60, samples=samples)
    assert same(part.validation_x, whole.validation_x)
    assert same(part.validation_y, whole.validation_y)
    assert same(part.test_x, whole.test_x)
    assert same(part.train_x, whole.train_x[:samples])  # a small set lies within a larger one
    rows = [tuple(row) for x in (whole.train_x, whole.validation_x) for row in x.tolist()]
    assert len(set(rows)) == len(rows) == TRAIN


def test_every_part_holds_the_classes_in_proportion(mnist):
    d = data.load("mnist", validation=60, samples=105)
    assert (counts(d.validation_y) == 6).all()
    assert set(counts(d.train_y).tolist()) == {10, 11}


def test_a_stratified_order_is_in_proportion_at_every_prefix():
    labels = np.repeat([0, 1, 2], [120, 60, 20])
    order = data._stratified_order(labels, torch.Generator().manual_seed(0))
    assert sorted(order) == list(range(200))
    taken = np.cumsum(labels[order][:, None] == np.arange(3), axis=0)
    due = np.arange(1, 201)[:, None] * np.array([0.6, 0.3, 0.1])
    assert np.abs(taken - due).max() < 2


def test_the_seed_decides_the_split(mnist):
    a, b, c = (data.load("mnist", validation=60, seed=seed) for seed in (3, 3, 4))
    assert same(a.train_x, b.train_x)
    assert not same(a.train_x, c.train_x)


def test_digits_are_split_in_proportion(offline):
    d = data.load("digits")
    assert (len(d.train_y), len(d.validation_y), len(d.test_y)) == (1294, 144, 359)
    assert d.features == 64
    for labels in (d.train_y, d.validation_y, d.test_y):
        assert counts(labels).max() - counts(labels).min() <= 0.02 * len(labels) + 2
    assert data.load("digits", dtype=torch.float64).train_x.dtype == torch.float64


def test_auto_falls_back_to_digits_quickly_quietly_and_says_why(offline, capfd, caplog):
    start = time.monotonic()
    d = data.load("auto")
    assert time.monotonic() - start < 10
    assert d.name == "digits"
    assert "127.0.0.1" in d.source
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_auto_passes_over_a_missing_folder_and_says_so(offline, monkeypatch, tmp_path):
    monkeypatch.setenv("MEP_SIM_DATA", str(tmp_path / "nowhere"))
    assert "nowhere has no folder mnist" in data.load("auto").source
    with pytest.raises(FileNotFoundError, match=r"nowhere has no folder mnist; set MEP_SIM_DATA .*'digits'"):
        data.load("mnist")


def test_mnist_by_name_that_cannot_be_had_names_the_ways_out(offline, mnist):
    (mnist / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks train-labels-idx1-ubyte.gz .*unset it .*'digits'"):
        data.load("mnist")


def test_mnist_without_a_network_names_the_ways_out(offline):
    with pytest.raises(FileNotFoundError, match=r"no download from .*set MEP_SIM_DATA .*'digits'"):
        data.load("mnist")


def test_a_good_cache_needs_no_network(offline, mnist, monkeypatch):
    cache = pooch.os_cache("mep-sim") / "mnist"
    cache.parent.mkdir(parents=True)
    mnist.rename(cache)
    monkeypatch.delenv("MEP_SIM_DATA")
    hashes = {name: pooch.file_hash(str(cache / name)) for name in data.MNIST_SHA256}
    monkeypatch.setattr(data, "MNIST_SHA256", hashes)
    d = data.load("auto", validation=10)
    assert d.name == "mnist"
    assert "SHA-256" in d.source


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (IMAGES, lambda raw: raw[:-20], r"train-images.* is a damaged gzip file"),
        (IMAGES, lambda raw: raw[:40] + b"\0\1\2\3" + raw[44:], r"train-images.* is a damaged gzip file"),
        (IMAGES, lambda raw: b"<html>", r"train-images.*expected it to begin with 0x00000803.*0x3c68746d"),
        (IMAGES, lambda raw: b"", r"train-images.*found 0 bytes"),
        (IMAGES, lambda raw: gzip.decompress(raw)[:12], r"train-images.*3 sizes, found 12 bytes"),
        (IMAGES, lambda raw: gzip.decompress(raw)[:-1], r"should hold 4800 bytes .*found 4799"),
        (IMAGES, lambda raw: gzip.decompress(raw) + b"\0", r"should hold 4800 bytes .*found 4801"),
        (LABELS, lambda raw: idx(np.zeros((TRAIN, 2, 2))), r"train-labels.*0x00000801.*0x00000803"),
        (LABELS, lambda raw: idx(np.zeros(TRAIN - 1)), r"holds 300 images and .* 299 labels"),
        (LABELS, lambda raw: idx(np.full(TRAIN, 10)), r"train-labels.*label 10: expected .* 0 to 9"),
        ("t10k-images-idx3-ubyte.gz", lambda raw: idx(np.zeros((TEST, 2, 2))), r"\(4, 4\).*\(2, 2\)"),
    ],
)
@pytest.mark.parametrize("asked", ["mnist", "auto"])
def test_a_damaged_file_is_an_error_that_names_it(mnist, asked, name, damage, message):
    path = mnist / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        data.load(asked, validation=10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar"}, r"name='cifar': choose 'auto', 'mnist' or 'digits'"),
        ({"samples": 0}, r"samples=0: .* from 1 to 1294"),
        ({"samples": 1295}, r"samples=1295: .* from 1 to 1294"),
        ({"samples": 0.5}, r"samples=0.5"),
        ({"validation": -1}, r"validation=-1: .* from 0 to 1437"),
        ({"validation": 1438}, r"validation=1438"),
        ({"validation": 1.0}, r"validation=1.0: .*fraction"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load(**{"name": "digits", **arguments})


def test_batches_hold_every_sample_once_with_its_label():
    x = torch.arange(10.0)[:, None]
    y = torch.arange(10)
    epoch = list(data.batches(x, y, 4, torch.Generator().manual_seed(0)))
    assert [len(labels) for _, labels in epoch] == [4, 4, 2]
    assert all(same(images[:, 0].long(), labels) for images, labels in epoch)
    labels = torch.cat([labels for _, labels in epoch])
    assert not same(labels, y)
    assert same(labels.sort().values, y)


def test_batches_follow_the_generator():
    x, y = torch.rand(50, 2), torch.arange(50)
    rng = torch.Generator().manual_seed(5)
    first, second = (next(labels for _, labels in data.batches(x, y, 50, rng)) for _ in range(2))
    (_, again), *_ = data.batches(x, y, 50, torch.Generator().manual_seed(5))
    assert same(first, again)
    assert not same(first, second)


@pytest.mark.parametrize(
    ("length", "size", "message"), [(3, 2, "holds 4 samples and y 3"), (4, 0, "batch_size=0")]
)
def test_batches_reject_bad_arguments_at_the_call(length, size, message):
    with pytest.raises(ValueError, match=message):
        data.batches(torch.zeros(4, 2), torch.zeros(length), size, torch.Generator())


def test_to_moves_every_tensor(mnist):
    moved = data.load("mnist", validation=10).to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 6
    assert all(tensor.is_meta for tensor in tensors)

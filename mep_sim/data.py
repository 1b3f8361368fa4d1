"""Handwritten digits to learn from: MNIST where it can be had, scikit-learn's bundled digits where not.

Where the images came from is never a guess: `Dataset.source` says it in words, and a file that is damaged
is an error, not a reason to go on quietly with something else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import logging
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pooch
import torch
from torch import Tensor

CLASSES = 10
MNIST_VALIDATION = 5_000
DIGITS_VALIDATION = 0.1
DIGITS_TEST = 0.2

# SHA-256 of the four files as first published (the hashes that Keras and TensorFlow Datasets pin as well).
MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
CONNECT_SECONDS, READ_SECONDS = 3, 20  # without a network, fall back in seconds rather than minutes


@dataclass(frozen=True, eq=False)
class Dataset:
    """Standardised images and their labels in three parts that share no image.

    Images are `(N, features)`, dimensionless: pixels scaled to [0, 1], then shifted and scaled by one mean
    and one standard deviation. Labels are `(N,)` int64 in `0 .. classes - 1`.

    Attributes:
        name: "mnist" or "digits".
        source: a sentence for people: which images these are and where they came from.
        classes: number of classes.
    """

    name: str
    source: str
    train_x: Tensor = field(repr=False)
    train_y: Tensor = field(repr=False)
    validation_x: Tensor = field(repr=False)
    validation_y: Tensor = field(repr=False)
    test_x: Tensor = field(repr=False)
    test_y: Tensor = field(repr=False)
    classes: int = CLASSES

    @property
    def features(self) -> int:
        """Number of pixels of an image: 784 for MNIST, 64 for digits."""
        return self.train_x.shape[1]

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set with every tensor on `device`."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved = {name: value.to(device) for name, value in fields.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **moved)

    def head(self, samples: int) -> Dataset:
        """With the first `samples` of the training part alone, or all where it has fewer; any prefix is stratified."""
        return dataclasses.replace(self, train_x=self.train_x[:samples], train_y=self.train_y[:samples])


def load(
    name: str = "auto",
    *,
    samples: int | None = None,
    validation: int | float | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    """Load, split and standardise a data set.

    The training part is put once in a seeded, class-stratified order, every prefix of which holds the classes
    in proportion. Its first images are the validation part and the next `samples` are for training, so that
    neither the validation part nor the mean and deviation (taken over all of the training part that is not
    validation) change with `samples`, and a small training set lies within every larger one of the same seed.
    The test part is MNIST's own; of digits it is a stratified fifth, drawn with the seed.

    Args:
        name: "mnist" is looked for in the folder `mnist` of the folder that the environment variable
            MEP_SIM_DATA names; without that variable, in pooch's cache, downloaded and checked on first use.
            "digits" are the 1797 images of 8 x 8 pixels that come with scikit-learn. "auto" is MNIST where it
            can be had, digits otherwise; `source` says which and why.
        samples: number of training images; None takes all.
        validation: number (int) or fraction (float) of training images put aside; None takes 5,000 of MNIST
            and a tenth of digits.
        seed: of the split and the draw.
        dtype: of the images.

    Raises:
        ValueError: an argument out of range, or a damaged MNIST file.
        FileNotFoundError: MNIST was asked for by name and cannot be had.
    """
    if name not in ("auto", "mnist", "digits"):
        raise ValueError(f"name={name!r}: choose 'auto', 'mnist' or 'digits'")
    rng = torch.Generator().manual_seed(seed)
    if name == "digits":
        raw = _read_digits(rng)
    else:
        try:
            raw = _read_mnist(*_find_mnist(fall_through=name == "auto"))
        except FileNotFoundError as error:
            if name == "mnist":
                raise FileNotFoundError(
                    f"MNIST cannot be had: {error}; set MEP_SIM_DATA to a folder that holds mnist/ with the "
                    "four files, or unset it and connect to the network, or choose 'digits'"
                ) from error
            raw = _read_digits(rng, f"; MNIST cannot be had: {error}")
    return _split(raw, samples, validation, rng, dtype)


def batches(x: Tensor, y: Tensor, batch_size: int, rng: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of `x (N, d)` and `y (N,)` in shuffled batches; the last one may be smaller.

    The order is drawn from `rng` at the call, before the first batch is taken.

    Raises:
        ValueError: `x` and `y` of different lengths, or `batch_size` below 1.
    """
    if len(x) != len(y):
        raise ValueError(f"x holds {len(x)} samples and y {len(y)}: give one label for each sample")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    order = torch.randperm(len(x), generator=rng, device=rng.device).to(x.device)
    return ((x[chosen], y[chosen]) for chosen in order.split(batch_size))


# Splitting


@dataclass(frozen=True)
class _Raw:
    """Pixels `(N, d)` in [0, 1] and labels `(N,)`, before anything is put aside."""

    name: str
    source: str
    default_validation: int | float
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def _split(
    raw: _Raw,
    samples: int | None,
    validation: int | float | None,
    rng: torch.Generator,
    dtype: torch.dtype,
) -> Dataset:
    available = len(raw.train_y)
    aside = _count(raw.default_validation if validation is None else validation, available)
    left = available - aside
    samples = left if samples is None else samples
    if not isinstance(samples, int) or not 1 <= samples <= left:
        raise ValueError(
            f"samples={samples!r}: {raw.name} has {left} training images beside {aside} for validation; "
            f"choose a whole number from 1 to {left}"
        )
    order = _stratified_order(raw.train_y, rng)
    mean, std = _mean_and_std(raw.train_x[order[aside:]])

    def images(x: np.ndarray) -> Tensor:
        return torch.from_numpy((x - mean) / std).to(dtype)

    def labels(y: np.ndarray) -> Tensor:
        return torch.from_numpy(y.astype(np.int64))

    train, put_aside = order[aside : aside + samples], order[:aside]
    return Dataset(
        name=raw.name,
        source=raw.source,
        train_x=images(raw.train_x[train]),
        train_y=labels(raw.train_y[train]),
        validation_x=images(raw.train_x[put_aside]),
        validation_y=labels(raw.train_y[put_aside]),
        test_x=images(raw.test_x),
        test_y=labels(raw.test_y),
    )


def _count(validation: int | float, available: int) -> int:
    """Images to put aside, given as a number or as a fraction of those available."""
    number = round(validation * available) if isinstance(validation, float) else validation
    if not 0 <= number < available:
        raise ValueError(
            f"validation={validation!r}: choose a whole number from 0 to {available - 1} "
            "or a fraction (float) from 0 to below 1"
        )
    return number


def _stratified_order(labels: np.ndarray, rng: torch.Generator) -> np.ndarray:
    """A random order `(N,)` of which every prefix holds the classes in proportion.

    The k-th image of a class of n is due at (k + 1/2) / n of the whole; random ties.
    """
    order = torch.randperm(len(labels), generator=rng).numpy()
    shuffled = labels[order]
    due = np.empty(len(labels))
    for label in np.unique(shuffled):
        members = np.flatnonzero(shuffled == label)
        due[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(due, kind="stable")]


def _mean_and_std(pixels: np.ndarray) -> tuple[np.float32, np.float32]:
    std = pixels.std(dtype=np.float64)
    if std == 0:
        raise ValueError(f"all training pixels equal {pixels.flat[0]}: there is nothing to learn from")
    return np.float32(pixels.mean(dtype=np.float64)), np.float32(std)


# Sources


def _read_digits(rng: torch.Generator, remark: str = "") -> _Raw:
    from sklearn.datasets import load_digits  # slow to import, and MNIST does without

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    test, train = np.split(_stratified_order(y, rng), [round(DIGITS_TEST * len(y))])
    source = f"scikit-learn's bundled digits, 1797 images of 8 x 8 pixels{remark}"
    return _Raw("digits", source, DIGITS_VALIDATION, x[train], y[train], x[test], y[test])


def _find_mnist(fall_through: bool) -> tuple[Path, str]:
    """The folder with the four files, the user's own or else pooch's cache, and a sentence about it.

    With `fall_through`, a MEP_SIM_DATA that holds no MNIST is passed over, and the reason kept.
    """
    root = os.environ.get("MEP_SIM_DATA")
    if not root:
        folder = _download_mnist()
        return folder, f"MNIST, downloaded to {folder} and checked by SHA-256"
    folder = Path(root).expanduser() / "mnist"
    missing = [name for name in MNIST_SHA256 if _variant(folder, name) is None]
    if not missing:
        return folder, f"MNIST from {folder} (set by MEP_SIM_DATA)"
    if folder.is_dir():
        problem = f"MEP_SIM_DATA={root} lacks {', '.join(missing)} in its folder mnist"
    else:
        problem = f"MEP_SIM_DATA={root} has no folder mnist"
    if not fall_through:
        raise FileNotFoundError(problem)
    try:
        folder = _download_mnist()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{problem}, and {error}") from error
    return folder, f"MNIST, downloaded to {folder} and checked by SHA-256 ({problem})"


def _download_mnist() -> Path:
    """The folder of pooch's cache with all four files, fetched from the first mirror that gives them."""
    folder = pooch.os_cache("mep-sim") / "mnist"
    reasons = []
    for mirror in MNIST_MIRRORS:
        cache = pooch.create(path=folder, base_url=mirror, registry=MNIST_SHA256)
        downloader = pooch.HTTPDownloader(timeout=(CONNECT_SECONDS, READ_SECONDS))
        try:
            with _quiet(pooch.get_logger()):
                for name in MNIST_SHA256:
                    cache.fetch(name, downloader=downloader)
            return folder
        except (OSError, ValueError) as error:  # no network or no such host; or another file than published
            reasons.append(f"{mirror} ({type(error).__name__})")
    raise FileNotFoundError(f"no download from {' or '.join(reasons)}")


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


# The IDX format: four bytes 0, 0, 8 (unsigned byte), number of dimensions; the sizes as big-endian uint32;
# then the bytes. Images have three dimensions, labels one.


def _read_mnist(folder: Path, source: str) -> _Raw:
    train_x, train_y = _read_pair(folder, "train")
    test_x, test_y = _read_pair(folder, "t10k")
    if train_x.shape[1:] != test_x.shape[1:]:
        raise ValueError(
            f"{folder}: training images are {train_x.shape[1:]} pixels and test images {test_x.shape[1:]}; "
            "take all four files from one place"
        )

    def pixels(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1) / np.float32(255)

    return _Raw("mnist", source, MNIST_VALIDATION, pixels(train_x), train_y, pixels(test_x), test_y)


def _read_pair(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    images_path = _variant(folder, f"{part}-images-idx3-ubyte.gz")
    labels_path = _variant(folder, f"{part}-labels-idx1-ubyte.gz")
    images, labels = _read_idx(images_path, dimensions=3), _read_idx(labels_path, dimensions=1)
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} holds {len(images)} images and {labels_path} {len(labels)} labels; "
            "take all four files from one place"
        )
    if len(labels) == 0 or labels.max() >= CLASSES:
        found = f"label {labels.max()}" if len(labels) else "no labels"
        raise ValueError(f"{labels_path} holds {found}: expected labels from 0 to {CLASSES - 1}")
    return images, labels


def _variant(folder: Path, name: str) -> Path | None:
    """The file in whichever of its usual names is there: with `-idx` or `.idx`, gzipped or not."""
    plain = name.removesuffix(".gz")
    dotted = plain.replace("-idx", ".idx")
    names = (name, plain, f"{dotted}.gz", dotted)
    return next((folder / n for n in names if (folder / n).is_file()), None)


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":  # told by content: browsers like to unpack a .gz and keep its name
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file ({error}); fetch it again") from error
    magic = bytes([0, 0, 8, dimensions])
    start = 4 + 4 * dimensions
    if raw[:4] != magic or len(raw) < start:
        raise ValueError(
            f"{path} is not an IDX file of {dimensions}-dimensional bytes: expected it to begin with "
            f"0x{magic.hex()} and {dimensions} sizes, found {len(raw)} bytes with 0x{raw[:4].hex()}; "
            "fetch it again"
        )
    shape = np.frombuffer(raw, ">u4", count=dimensions, offset=4).astype(np.int64)
    if len(raw) - start != shape.prod():
        raise ValueError(
            f"{path} should hold {shape.prod()} bytes of {tuple(shape.tolist())}, found {len(raw) - start}; "
            "fetch it again"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)

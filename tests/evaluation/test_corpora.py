from itertools import islice

import numpy as np
import pytest

from mist_loss.evaluation import corpora
from mist_loss.evaluation.corpora import Item


def same(first: Item, second: Item) -> bool:
    return (
        (first.name, first.mi, first.held_out) == (second.name, second.mi, second.held_out)
        and np.array_equal(first.x, second.x)
        and np.array_equal(first.y, second.y)
    )


@pytest.fixture
def items() -> list[Item]:
    rng = np.random.default_rng(0)

    def side(n: int, d: int) -> np.ndarray:
        return rng.standard_normal((n, d), dtype=np.float32)

    return [
        Item("one", side(5, 2), side(5, 3), 0.25),
        Item("two", side(3, 1), side(3, 1), 1 / 3, held_out=True),
    ]


def test_grid_has_the_shape_of_the_paper():
    assert [corpora.grid_size(group) for group in ("imd", "oomd")] == [6 * 180, 7 * 180]
    assert len(corpora.GRID_ROWS) == 20
    assert corpora.GRID_ROWS[0] == 10
    assert corpora.GRID_ROWS[-1] == 500


def test_grid_items():
    pytest.importorskip("bmi")
    start = list(islice(corpora.paper_grid("imd", 0), 11))
    assert [item.rows for item in start] == [10] * 9 + [36] * 2
    assert {item.name for item in start} == {"multi_normal-dense-base"}
    for item in start:
        dx, dy = item.dims
        assert 2 <= dx == dy <= 32
        assert item.x.dtype == item.y.dtype == np.float32
        assert np.isfinite(item.x).all()
        assert item.mi >= 0
        assert not item.held_out
    assert len({item.dims for item in start}) > 4


def test_grid_is_repeatable_and_depends_on_seed_and_group():
    pytest.importorskip("bmi")

    def first(group: str, seed: int) -> Item:
        return next(iter(corpora.paper_grid(group, seed)))

    assert same(first("imd", 3), first("imd", 3))
    assert first("imd", 3).mi != first("imd", 4).mi
    assert first("imd", 3).mi != first("oomd", 3).mi


def test_unknown_group_is_named():
    with pytest.raises(ValueError, match="imd, oomd"):
        corpora.paper_grid("test", 0)


def test_bmi40():
    pytest.importorskip("bmi")
    items = list(corpora.bmi40(rows=12, seed=1))
    assert len({item.name for item in items}) == len(items) == 40
    assert {item.rows for item in items} == {12}
    held_out = {item.name for item in items if item.held_out}
    assert sum("spiral" in name for name in held_out) == 6
    assert len(held_out) == 8
    normal = next(item for item in items if item.name == "1v1-normal-0.75")
    assert normal.mi == pytest.approx(-0.5 * np.log(1 - 0.75**2))
    assert not same(normal, next(iter(corpora.bmi40(rows=12, seed=2))))


def test_save_and_load_round_trip(tmp_path, items):
    path = tmp_path / "new" / "corpus.npz"
    corpora.save(path, {"seed": 1}, items)
    request, loaded = corpora.load(path)
    assert request == {"seed": 1}
    assert all(same(a, b) for a, b in zip(items, loaded, strict=True))
    assert loaded[0].x.dtype == np.float32


def test_an_empty_corpus_round_trips(tmp_path):
    corpora.save(tmp_path / "empty.npz", {}, [])
    assert corpora.load(tmp_path / "empty.npz") == ({}, [])


def test_cache_builds_once_for_a_request(tmp_path, items):
    path, calls = tmp_path / "corpus.npz", []

    def build() -> list[Item]:
        calls.append(1)
        return items

    for seed in (1, 1, 2):
        result = corpora.cached(path, {"seed": seed}, build)
        assert all(same(a, b) for a, b in zip(items, result, strict=True))
    assert len(calls) == 2


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, items, monkeypatch):
    path = tmp_path / "corpus.npz"
    corpora.save(path, {"seed": 1}, items)

    def savez_that_dies(file, **columns):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(corpora.np, "savez", savez_that_dies)
    with pytest.raises(KeyboardInterrupt):
        corpora.save(path, {"seed": 2}, items)
    assert corpora.load(path)[0] == {"seed": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["corpus.npz"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"something else"])
def test_an_unreadable_cache_is_named(tmp_path, content):
    path = tmp_path / "corpus.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"corpus\.npz.*delete"):
        corpora.load(path)

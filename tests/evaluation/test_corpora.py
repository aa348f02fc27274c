from itertools import islice

import numpy as np
import pytest

from mist_loss.evaluation import corpora
from mist_loss.evaluation.corpora import Item
from mist_loss.meta.mixtures import MIXTURES


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


@pytest.mark.parametrize(
    "change",
    [
        {"header": np.array('{"format": 1}')},
        {"header": np.array("[]")},
        {"header": np.array('{"format": 0, "request": {}}')},
        {"shape": np.zeros(2, np.int64)},
        {"shape": np.array([["a", "b", "c"]])},
        {"mi": np.zeros(1)},
        {"x": None},
    ],
)
def test_an_altered_cache_is_named(tmp_path, items, change):
    path = tmp_path / "corpus.npz"
    corpora.save(path, {"seed": 1}, items)
    with np.load(path) as stored:
        columns = {key: change.get(key, stored[key]) for key in stored.files}
    np.savez(path, **{key: column for key, column in columns.items() if column is not None})
    with pytest.raises(ValueError, match=r"corpus\.npz.*delete"):
        corpora.load(path)


def test_a_cache_that_is_encrypted_is_named(tmp_path, items):
    path = tmp_path / "corpus.npz"
    corpora.save(path, {"seed": 1}, items)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag of the first entry
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"corpus\.npz.*delete"):
        corpora.load(path)


def test_places_of_the_grid_are_those_of_the_whole():
    pytest.importorskip("bmi")
    start = list(islice(corpora.paper_grid("imd", 0), 3))
    assert all(same(a, b) for a, b in zip(start, corpora.paper_grid("imd", 0, [0, 1, 2]), strict=True))
    (one,) = corpora.bmi40(rows=12, seed=1, places=[2])
    assert one.name == [item.name for item in islice(corpora.bmi40(rows=12, seed=1), 3)][2]


def test_thinning_spreads_over_a_grid_and_nests():
    shape = (6, 20, 9)
    size = int(np.prod(shape))
    assert corpora.thin(size, None) == corpora.thin(size, size) == list(range(size))
    small, large = corpora.thin(size, 120), corpora.thin(size, 360)
    assert len(small) == 120
    assert set(small) < set(large)
    assert small == sorted(set(small))
    for axis, cells in enumerate(np.unravel_index(small, shape)):
        counts = np.bincount(cells, minlength=shape[axis])
        assert counts.min() >= 0.6 * counts.mean()
        assert counts.max() <= 1.4 * counts.mean()


def test_thinning_keeps_blocks_together():
    places = corpora.thin(12, 7, 3)
    assert len(places) == 6
    assert [place % 3 for place in places] == [0, 1, 2, 0, 1, 2]
    with pytest.raises(ValueError, match="at least 3"):
        corpora.thin(12, 2, 3)


def test_a_thinned_corpus_comes_from_the_whole_one_or_is_built_alone(tmp_path, items):
    built = []

    def build(places):
        built.append(list(places))
        return [items[place] for place in places]

    corpus = corpora.Corpus("two", {"seed": 1}, 2, build)
    (alone,) = corpora.items(corpus, tmp_path, 1)
    assert built == [[0]]
    assert {path.name for path in tmp_path.iterdir()} == {"two-limit1.npz"}
    assert len(corpora.items(corpus, tmp_path, 5)) == 2
    (from_whole,) = corpora.items(corpus, tmp_path, 1)
    assert built == [[0], [0, 1]]
    assert same(alone, items[0])
    assert same(from_whole, items[0])


def test_a_digest_changes_with_anything_that_matters(items):
    first = items[0]
    changed = first.y.copy()
    changed[0, 0] += 1e-3
    others = [items[1], first._replace(mi=0.5), first._replace(y=changed), first._replace(x=first.y, y=first.x)]
    assert corpora.digest(first) == corpora.digest(first._replace(x=first.x.copy()))
    assert len({corpora.digest(item) for item in [first, *others]}) == 5


def test_scaling_by_rows_is_one_problem_with_more_of_its_rows():
    pytest.importorskip("bmi")
    points = len(corpora.SCALING_ROWS)
    curve = list(corpora.scaling_rows(3, range(points, 2 * points)))
    assert tuple(item.rows for item in curve) == corpora.SCALING_ROWS
    assert {item.name for item in curve} == {"multi_normal-dense-halfcube"}
    assert len({item.mi for item in curve}) == 1
    for item in curve:
        assert item.dims == (8, 8)
        assert np.array_equal(item.x, curve[-1].x[: item.rows])
        assert np.array_equal(item.y, curve[-1].y[: item.rows])
    assert same(curve[2], next(corpora.scaling_rows(3, [points + 2])))


def test_scaling_by_dims_has_every_dimension():
    pytest.importorskip("bmi")
    points = len(corpora.SCALING_DIMS)
    repeat = corpora.SCALING_BASES.index("multi_normal-2pair")
    curve = list(corpora.scaling_dims(3, range(repeat * points, repeat * points + 4)))
    assert [item.dims for item in curve] == [(d, d) for d in corpora.SCALING_DIMS[:4]]
    assert {item.rows for item in curve} == {500}
    assert [item.name for item in curve] == ["multi_normal-sparse-asinh"] + ["multi_normal-2pair-asinh"] * 3
    assert all(np.isfinite(item.x).all() and item.mi > 0 for item in curve)


def test_fresh_sets_depend_on_seed_and_place_only():
    all_of_them = list(corpora.fresh("broad", 3, range(4)))
    (alone,) = corpora.fresh("broad", 3, [2])
    (other,) = corpora.fresh("broad", 4, [2])
    assert corpora.digest(alone) == corpora.digest(all_of_them[2]) != corpora.digest(other)
    for item in all_of_them:
        assert item.name in MIXTURES["broad"].families
        assert item.x.shape[0] == item.y.shape[0] == item.rows
        assert item.mi >= 0

"""Pairs of columns, one by one."""

import sys

import numpy as np
import pytest
import torch

from mist_loss import estimate_mi, matrix

ROWS = np.random.default_rng(0).normal(size=(60, 4))


def test_every_cell_is_the_estimate_of_its_pair(model):
    found = matrix.mi_matrix(ROWS, ROWS[:, :2] ** 3, model=model)
    assert found.value.shape == (4, 2)
    for i in range(4):
        for j in range(2):
            one = estimate_mi(ROWS[:, i : i + 1], ROWS[:, j : j + 1] ** 3, model=model)
            torch.testing.assert_close(torch.stack([t[i, j] for t in found]), torch.stack(list(one)))


def test_symmetric_with_an_empty_diagonal(model):
    value, low, high = matrix.mi_matrix(ROWS, model=model)
    assert value.diagonal().isnan().all()
    torch.testing.assert_close(value, value.T, equal_nan=True)
    pairs = torch.triu_indices(4, 4, 1)
    assert (low <= high)[tuple(pairs)].all()


def test_batches_and_progress(model, monkeypatch):
    whole = matrix.mi_matrix(ROWS, model=model)
    monkeypatch.setattr(matrix, "ROWS_AT_ONCE", 130)  # two pairs
    seen = []
    parts = matrix.mi_matrix(ROWS, model=model, progress=lambda done, total: seen.append((done, total)))
    torch.testing.assert_close(parts.value, whole.value, equal_nan=True)
    assert seen == [(2, 6), (4, 6), (6, 6)]


def test_constants_share_nothing(model):
    value = matrix.mi_matrix(np.column_stack([ROWS[:, :2], np.ones(60)]), model=model).value
    assert value[2].tolist()[:2] == [0, 0]
    assert value.diagonal().isnan().all()
    assert value[0, 1] != 0


def test_one_column_has_no_pairs(model):
    assert matrix.mi_matrix(ROWS[:, :1], model=model).value.isnan().all()


def test_bad_input(model):
    with pytest.raises(ValueError, match=r"expected x of shape \(n, d\)"):
        matrix.mi_matrix(ROWS[:, 0], model=model)
    with pytest.raises(ValueError, match="as many rows"):
        matrix.mi_matrix(ROWS, ROWS[:10], model=model)
    holes = ROWS.copy()
    holes[3:5, 1], holes[7, 2] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"got 3 NaN or infinite in 2 of \d columns, most in x\[:, 1\] \(2\)"):
        matrix.mi_matrix(holes, model=model)
    with pytest.raises(ValueError, match=r"columns, most in y\[:, 1\]"):
        matrix.mi_matrix(ROWS, holes, model=model)


def test_table():
    text = matrix.to_csv(torch.tensor([[torch.nan, 0.25]]), ["a,b"], ["x", "y"])
    assert text == ',x,y\n"a,b",,0.2500\n'


def test_heat_map(tmp_path):
    pytest.importorskip("matplotlib")
    paths = matrix.write(tmp_path / "mi.csv", torch.rand(2, 3), ["a", "$b_{"], ["x", "y", "z"])
    assert [path.name for path in paths] == ["mi.csv", "mi.png"]
    assert (tmp_path / "mi.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_single_column_is_checked_too(model):
    for bad in (np.full((50, 1), np.nan), np.zeros((2, 1))):
        with pytest.raises(ValueError, match="expected"):
            matrix.mi_matrix(bad, model=model)
    with pytest.raises(ValueError, match="level"):
        matrix.mi_matrix(np.random.default_rng(0).normal(size=(50, 1)), level=5, model=model)


def test_any_tensor_is_read(model):
    rows = torch.randn(30, 2).bfloat16()
    expected = matrix.mi_matrix(rows.float(), model=model).value
    torch.testing.assert_close(matrix.mi_matrix(rows.requires_grad_(), model=model).value, expected, equal_nan=True)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ma.masked_array(np.ones((9, 2))), "without a mask"),
        (1j * np.ones((9, 2)), "complex"),
        (np.arange(18).reshape(9, 2).astype("datetime64[D]"), "times"),
        (np.arange(18).reshape(9, 2).astype(str), "text"),
        (np.arange(18).reshape(9, 2).astype(str).astype(object), "text"),
        (np.array([[None, 1.0]] * 9), "NoneType|NaN"),
        (torch.ones(9, 2).to_sparse(), "dense"),
        (torch.empty(9, 2, device="meta"), "real device"),
    ],
)
def test_what_a_conversion_would_drop_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        matrix.mi_matrix(x)


def test_a_table_is_kept_where_no_picture_can_be_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        matrix.write(tmp_path / "mi.csv", torch.ones(1, 1), ["a"], ["b"])
    assert (tmp_path / "mi.csv").read_text() == ",b\na,1.0000\n"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_defaults_of_torch_change_nothing(model, dtype):
    x = np.random.default_rng(0).normal(size=(60, 3))
    before = matrix.mi_matrix(x, model=model)
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            after = matrix.mi_matrix(x, model=model)
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


def test_a_series_is_told_from_a_frame(model):
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match=r"expected y of shape \(n, d\), got \(20,\)"):
        matrix.mi_matrix(np.zeros((20, 2)), pandas.Series(np.zeros(20)), model=model)

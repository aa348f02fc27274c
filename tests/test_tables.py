"""Columns out of files, as their owners and as strangers write them."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mist_loss import tables

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBERS = st.floats(allow_nan=False, width=32)


def test_all_columns_have_names(tmp_path):
    path = tmp_path / "rows.npz"
    np.savez(path, a=np.ones(5), b=np.ones((5, 2)))
    names, rows = tables.select(tables.load(path), ":")
    assert names == ["a", "b[0]", "b[1]"]
    assert rows.shape == (5, 3)


def test_a_file_without_names_is_refused_unless_they_are_positions(tmp_path):
    path = tmp_path / "rows.CSV"
    for numbers in ("0.5, 1e-3", "1, 0.5", "-1, -2", "5, 3", "1, 0", "2, 3"):
        path.write_text(f"{numbers}\n2,3\n")
        with pytest.raises(ValueError, match=rf"in the first line of rows.CSV, got numbers \({numbers}\)"):
            tables.load(path)
    for names in ("0,1", "1,2", "nan,b", "2.5,b", "1_1,1_2"):
        path.write_text(f"{names}\n2,3\n")
        assert list(tables.load(path)) == names.split(",")


@FUZZ
@given(rows=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=20))
def test_numbers_survive_every_format(tmp_path, rows):
    expected = np.array(rows)
    csv, npy, npz = (tmp_path / f"rows.{suffix}" for suffix in ("csv", "npy", "npz"))
    csv.write_text("a,b,c\n" + "\n".join(",".join(map(repr, row)) for row in rows))
    np.save(npy, expected)
    np.savez(npz, a=expected[:, 0], bc=expected[:, 1:])
    for path, second in ((csv, "b,c"), (npy, "1:"), (npz, "bc")):
        a, bc = tables.read_columns(path, ":1", second)
        np.testing.assert_array_equal(np.hstack([a, bc]), expected)


def numbers_or_value_error(path, specification=":"):
    try:
        names, rows = tables.select(tables.load(path), specification)
    except ValueError:
        return
    assert rows.dtype == np.float64
    assert rows.shape[1] == len(names) > 0


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".npz"])
@FUZZ
@given(content=st.binary(max_size=200))
def test_any_bytes(tmp_path, suffix, content):
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(content)
    numbers_or_value_error(path)


@FUZZ
@given(text=st.text(alphabet='ab1.,;"\n\r\t \0-e', max_size=60), specification=st.text(alphabet="ab01:, -", max_size=8))
def test_any_text_and_any_specification(tmp_path, text, specification):
    path = tmp_path / "noise.csv"
    path.write_text(text)
    numbers_or_value_error(path, specification)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
@FUZZ
@given(data=st.data())
def test_any_damage(tmp_path, suffix, data):
    path = tmp_path / f"damaged{suffix}"
    content = bytearray(intact(suffix))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path.write_bytes(content)
    numbers_or_value_error(path)


def intact(suffix):
    file = io.BytesIO()
    rows = np.arange(12.0).reshape(6, 2)
    if suffix == ".npy":
        np.save(file, rows)
    elif suffix == ".npz":
        np.savez_compressed(file, a=rows, b=rows[:, 0])
    else:
        pytest.importorskip("pyarrow", exc_type=ImportError)
        pytest.importorskip("pandas").DataFrame(rows, columns=["a", "b"]).to_parquet(file)
    return file.getvalue()


class Bomb:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_pickles_stay_closed(tmp_path):
    objects = np.array([[Bomb()]], dtype=object)
    np.save(tmp_path / "objects.npy", objects)
    np.savez(tmp_path / "objects.npz", a=objects)
    for name in ("objects.npy", "objects.npz"):
        with pytest.raises(ValueError, match=f"{name} is not a readable"):
            tables.read_columns(tmp_path / name, ":")


def test_headers_that_claim_too_much_cost_no_memory(tmp_path):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 2)})
    (tmp_path / "huge.npy").write_bytes(file.getvalue())
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("a.npy", file.getvalue())
    for name in ("huge.npy", "huge.npz"):
        with pytest.raises(ValueError, match=f"{name} is not a readable"):
            tables.read_columns(tmp_path / name, ":")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a;b\n1;2\n", "expected commas"),
        (b"a\tb\n1\t2\n", "expected commas"),
        (b"a,b\n\xff\xfe,2\n", "not a readable CSV"),
        (b"a,b\n1," + b"2" * 200_000 + b"\n", "not a readable CSV"),
    ],
)
def test_bad_csv(tmp_path, content, message):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        tables.read_columns(path, ":")


@pytest.mark.parametrize("values", [np.ones(5) * 1j, np.array(["2020-01-01"] * 5, dtype="M8[D]"), np.array(["x"] * 5)])
def test_what_is_no_number(tmp_path, values):
    np.savez(tmp_path / "rows.npz", a=values)
    with pytest.raises(ValueError, match="expected numbers in column 'a'"):
        tables.read_columns(tmp_path / "rows.npz", "a")


def test_an_archive_under_the_wrong_name(tmp_path):
    (tmp_path / "rows.npy").write_bytes(intact(".npz"))
    with pytest.raises(ValueError, match="got an archive"):
        tables.read_columns(tmp_path / "rows.npy", ":")
    (tmp_path / "rows.npz").write_bytes(intact(".npy"))
    with pytest.raises(ValueError, match="not a readable NPZ"):
        tables.read_columns(tmp_path / "rows.npz", ":")


def test_arrays_that_nobody_asks_for_are_not_read(tmp_path):
    path = tmp_path / "rows.npz"
    np.savez(path, a=np.ones(5), names=np.array(["a", None], dtype=object))
    assert tables.read_columns(path, "a")[0].shape == (5, 1)
    with pytest.raises(ValueError, match="not a readable NPZ file"):
        tables.read_columns(path, "names")


def test_dates_with_a_time_zone_are_dates(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    pandas.DataFrame({"d": pandas.date_range("2020", periods=5, tz="UTC")}).to_parquet(path)
    with pytest.raises(ValueError, match="expected numbers in column 'd': dates"):
        tables.read_columns(path, "d")


def test_underscores_are_no_digits(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a\n1_0\n2\n")
    with pytest.raises(ValueError, match="underscores"):
        tables.read_columns(path, "a")


@pytest.mark.parametrize(
    ("cells", "message"), [(["1_0", "2"], "underscores"), ([b"1", b"2"], "bytes"), (["1", " "], "row 2")]
)
def test_text_of_parquet_is_read_as_that_of_csv(tmp_path, cells, message):
    pandas, path = pytest.importorskip("pandas"), tmp_path / "rows.parquet"
    pytest.importorskip("pyarrow")
    pandas.DataFrame({"a": cells}).to_parquet(path)
    with pytest.raises(ValueError, match=message):
        tables.read_columns(path, "a")


def test_an_empty_file_is_called_empty(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("\ufeff")
    with pytest.raises(ValueError, match="is empty"):
        tables.read_columns(path, "a")


def test_a_missing_value_is_named(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("a,b\n1,2\n,3\n4,5\n,6\n")
    with pytest.raises(ValueError, match=r"'a': a value is missing in row 2 and 1 other"):
        tables.read_columns(path, "a")

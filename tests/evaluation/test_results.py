import math

import pytest

from mist_loss.evaluation.results import Result, Store, columns, estimators


def result(sample: str = "a", estimator: str = "fake", weights: str = "", **changes) -> Result:
    numbers = {"mi": 1 / 3, "value": 0.1, "low": 0.0, "high": 0.2, "level": math.nan, "seconds": 0.5} | changes
    return Result(
        corpus="imd",
        name="multi_normal, dense",
        held_out=False,
        rows=10,
        dim_x=2,
        dim_y=3,
        estimator=estimator,
        weights=weights,
        sample=sample,
        **numbers,
    )


def test_results_come_back_as_they_were(tmp_path):
    path = tmp_path / "new" / "results.csv"
    store = Store(path)
    written = [result("a", level=0.25), result("b")._replace(held_out=True)]
    for one in written:
        store.add(one)
    assert path.read_text().splitlines()[0] == ",".join(Result._fields)
    read = list(Store(path).results.values())
    assert read[0] == written[0]
    assert math.isnan(read[1].level)
    assert read[1].held_out


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_last_line_is_dropped_and_written_anew(tmp_path, cut):
    path = tmp_path / "results.csv"
    store = Store(path)
    store.add(result("a"))
    store.add(result("b"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    store = Store(path)
    assert [r.sample for r in store.results.values()] == ["a"]
    store.add(result("b"))
    assert path.read_bytes() == whole


def test_a_torn_header_is_no_file(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("corpus,na")
    Store(path).add(result())
    assert len(Store(path).results) == 1


def test_stale_results_leave_the_file(tmp_path):
    path = tmp_path / "results.csv"
    store = Store(path)
    for weights in ("old", "new"):
        store.add(result(weights=weights))
    store.forget(lambda r: r.weights == "old")
    assert [r.weights for r in store.results.values()] == ["new"]
    assert [r.weights for r in Store(path).results.values()] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("corpus,name\nimd,one\n")
    with pytest.raises(ValueError, match=r"expected the columns.*results\.csv"):
        Store(path)


@pytest.mark.parametrize("content", [b"corpus,name\nimd,one", b"notes", b"\xff\xfea\x00\n", b"corpus\n\x00\n"])
def test_another_file_is_left_as_it_was(tmp_path, content):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"results\.csv.*move it away"):
        Store(path)
    assert path.read_bytes() == content


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "results.csv"
    Store(path).add(result())
    path.write_text(path.read_text().replace("False", "no"))
    with pytest.raises(ValueError, match="line 2"):
        Store(path)


def test_columns_and_groups():
    c = columns([result(value=1.0), result(value=2.0)])
    assert c.value.tolist() == [1.0, 2.0]
    assert c.dims.tolist() == [3.0, 3.0]
    assert columns([]).mi.shape == (0,)
    assert list(estimators([result(estimator="b"), result(estimator="a"), result(estimator="b")])) == ["b", "a"]

import math

import pytest

from mist_loss.evaluation import tables
from mist_loss.evaluation.results import Result


def result(
    mi: float,
    value: float,
    rows: int = 100,
    corpus: str = "imd",
    name: str = "multi_normal-dense-base",
    estimator: str = "fake",
    half: float = 1.0,
    held_out: bool = False,
    seconds: float = 1.0,
    d: int = 2,
) -> Result:
    ends = (value - half, value + half)
    return Result(corpus, name, held_out, rows, d, d, mi, estimator, value, *ends, math.nan, seconds, "", "")


def body(table: str) -> list[str]:
    return table.splitlines()[2:]


def test_every_line_has_as_many_cells():
    for table in (tables.paper, tables.bmi, tables.coverage, tables.time):
        lines = table([result(1.0, 2.0), result(3.0, 3.0, rows=200, held_out=True)]).splitlines()
        assert len({line.count("|") for line in lines}) == 1


def test_paper():
    results = [result(2, 1), result(4, 1), result(3, 2, rows=200), result(5, 5, rows=500)]
    # the mean of the truths is 3.5
    assert body(tables.paper(results)) == [
        "| imd | fake | 5 | 1 | 0 | 50.0% | 100.0% | 100.0% |",
        "| imd | predict the mean | 1.25 | 0.25 | 2.25 |  |  |  |",
    ]


def test_paper_by_group_and_estimator():
    results = [result(2, 1, corpus=c, estimator=e) for e in ("one", "two") for c in ("imd", "oomd")]
    assert [line.split(" | ")[:2] for line in body(tables.paper(results))] == [
        [f"| {group}", estimator] for group in ("imd", "oomd") for estimator in ("one", "two", "predict the mean")
    ]


def test_bmi_sets_held_out_tasks_apart():
    results = [
        result(2.0, 1.0, 100, name="a"),
        result(4.0, 1.0, 100, name="b", held_out=True),
        result(2.0, 2.0, 200, name="a"),
        result(2.5, 2.0, 200, name="b", held_out=True),
    ]
    lines = tables.bmi(results).splitlines()
    assert lines[0] == (
        "| tasks | number | estimator | MAE, n = 100 | MAE, n = 200 "
        "| coverage of 90%, n = 100 | coverage of 90%, n = 200 |"
    )
    assert lines[2:] == [
        "| all tasks | 2 | fake | 2 | 0.25 | 50.0% | 100.0% |",
        "| without held-out families | 1 | fake | 1 | 0 | 100.0% | 100.0% |",
        "| held-out families | 1 | fake | 3 | 0.5 | 0.0% | 100.0% |",
    ]


def test_failed_estimates_are_counted_and_methods_without_intervals_have_no_coverage():
    results = [result(2.0, 1.5), result(2.0, math.nan), result(2.0, 1.0, estimator="point", half=math.nan)]
    assert body(tables.bmi(results))[:2] == [
        "| all tasks | 1 | fake | 0.5 (1 failed) | 50.0% |",
        "| all tasks | 1 | point | 1 |  |",
    ]


def test_scaling():
    curve = {10: 1.1, 100: 0.1, 1000: 0.05}
    results = [result(1.0, 1.0 + error, n, "scaling-rows") for n, error in curve.items()]
    results += [result(1.0, 1.0 + error, 500, "scaling-dims", d=d) for d, error in ((1, 0.25), (8, 0.5))]
    assert tables.by_rows(results).splitlines()[0] == "| estimator | MAE, n = 10 | MAE, n = 100 | MAE, n = 1000 |"
    assert body(tables.by_rows(results)) == ["| fake | 1.1 | 0.1 | 0.05 |"]
    assert body(tables.by_dims(results)) == ["| fake | 0.25 | 0.5 |"]
    # from 1.1 at 10 rows to 0.1 at 100: 0.2 is 0.9 of the way, 0.5 is 0.6 of it
    (line,) = body(tables.rows_needed(results))
    assert line == f"| fake | 100 | {10**1.9:.0f} | {10**1.6:.0f} |"


@pytest.mark.parametrize(("error", "cell"), [(2.0, "more than 100"), (0.05, "at most 10")])
def test_rows_needed_outside_the_curve(error, cell):
    results = [result(1.0, 1.0 + error, n, "scaling-rows") for n in (10, 100)]
    assert body(tables.rows_needed(results)) == [f"| fake | {cell} | {cell} | {cell} |"]


def test_classes():
    def image(corpus: str, k: int, flip: float, error: float) -> Result:
        return result(1.0, 1.0 + error, corpus=f"classes-{corpus}", name=f"{corpus}-k{k}-flip{flip:g}-width4")

    results = [image("digits", 1, 0, 0.25), image("digits", 2, 0.05, 0.75), image("pixels", 1, 0.05, 0.5)]
    assert tables.by_sources(results).splitlines()[0] == "| embeddings | estimator | all | k = 1 | k = 2 |"
    assert body(tables.by_sources(results)) == [
        "| digits | fake | 0.5 | 0.25 | 0.75 |",
        "| pixels | fake | 0.5 | 0.5 |  |",
        "| all | fake | 0.5 | 0.375 | 0.75 |",
    ]
    assert tables.by_flips(results).splitlines()[0] == "| embeddings | estimator | all | flip 0 | flip 0.05 |"
    with pytest.raises(ValueError, match="got 'other'"):
        tables.by_sources([result(1.0, 1.0, corpus="classes-digits", name="other")])


def test_coverage_of_buckets_that_are_large_enough():
    few = [result(1.0, 1.0, rows=500, name="multi_student-sparse-base") for _ in range(tables.ENOUGH - 1)]
    enough = [result(1.0, 3.0, rows=100) for _ in range(tables.ENOUGH)]
    assert body(tables.coverage(few + enough)) == [
        "| all | all | 399 | 49.9% | 2 |",
        "| all | n = 100 | 200 | 0.0% | 2 |",
        "| multi_normal | all | 200 | 0.0% | 2 |",
        "| multi_normal | n = 100 | 200 | 0.0% | 2 |",
    ]
    assert body(tables.coverage(few[:2])) == ["| all | all | 2 | 100.0% | 2 |"]


def test_width_at_the_coverage_of_the_first():
    # the first covers three of four; the second misses by 0.5, 1, 2 and 4 of its half widths
    first = [result(0.0, value, half=1.0) for value in (0, 0, 1, 9)]
    second = [result(0.0, distance, half=0.5, estimator="ksg") for distance in (0.25, 0.5, 1, 2)]
    assert body(tables.width(first + second)) == [
        "| fake | 75.0% | 2 | 1 | 2 |",
        "| ksg | 50.0% | 1 | 2 | 2 |",
    ]
    assert tables.width(first) == ""


def test_time_is_relative_to_the_first():
    results = [result(1, 1, rows, seconds=s) for rows, s in ((10, 1.0), (20, 2.0))]
    results += [result(1, 1, rows, seconds=s, estimator="slow") for rows, s in ((10, 3.0), (20, 20.0))]
    assert tables.time(results).splitlines()[0] == "| estimator | all | n = 10 | n = 20 |"
    assert body(tables.time(results)) == ["| fake | 1 | 1 | 1 |", "| slow | 7.67 | 3 | 10 |"]


def test_many_row_counts_are_put_in_buckets():
    label = tables.row_label([result(1, 1, rows) for rows in range(10, 20)])
    assert label(result(1, 1, 300)) == "100-300 rows"


def test_a_report_leaves_out_what_is_empty():
    results = [result(1.0, 2.0, half=math.nan, corpus="imd")]
    text = tables.report("paper", results)
    assert [line for line in text.splitlines() if line.startswith("##")] == ["## Error", "## Time"]


def test_width_does_not_depend_on_the_order():
    # three of four are covered, and would be with half the width
    values = (0.0, 0.25, 0.5, 9.0)
    results = [result(0.0, value, half=1.0, estimator=name) for name in ("one", "two") for value in values]
    assert [line.split(" | ")[1:] for line in body(tables.width(results))] == [["75.0%", "2", "0.5", "1 |"]] * 2

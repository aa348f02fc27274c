import numpy as np
import pytest

pytest.importorskip("matplotlib")

from mist_loss.evaluation import figures
from mist_loss.evaluation.results import Result


def results(corpus: str, rows=(10, 100, 500), dims=(2, 8), levels=True) -> list[Result]:
    rng = np.random.default_rng(0)
    made = []
    for estimator in ("mist", "ksg"):
        for n in rows:
            for d in dims:
                level = float(rng.random()) if levels and estimator == "mist" else float("nan")
                value = 1 + 10 / n
                made.append(
                    Result(corpus, "task", False, n, d, d, 1.0, estimator, value, 0.5, 1.5, level, n / 100, "", "")
                )
    return made


def points(line) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


@pytest.mark.parametrize(
    ("suite", "made", "names"),
    [
        ("paper", results("imd"), {"error-by-rows", "error-by-dims", "calibration", "time"}),
        ("bmi", results("bmi40-rows500"), {"error-by-rows", "calibration", "time"}),
        ("bmi", results("bmi40-rows500", rows=(500,)), {"calibration", "time"}),
        ("scaling", results("scaling-rows", dims=(8,)), {"error-by-rows", "calibration", "time"}),
        ("scaling", results("scaling-dims", rows=(500,)), {"error-by-dims", "calibration", "time"}),
        ("classes", results("classes-digits"), {"calibration", "time"}),
        ("paper", [], set()),
    ],
)
def test_figures_of_a_suite(suite, made, names):
    assert set(figures.draw(suite, made)) == names


def test_a_line_is_the_mean_absolute_error():
    (axes,) = figures.draw("scaling", results("scaling-rows", dims=(8,)))["error-by-rows"].axes
    x, y = points(axes.lines[0])
    assert x.tolist() == [10, 100, 500]
    assert y == pytest.approx([1, 0.1, 0.02])
    assert [line.get_label() for line in axes.lines] == ["mist", "ksg"]


def test_calibration_of_levels_and_of_a_single_interval():
    made = [r._replace(level=(i + 0.5) / 6) for i, r in enumerate(results("imd")[:6])]
    ksg = [r for r in results("imd") if r.estimator == "ksg"]
    made += [ksg[0]._replace(high=0.9), *ksg[1:]]  # one of six misses the truth
    (axes,) = figures.draw("paper", made)["calibration"].axes
    _, levels, single = axes.lines
    nominal, share = points(levels)
    assert np.abs(share - nominal).max() < 0.2
    at, coverage = points(single)
    assert at.tolist() == [0.9]
    assert coverage.tolist() == [5 / 6]


def test_the_file_is_small_whole_and_the_same_every_time(tmp_path):
    for name in ("one.png", "two.png"):
        figures.save(figures.draw("paper", results("imd"))["error-by-rows"], tmp_path / name)
    content = (tmp_path / "one.png").read_bytes()
    assert content == (tmp_path / "two.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 100_000
    assert len(list(tmp_path.iterdir())) == 2

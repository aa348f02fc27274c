import argparse
import json
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from mist_loss.evaluation import bench, corpora
from mist_loss.evaluation.corpora import Item
from mist_loss.evaluation.estimators import Named, Predictive
from mist_loss.evaluation.results import Result, Store
from mist_loss.model import quantiles
from mist_loss.model.weights import save_weights

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")


class Fake(NamedTuple):
    value: Tensor
    low: Tensor
    high: Tensor


class Counter:
    """Says how many rows it saw, in hundreds, and counts how often it was asked."""

    def __init__(self, die_at: int | None = None):
        self.calls = 0
        self.die_at = die_at

    def __call__(self, x: Tensor, y: Tensor) -> Fake:
        self.calls += 1
        if self.calls == self.die_at:
            raise KeyboardInterrupt
        value = torch.tensor(len(x) / 100)
        return Fake(value, value - 1, value + 1)


def item(rows: int, mi: float = 2.0, held_out: bool = False, name: str = "task") -> Item:
    return Item(name, np.zeros((rows, 2), np.float32), np.zeros((rows, 3), np.float32), mi, held_out)


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(arguments)


def steady(results: list[Result]) -> list[Result]:
    """Without what differs from run to run, and without NaN, which equals nothing."""
    return [result._replace(seconds=0.0, level=0.0) for result in results]


def test_an_estimate_stands_beside_the_truth():
    result = bench.estimate("imd", item(50, 0.75), Named("fake", "abc", Counter()))
    expected = ("imd", "task", False, 50, 2, 3, 0.75, "fake", 0.5, -0.5, 1.5)
    assert result[: len(expected)] == expected
    assert np.isnan(result.level)
    assert result.seconds > 0
    assert result.weights == "abc"
    assert result.sample == corpora.digest(item(50, 0.75))


def test_the_level_is_that_of_the_truth():
    knots = quantiles.knot_scores(torch.zeros(())) + 5
    named = Named("mist", "", lambda x, y: Predictive(knots[6], knots[0], knots[-1], knots))
    assert bench.estimate("imd", item(50, 5.0), named).level == pytest.approx(0.5)
    assert bench.estimate("imd", item(50, 6.0), named).level == pytest.approx(0.841345, abs=1e-5)


def test_what_an_estimator_draws_depends_on_the_item_alone():
    def random(x: Tensor, y: Tensor) -> Fake:
        return Fake(*torch.rand(3))

    before = torch.random.get_rng_state()
    first, again, other = (bench.estimate("imd", item(n), Named("random", "", random)) for n in (10, 10, 11))
    assert first.value == again.value != other.value
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_failed_estimate_is_nan_and_training_may_use_gradients():
    def fail(x: Tensor, y: Tensor) -> Fake:
        assert torch.is_grad_enabled()
        raise ValueError("too few rows")

    result = bench.estimate("imd", item(10), Named("fake", "", fail))
    assert np.isnan([result.value, result.low, result.high, result.level]).all()


LOADED = {"a": [item(n) for n in (10, 20, 30)], "b": [item(10)]}


def test_a_run_warms_up_once_and_is_not_repeated(tmp_path):
    counter = Counter()
    first = bench.run(LOADED, [Named("fake", "", counter)], Store(tmp_path / "results.csv"))
    assert counter.calls == 5
    assert [(r.corpus, r.rows) for r in first] == [("a", 10), ("a", 20), ("a", 30), ("b", 10)]
    again = bench.run(LOADED, [Named("fake", "", counter)], Store(tmp_path / "results.csv"))
    assert counter.calls == 5
    assert steady(again) == steady(first)


@pytest.mark.parametrize("tear", [0, 7])
def test_a_killed_run_goes_on(tmp_path, tear):
    path = tmp_path / "results.csv"
    whole = bench.run(LOADED, [Named("fake", "", Counter())], Store(tmp_path / "whole.csv"))
    with pytest.raises(KeyboardInterrupt):
        bench.run(LOADED, [Named("fake", "", Counter(die_at=4))], Store(path))
    assert path.read_text().count("\n") == 3
    path.write_bytes(path.read_bytes()[: -tear or None])
    counter = Counter()
    resumed = bench.run(LOADED, [Named("fake", "", counter)], Store(path))
    assert counter.calls == (4 if tear else 3)
    assert steady(resumed) == steady(whole)


def test_other_weights_samples_and_estimators_are_not_mixed(tmp_path):
    def run(loaded: dict, name: str, weights: str) -> int:
        counter = Counter()
        results = bench.run(loaded, [Named(name, weights, counter)], Store(tmp_path / "results.csv"))
        assert {r.weights for r in results} == {weights}
        return counter.calls

    one = {"a": [item(10)]}
    assert run(one, "fake", "old") == 2
    assert run(one, "other", "") == 2
    assert run(one, "fake", "new") == 2
    assert run({"a": [item(10, mi=2.5)]}, "fake", "new") == 2
    assert run(one, "fake", "new") == 0
    assert {r.weights for r in Store(tmp_path / "results.csv").results.values()} == {"", "new"}


def test_the_order_of_the_file_changes_nothing(tmp_path):
    texts = []
    for names in (["one", "two"], ["two", "one"]):
        store = Store(tmp_path / f"{names[0]}.csv")
        for name in names:
            for items in ({"a": LOADED["a"][::-1]}, LOADED):
                bench.run(items, [Named(name, "", Counter())], store)
        both = steady(bench.run(LOADED, [Named(name, "", Counter()) for name in ("one", "two")], store))
        folder = tmp_path / names[0]
        folder.mkdir()
        bench.write_report(folder, "bmi", "bmi", [r._replace(seconds=1.0) for r in both], "command")
        texts.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert texts[0] == texts[1]
    assert "bmi-error-by-rows.png" in texts[0]


@pytest.fixture
def small(tmp_path, model, monkeypatch) -> str:
    """Small tasks in place of BMI's, and a small model in a file."""
    rng = np.random.default_rng(0)

    def tasks(rows: int, seed: int, places: list[int]) -> list[Item]:
        sides = [rng.standard_normal((2, rows, 2), dtype=np.float32) for _ in places]
        return [Item(f"normal-{i}", x, y, 0.0, i > 20) for i, (x, y) in zip(places, sides, strict=True)]

    monkeypatch.setattr(corpora, "bmi40", tasks)
    weights = tmp_path / "small.safetensors"
    save_weights(model, weights, {})
    return str(weights)


def test_main_leaves_results_tables_and_figures(tmp_path, small, capsys, monkeypatch):
    arguments = ["--suite", "bmi", "--rows", "24,30", "--estimators", f"{small},{small}@3", "--output", str(tmp_path)]
    assert bench.main(parse(*arguments, "--seed", "7", "--limit", "6")) == 0
    folder = tmp_path / "bmi-seed7"
    names = ["calibration.png", "error-by-rows.png", "time.png"]
    expected = {"results.csv", "bmi-limit6.md", *(f"bmi-limit6-{name}" for name in names)}
    assert {path.name for path in folder.iterdir()} == expected
    text = (folder / "bmi-limit6.md").read_text()
    assert text in capsys.readouterr().out
    assert f"mist-loss bench --suite bmi --seed 7 --estimators {small},{small}@3 --limit 6 --rows 24,30" in text
    assert "| held-out families | " in text
    results = Store(folder / "results.csv").results.values()
    assert len(results) == 2 * 2 * 6
    assert all(0 <= r.level <= 1 and r.low <= r.value <= r.high for r in results)
    assert {path.name for path in (tmp_path / "corpora").iterdir()} == {
        f"bmi40-rows{n}-seed7-limit6.npz" for n in (24, 30)
    }

    monkeypatch.setattr(corpora, "bmi40", None)
    monkeypatch.setattr(bench, "estimate", None)
    assert bench.main(parse(*arguments, "--seed", "7", "--limit", "6")) == 0
    assert (folder / "bmi-limit6.md").read_text() == text


def test_all_suites_and_the_quick_run(tmp_path, small, monkeypatch):
    asked = []

    def corpora_of(suite, seed, options, cache):
        asked.append((suite, options["limit"], options["rows"], options["encoders"]))
        return {}

    monkeypatch.setattr(bench, "suite_corpora", corpora_of)
    monkeypatch.setattr(bench, "write_report", lambda *_: "")
    bench.main(parse("--quick", "--rows", "100", "--estimators", small, "--output", str(tmp_path)))
    assert asked == [(suite, 40, (100,), ("digits",)) for suite in bench.SUITES]


def test_corpora_of_the_suites(tmp_path):
    planned = {suite: bench.suite_corpora(suite, 3, bench.DEFAULTS, tmp_path) for suite in bench.SUITES}
    sizes = {name: corpus.size for part in planned.values() for name, corpus in part.items()}
    assert sizes == {
        "imd": 1080,
        "oomd": 1260,
        "bmi40-rows500": 40,
        "bmi40-rows1000": 40,
        "scaling-rows": 36,
        "scaling-dims": 42,
        "classes-digits": 48,
        "classes-fashion-pixels": 48,
        "classes-fashion-efficientnet": 48,
        "everyday": 720,
        "fresh-broader": 2000,
    }
    assert planned["paper"]["imd"].file == "paper-imd-seed3"
    assert list(tmp_path.iterdir()) == []


def test_a_mixture_of_other_weights_is_another_corpus(monkeypatch, tmp_path):
    def planned():
        return bench.suite_corpora("fresh", 3, bench.DEFAULTS, tmp_path)["fresh-broader"].request

    before = planned()
    assert planned() == before
    weight, family = bench.MIXTURES["broader"].families["labels"]
    monkeypatch.setitem(bench.MIXTURES["broader"].families, "labels", (weight + 1, family))
    assert planned() != before
    monkeypatch.undo()
    monkeypatch.setattr(bench, "VERSION", bench.VERSION + 1)
    assert planned() != before


@pytest.mark.parametrize("change", ["ROWS", "REPEATS", "VERSION"])
def test_other_everyday_problems_are_another_corpus(monkeypatch, tmp_path, change):
    def planned():
        return bench.suite_corpora("everyday", 3, bench.DEFAULTS, tmp_path)["everyday"].request

    before = planned()
    assert json.loads(json.dumps(before)) == before
    value = getattr(bench.everyday, change)
    monkeypatch.setattr(bench.everyday, change, value[:2] if change == "ROWS" else value + 1)
    assert planned() != before


@pytest.mark.parametrize(
    "change",
    [{"rows": (10, 99)}, {"dims": (1, 9)}, {"equal": 0.4}, {"equal_dims": (1, 9)}, {"wide": 0.1}, {"small": 0.3}],
)
def test_a_mixture_of_other_shapes_is_another_corpus(monkeypatch, tmp_path, change):
    def planned():
        return bench.suite_corpora("fresh", 3, bench.DEFAULTS, tmp_path)["fresh-broader"].request

    before = planned()
    assert json.loads(json.dumps(before)) == before  # or a cached file would never answer it
    monkeypatch.setitem(bench.MIXTURES, "broader", replace(bench.MIXTURES["broader"], **change))
    assert planned() != before


@pytest.mark.parametrize("rows", ["", "a", "500,,", "1,500"])
def test_wrong_row_counts_are_an_error(rows, capsys):
    with pytest.raises(SystemExit):
        parse("--rows", rows)
    assert "500,1000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "paper", "--rows", "500"], "--suite bmi"),
        (["--suite", "bmi", "--repeats", "2"], "--suite scaling"),
        (["--suite", "bmi", "--limit", "0"], "--limit of 1"),
        (["--encoders", "eyes"], "got eyes"),
        (["--mixtures", "soup"], "got soup"),
        (["--suite", "all", "--limit", "3"], "--limit of 7 or more"),
        (["--suite", "scaling", "--limit", "6"], "--limit of 7 or more"),
        (["--suite", "objective", "--seed", str(2**63)], "expected --seed in 0 to"),
        (["--seed", "-1"], "expected --seed in 0 to"),
        (["--suite", "objective", "--estimators", "infonce,mist-base@q0.0"], "quantile"),
    ],
)
def test_options_that_do_not_fit_are_named(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        bench.main(parse(*arguments, "--output", str(tmp_path)))


def test_empty_names_are_an_error(capsys):
    with pytest.raises(SystemExit):
        parse("--estimators", "ksg,,cca")
    assert "separated by commas" in capsys.readouterr().err

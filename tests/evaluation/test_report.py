import argparse
import csv
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from mist_loss.evaluation import corpora, report
from mist_loss.evaluation.corpora import Item
from mist_loss.evaluation.report import Result
from mist_loss.model.network import MIST, MISTConfig
from mist_loss.model.weights import save_weights


class Fake(NamedTuple):
    value: Tensor
    low: Tensor
    high: Tensor


def fake_estimator(x: Tensor, y: Tensor) -> Fake:
    """Says how many rows it saw, in hundreds."""
    value = torch.tensor(len(x) / 100)
    return Fake(value, value - 1, value + 1)


def item(rows: int, mi: float, held_out: bool = False, name: str = "task") -> Item:
    return Item(name, np.zeros((rows, 2), np.float32), np.zeros((rows, 3), np.float32), mi, held_out)


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    return parser.parse_args(arguments)


def test_evaluate_keeps_the_truth_beside_the_estimate():
    result = report.evaluate("imd", [item(50, 0.75)], fake_estimator)
    assert result == [Result("imd", "task", False, 50, 2, 3, 0.75, 0.5, -0.5, 1.5)]


def test_evaluate_runs_without_gradients():
    def check(x: Tensor, y: Tensor) -> Fake:
        assert not torch.is_grad_enabled()
        return fake_estimator(x, y)

    report.evaluate("imd", [item(50, 0.75)], check)


def test_paper_table():
    items = [item(100, 2.0), item(100, 4.0), item(200, 3.0), item(500, 5.0)]
    lines = report.paper_table(report.evaluate("imd", items, fake_estimator), "fake").splitlines()
    assert lines[0].count("|") == lines[2].count("|") == lines[3].count("|")
    # value 1, 1, 2, 5 for 2, 4, 3, 5; the mean is 3.5
    assert lines[2] == "| imd | fake | 5 | 1 | 0 | 50% | 100% | 100% |"
    assert lines[3] == "| imd | predict the mean | 1.25 | 0.25 | 2.25 |  |  |  |"


def test_bmi_table_sets_held_out_tasks_apart():
    items = [item(100, 2.0, name="a"), item(100, 4.0, True, "b"), item(200, 2.0, name="a")]
    items.append(item(200, 2.5, True, "b"))
    lines = report.bmi_table(report.evaluate("bmi40", items, fake_estimator), "fake").splitlines()
    assert lines[0] == (
        "| tasks | number | estimator | MAE, n = 100 | MAE, n = 200 "
        "| coverage of 90%, n = 100 | coverage of 90%, n = 200 |"
    )
    assert lines[2:] == [
        "| all tasks | 2 | fake | 2 | 0.25 | 50% | 100% |",
        "| without held-out families | 1 | fake | 1 | 0 | 100% | 100% |",
        "| held-out families | 1 | fake | 3 | 0.5 | 0% | 100% |",
    ]


def test_bench_writes_table_and_every_item_and_caches_the_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "bmi40", lambda rows, seed: [item(rows, 2.0), item(rows, 3.0, True)])
    text, results = report.bench("bmi", fake_estimator, "fake", 7, (20, 30), tmp_path)
    assert (tmp_path / "bmi.md").read_text() == text
    with (tmp_path / "bmi.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(results) == 4
    assert float(lines[0]["value"]) == pytest.approx(0.2)
    cached = {path.name for path in (tmp_path / "corpora").iterdir()}
    assert cached == {"bmi40-rows20-seed7.npz", "bmi40-rows30-seed7.npz"}

    monkeypatch.setattr(corpora, "bmi40", None)
    assert report.bench("bmi", fake_estimator, "fake", 7, (20, 30), tmp_path)[0] == text


def test_bench_of_the_paper_has_both_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "paper_grid", lambda group, seed: [item(20, 2.0), item(200, 3.0)])
    text, results = report.bench("paper", fake_estimator, "fake", 0, (), tmp_path)
    assert {result.corpus for result in results} == {"imd", "oomd"}
    assert text.count("predict the mean") == 2


def test_arguments():
    args = parse("--suite", "bmi", "--rows", "500,1000", "--seed", "3")
    assert (args.suite, args.rows, args.seed, args.model) == ("bmi", (500, 1000), 3, "mist-base")


@pytest.mark.parametrize("rows", ["", "a", "500,,", "1,500"])
def test_wrong_row_counts_are_an_error(rows, capsys):
    with pytest.raises(SystemExit):
        parse("--rows", rows)
    assert "500,1000" in capsys.readouterr().err


def test_rows_do_not_belong_to_the_paper():
    with pytest.raises(ValueError, match="--suite bmi"):
        report.main(parse("--rows", "500"))


def test_an_unknown_model_is_named(tmp_path):
    missing = str(tmp_path / "missing.safetensors")
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors"):
        report.main(parse("--model", missing, "--output", str(tmp_path)))


def test_main_runs_a_model_from_a_file(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 24, 2), dtype=np.float32)
    monkeypatch.setattr(corpora, "bmi40", lambda rows, seed: [Item("normal", x, y, 0.0)])
    weights = tmp_path / "untrained.safetensors"
    torch.manual_seed(0)
    save_weights(MIST(MISTConfig()), weights, {})
    arguments = ["--suite", "bmi", "--rows", "24", "--model", str(weights), "--output", str(tmp_path)]
    assert report.main(parse(*arguments)) == 0
    assert "all tasks" in capsys.readouterr().out
    with (tmp_path / "bmi.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert float(line["low"]) <= float(line["high"])

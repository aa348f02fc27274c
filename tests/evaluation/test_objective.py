import argparse
import csv
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from mist_loss import cli
from mist_loss.evaluation import bars, bench, contenders, objective, scenarios
from mist_loss.evaluation.contenders import Reading
from mist_loss.evaluation.objective import Key, Row
from mist_loss.evaluation.scenarios import Linear, Samples, Scenario, spectrum
from mist_loss.meta.structures import gaussian_mi

SMALL = Linear("small", spectrum("decaying", 12, 4), dims=4)


def plug_in(z1: Tensor, z2: Tensor) -> tuple[Tensor, Reading]:
    """The mutual information of the Gaussian that fits the rows, with an interval of half a nat."""
    covariance = torch.cov(torch.cat([z1, z2], dim=1).double().T)
    nats = gaussian_mi(covariance[None], z1.shape[1])[0]
    value = float(nats.detach())
    return -nats, Reading(value, value - 0.5, value + 0.5)


def fake(name: str, weights: str = "", directions: tuple[str, ...] = ("maximize",)) -> contenders.Named:
    return contenders.Named(name, weights, directions, lambda dims, direction: plug_in)


def key(steps: int, loss: str = "fake", seed: int = 0) -> Key:
    return Key("problem", loss, "", seed, steps)


def row(**numbers) -> Row:
    words = {"scenario": "a", "kind": "gaussian", "direction": "maximize", "loss": "b", "problem": "p", "weights": ""}
    columns = dict.fromkeys(Row._fields, 0.0) | {"rows": 256, "best": 1.0} | words | numbers
    return Row(**columns)


def test_nothing_that_trains_the_estimator_is_imported():
    code = (
        "import sys, mist_loss.evaluation.objective as o; print([m for m in sys.modules if 'mist_loss.training' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_gap_is_the_distance_from_what_the_truth_can_be():
    for estimate, gap in ((0.5, -0.5), (1.5, 0.0), (2.25, 0.25)):
        assert row(estimate=estimate, truth_low=1.0, truth_high=2.0).gap == gap
    assert math.isnan(row(estimate=math.nan, truth_low=1.0, truth_high=2.0).gap)


def test_the_exact_gradient_has_cosine_one():
    first, second = SMALL.encoders()
    exact = objective.gradient_cosines(
        SMALL, first, second, lambda z1, z2: (-SMALL.truth(first, second).low, Reading()), seed=0, step=0
    )
    assert exact["cosine"] == pytest.approx(1, abs=1e-4)
    assert exact["batch_cosine"] == pytest.approx(1, abs=1e-4)
    noisy = objective.gradient_cosines(SMALL, first, second, plug_in, seed=0, step=0)
    assert noisy["batch_cosine"] < noisy["cosine"] <= 1  # sampling noise is in a batch, not in what is expected
    assert noisy["cosine"] > 0.9
    reverse = objective.gradient_cosines(
        SMALL, first, second, lambda z1, z2: (SMALL.truth(first, second).low, Reading()), seed=0, step=0
    )
    assert reverse["cosine"] == pytest.approx(-1, abs=1e-4)


def test_optimise_measures_on_the_way():
    rows = list(objective.optimise(SMALL, plug_in, key(100)))
    assert [r.step for r in rows] == list(range(0, 101, 5))
    assert rows[-1].truth_low > 0.9 * SMALL.best > 4 * rows[0].truth_low
    assert rows[-1].covered == 1
    assert rows[-1].estimate == pytest.approx(rows[-1].truth_low, abs=0.2)
    assert all(math.isfinite(rows[i].cosine) for i in objective.GRADIENT_CHECKPOINTS)
    again = list(objective.optimise(SMALL, plug_in, key(100)))
    assert [r.estimate for r in again] == [r.estimate for r in rows]


def test_free_samples_share_at_most_what_tells_them_apart():
    rows = list(objective.optimise(Samples("free", dims=2, rows=64), plug_in, key(100)))
    assert (rows[-1].truth_low, rows[-1].truth_high) == (0, pytest.approx(math.log(64)))
    assert rows[-1].estimate > rows[0].estimate + 0.5
    assert rows[-1].repaired < 0.5 * rows[-1].estimate


def test_run_keeps_what_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(scenarios, "QUICK", (SMALL, Samples("free", dims=2, rows=64)))
    monkeypatch.setattr(objective, "QUICK_STEPS", 20)
    file = tmp_path / "new" / "results.csv"
    down = fake("down", directions=("minimize",))
    losses = [fake("mine", "a" * 64), fake("other"), down]
    rows = objective.run(0, losses, file, quick=True)
    assert len(rows) == 2 * 2 * 21
    assert {(r.loss, r.weights) for r in rows} == {("mine", "a" * 12), ("other", "")}
    with file.open() as lines:
        assert len(list(csv.DictReader(lines))) == len(rows)
    assert not list(tmp_path.rglob("tmp-*"))

    trained: list[str] = []
    train = objective.train

    def counted(scenario: Scenario, loss: contenders.Named, key: Key) -> list[Row]:
        trained.append(loss.name)
        return train(scenario, loss, key)

    monkeypatch.setattr(objective, "train", counted)
    assert repr(objective.run(0, losses, file, quick=True)) == repr(rows)  # NaN is not equal to itself
    assert trained == []
    objective.run(0, [fake("mine", "b" * 64), *losses[1:]], file, quick=True)
    assert trained == ["mine", "mine"]
    assert "a" * 12 not in file.read_text()


def test_a_file_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="move it away"):
        objective.run(0, [fake("fake")], tmp_path / "results.csv", quick=True)


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "results.csv").write_text(",".join(objective.Row._fields) + "\n1,2\n")
    with pytest.raises(ValueError, match=r"line 2 of .*results\.csv"):
        objective.run(0, [fake("fake")], tmp_path / "results.csv", quick=True)


def test_the_command_writes_tables_and_curves(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(scenarios, "QUICK", (SMALL,))
    monkeypatch.setattr(objective, "QUICK_STEPS", 20)
    monkeypatch.setattr(contenders, "named", lambda name: fake(name))
    words = ["bench", "--suite", "objective", "--quick", "--seed", "3", "--estimators", "one,infonce"]
    assert cli.main([*words, "--output", str(tmp_path)]) == 0
    folder = tmp_path / "objective-seed3"
    names = {"results.csv", "objective-quick.md", "objective-quick-ascent.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "objective-quick-ascent.png").stat().st_size < 100_000
    text = (folder / "objective-quick.md").read_text()
    assert text in capsys.readouterr().out
    assert "mist-loss bench --suite objective --seed 3 --estimators one,infonce --quick" in text
    assert "| small | 256 x 4 | 20 | one |" in text


def test_what_the_command_cannot_do_is_named(tmp_path):
    for arguments, message in (
        (["--limit", "3"], "--limit belongs"),
        (["--rows", "100"], "--suite bmi"),
        (["--estimators", "soup"], "expected losses among mist-base, .*infonce"),
    ):
        parser = argparse.ArgumentParser()
        bench.add_arguments(parser)
        args = parser.parse_args(["--suite", "objective", "--output", str(tmp_path), *arguments])
        with pytest.raises(ValueError, match=message):
            bench.main(args)
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors"):
        contenders.named("missing.safetensors")


def ascent(ends: float, **numbers) -> list[Row]:
    """Half of the best at the start, ``ends`` of it at the end, an estimate that is right."""
    about = {"steps": 10, "covered": 1.0, "cosine": math.nan, **numbers}
    return [
        row(step=step, best=2.0, estimate=2 * share, truth_low=2 * share, truth_high=2 * share, **about)
        for step, share in ((0, 0.5), (10, ends))
    ]


def test_bars_say_what_holds_and_where_it_is_worst():
    rows = ascent(0.98) + ascent(0.9, problem="q", scenario="worse") + ascent(0.99, loss="infonce")
    rows += ascent(0.5, problem="r", rows=64, scenario="few")
    text = bars.against_bars(rows)
    assert "| b | truth reached, of the best: 97% | 1 of 2 | 0 of 1 | 0.793 | 0.500 | few |" in text
    assert "| b | truth reached, above InfoNCE's: 0 nats | 0 of 1 |  | -0.020 | -0.020 | a |" in text
    assert "| infonce | truth reached, of the best: 97% | 1 of 1 |" in text
    assert "cosine" not in text.split("infonce |")[0]  # none was measured


def test_a_truth_that_was_removed_to_the_last_bit_has_no_share():
    removed = {"direction": "minimize", "best": 0.0, "truth_low": 0.0, "truth_high": 0.0}
    text = bars.summary([row(estimate=0.02, seconds=1.0, **removed)])
    assert "| +0.020 |  | +0.020 |" in text


def test_gaps_are_allowed_a_share_of_the_truth():
    def excess(estimate, truth):
        return bars.excess(row(estimate=estimate, truth_low=truth, truth_high=truth))

    assert excess(1.25, 1) == pytest.approx(1)
    assert excess(4.5, 5) == pytest.approx(1)
    way = [row(estimate=e, truth_low=1.0, truth_high=1.0) for e in (1.1, 0.2, 1.5)]
    assert bars.worst(way).estimate == 0.2


@pytest.mark.parametrize(("kind", "held"), [("gaussian", "0 of 1"), ("hidden", "1 of 1")])
def test_hidden_dependence_may_leave_twice_as_much(kind, held):
    text = bars.against_bars([row(kind=kind, direction="minimize", best=0.0, truth_low=0.015, truth_high=0.015)])
    assert f"| b | truth left: 0.01 nats, 0.02 for hidden dependence | {held} |" in text


def test_infonce_is_the_formula():
    pytest.importorskip("pytorch_metric_learning")
    z1, z2 = torch.randn(32, 4), torch.randn(32, 4)
    loss, reading = contenders.infonce(4)(z1, z2)
    scores = nn.functional.normalize(z1) @ nn.functional.normalize(z2).T / contenders.TEMPERATURE
    expected = nn.functional.cross_entropy(scores, torch.arange(32))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert reading.value == pytest.approx(math.log(32) - expected.item(), abs=1e-5)


def test_vicreg_has_a_loss_and_no_number():
    pytest.importorskip("lightly")
    z1 = torch.randn(32, 4, requires_grad=True)
    loss, reading = contenders.vicreg(4)(z1, torch.randn(32, 4))
    loss.backward()
    assert z1.grad is not None
    assert z1.grad.isfinite().all()
    assert math.isnan(reading.value)


@pytest.mark.parametrize("name", ["hsic", "dcor"])
def test_kernels_see_dependence_and_pass_gradients(name):
    dcor = pytest.importorskip("dcor")
    contender = contenders.named(name).make(2, "minimize")
    z1 = torch.randn(64, 2, requires_grad=True)
    near, _ = contender(z1, z1.detach() + 0.1 * torch.randn(64, 2))
    far, _ = contender(z1, torch.randn(64, 2))
    assert near > far + 0.3
    near.backward()
    assert z1.grad is not None
    assert z1.grad.isfinite().all()
    if name == "dcor":
        z2 = torch.randn(64, 2)
        assert contender(z1, z2)[0].item() == pytest.approx(
            float(dcor.distance_correlation_sqr(z1.detach().numpy(), z2.numpy())), abs=1e-4
        )


def test_club_computes_afresh_what_its_library_caches():
    pytest.importorskip("torch_mist")
    contender = contenders.club(2)
    z1 = torch.randn(128, 2)
    z2 = z1 + 0.3 * torch.randn(128, 2)
    values = [contender(z1, z2)[1].value for _ in range(30)]
    assert len(set(values)) == 30  # its density goes on learning
    assert values[-1] > values[0] + 0.5
    z1.requires_grad_()
    contender(z1, z2)[0].backward()
    assert z1.grad is not None
    assert z1.grad.norm() > 0


def test_a_conservative_quantile_has_the_side_of_the_direction():
    z1, z2 = torch.randn(64, 2), torch.randn(64, 2)
    middle, high, low = (
        contenders.named(name).make(2, direction)(z1, z2)
        for name, direction in (
            ("mist-base", "minimize"),
            ("mist-base@q0.05", "minimize"),
            ("mist-base@q0.05", "maximize"),
        )
    )
    assert -low[0] < middle[0] < high[0]
    assert high[0].item() == pytest.approx(middle[1].high, abs=1e-5)  # of a 90% interval
    assert -low[0].item() == pytest.approx(middle[1].low, abs=1e-5)


def test_a_library_leaves_the_threads_alone(tmp_path, monkeypatch):
    (tmp_path / "greedy.py").write_text("import torch\ntorch.set_num_threads(torch.get_num_threads() + 1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    threads = torch.get_num_threads()
    contenders._library("greedy")
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("option", "direction"), [("pull", "maximize"), ("push", "minimize")])
def test_another_pull_or_push_changes_the_gradient_and_not_the_number(option, direction):
    z1, z2 = torch.randn(64, 3, requires_grad=True), torch.randn(64, 3)
    found = [contenders.named(f"mist-base@{option}{weight}").make(3, direction)(z1, z2) for weight in ("0", "0.5")]
    assert found[0][1] == found[1][1]
    gradients = [torch.autograd.grad(loss, z1)[0] for loss, _ in found]
    assert (gradients[0] - gradients[1]).abs().max() > 1e-5


# codes of 4 of 12 dimensions, 128 rows a step: enough for mist-base to show what it does
TINY_UP = Linear("up", spectrum("decaying", 12, 4), dims=4, rows=128)
TINY_DOWN = Linear("down", spectrum("decaying", 8, 4), dims=4, rows=128, direction="minimize")


@pytest.fixture
def few_checkpoints(monkeypatch):
    for name, value in {"CHECKPOINTS": 5, "BATCHES": 2, "GRADIENTS": 6, "GRADIENT_CHECKPOINTS": (0, 1)}.items():
        monkeypatch.setattr(objective, name, value)


def trained(scenario: Scenario, steps: int) -> list[Row]:
    return objective.train(scenario, contenders.named("mist-base"), key(steps, "mist-base"))


@pytest.mark.usefixtures("few_checkpoints")
def test_maximised_the_number_stays_near_the_truth():
    rows = trained(TINY_UP, 130)
    end = rows[-1]
    assert end.truth_low > 0.85 * TINY_UP.best
    assert abs(end.gap) < 0.35
    assert bars.mean(rows, "covered") > 0.6
    assert bars.mean(rows, "cosine") > 0.75  # the pull turns the gradient


@pytest.mark.usefixtures("few_checkpoints")
def test_without_a_pull_the_gradient_is_that_of_the_truth():
    end = objective.train(TINY_UP, contenders.named("mist-base@pull0"), key(20, "mist-base@pull0"))
    assert bars.mean(end, "cosine") > 0.9


@pytest.mark.usefixtures("few_checkpoints")
def test_minimised_the_truth_vanishes():
    rows = trained(TINY_DOWN, 80)
    assert rows[0].truth_low > 0.1
    assert rows[-1].truth_low < 0.02
    assert rows[-1].estimate < 0.08

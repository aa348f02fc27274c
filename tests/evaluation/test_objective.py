import argparse
import csv
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mist_loss import cli
from mist_loss.evaluation import bars, bench, contenders, objective, scenarios
from mist_loss.evaluation.contenders import Reading
from mist_loss.evaluation.objective import Key, Row
from mist_loss.evaluation.scenarios import Hidden, Linear, Nonlinear, Samples, Scenario, seeded, spectrum
from mist_loss.meta.families import canonical_normal, signed_mi, student_mi
from mist_loss.meta.structures import gaussian_mi

SMALL = Linear("small", spectrum("decaying", 12, 4), dims=4)


def linear(weight: Tensor) -> nn.Linear:
    encoder = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    encoder.weight.data.copy_(weight)
    return encoder


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


@pytest.mark.parametrize("dof", [math.inf, 3.0])
def test_encoders_of_the_strongest_coordinates_are_the_best(dof):
    scenario = Linear("", spectrum("decaying", 12, 4), dims=4, dof=dof)
    with seeded(scenarios.MAP_SEED):
        turns = scenarios.random_rotation(2, 12, torch.device("cpu"))
    encoders = [linear(torch.randn(4, 4) @ turn[:4]) for turn in turns]
    low, high = scenario.truth(*encoders)
    assert low is high
    assert float(low.detach()) == pytest.approx(scenario.best, abs=1e-4)
    assert float(scenario.truth(*scenario.encoders()).low.detach()) < scenario.best


def test_linear_truth_is_that_of_the_rows():
    first, second = SMALL.encoders()
    x, y = SMALL.views(100_000)
    _, reading = plug_in(first(x), second(y))
    assert reading.value == pytest.approx(float(SMALL.truth(first, second).low.detach()), abs=0.005)


def test_what_is_to_be_removed_is_there_at_the_start():
    for scenario in scenarios.FULL:
        if scenario.direction == "minimize":
            assert 0.1 < float(scenario.truth(*scenario.encoders()).low.detach()) < 0.4


@pytest.mark.parametrize("rho", [0.5, 0.85])
def test_truth_of_signs(rho):
    scenario = Hidden("", "signs", dims=1, view_dims=1, rho=rho)
    expected = signed_mi(torch.tensor(rho), torch.tensor(0.5)).item()
    assert scenario.truth(linear(torch.eye(1)), linear(-torch.eye(1))).low.item() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("dof", [1.0, 2.0, 6.0])
def test_truth_of_radii(dof):
    scenario = Hidden("", "radii", dims=2, view_dims=2, dof=dof)
    first, second = linear(torch.randn(2, 2)), linear(torch.randn(2, 2))
    expected = student_mi(torch.tensor([dof]), 2, 2).item()
    assert scenario.truth(first, second).low.item() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("kind", ["signs", "radii"])
def test_free_coordinates_share_nothing(kind):
    scenario = Hidden("", kind, dims=2, view_dims=5)
    free = torch.cat([torch.zeros(2, 2), torch.randn(2, 3)], dim=1)
    assert scenario.truth(linear(free), linear(free)).low.item() == pytest.approx(0, abs=1e-6)


def test_a_mixture_of_one_is_gaussian():
    covariance = torch.cov(torch.randn(5, 40)).double()
    rows = torch.randn(100_000, 5).double() @ torch.linalg.cholesky(covariance).T
    nats = scenarios.mixture_mi(rows[:, :2], rows[:, 2:], torch.zeros(1).double(), covariance[None])
    assert nats.item() == pytest.approx(gaussian_mi(covariance[None], 2).item(), abs=0.01)


def test_certified_is_below_the_truth_and_not_far():
    rho = torch.tensor([[0.9, 0.6]])
    x, y, mi = canonical_normal(rho, scenarios.FIT_ROWS + scenarios.HELD_ROWS, 2, 2)
    bound = scenarios.certified(x[0].exp(), y[0] ** 3).item()
    assert 0.9 * mi.item() < bound < mi.item() + 0.05
    assert scenarios.certified(torch.zeros_like(x[0]), y[0]).item() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("additive", [False, True])
def test_bent_views_need_more_than_linear_encoders(additive, monkeypatch):
    monkeypatch.setattr(scenarios, "certified", lambda z1, z2: torch.tensor(9.0).double())
    scenario = Nonlinear("", (0.2, 0.3) if additive else (0.95, 0.9), view_dims=4, dims=2, additive=additive)
    with seeded(3):
        once = scenario.views(20_000)
    with seeded(3):
        again = scenario.views(20_000)
    assert torch.equal(once[0], again[0])
    _, reading = plug_in(*once)
    assert 0.1 < reading.value < 0.8 * scenario.best
    truth = scenario.truth(*scenario.encoders())
    assert truth.low == truth.high == scenario.best  # a bound that overshoots is cut


def test_additive_noise_shares_what_its_formula_says():
    scenario = Nonlinear("", (0.25,), view_dims=2, dims=1, additive=True)
    assert scenario.best == pytest.approx(0.25 + math.log(2), abs=1e-6)  # e - log 2e
    assert Nonlinear("", (0.6,), view_dims=2, dims=1).best == pytest.approx(-0.5 * math.log(1 - 0.36), abs=1e-6)


def test_a_large_sample_agrees_with_the_mixture_about_signs():
    """KSG shares nothing with the formula: nearest neighbours of many rows."""
    peers = pytest.importorskip("sklearn.neighbors")
    scenario = Hidden("", "signs", dims=2, view_dims=6)
    with seeded(5):
        first, second = scenario.encoders()
        x, y = scenario.views(3000)
    codes = [encoder(view).detach().numpy() for encoder, view in ((first, x), (second, y))]
    joint = np.concatenate(codes, axis=1)
    # the first estimator of Kraskov et al. 2004, in the maximum norm
    radius = peers.NearestNeighbors(metric="chebyshev").fit(joint).kneighbors(joint, 4)[0][:, -1]
    counts = [
        peers.KDTree(code, metric="chebyshev").query_radius(code, np.nextafter(radius, 0), count_only=True)
        for code in codes
    ]
    psi = torch.digamma
    inside = sum(psi(torch.from_numpy(count).double()).mean().item() for count in counts)
    ksg = (psi(torch.tensor(3.0)) + psi(torch.tensor(3000.0))).item() - inside
    assert ksg == pytest.approx(scenario.truth(first, second).low.item(), abs=0.06)


def test_spectrum_says_what_it_cannot():
    with pytest.raises(ValueError, match="at least 16"):
        spectrum("level", 12, 8)
    with pytest.raises(ValueError, match="'decaying', 'few', 'level'"):
        spectrum("flat", 16, 8)


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
    assert not list(tmp_path.rglob("*.tmp"))

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
    assert bars.mean(rows, "cosine") > 0.9


@pytest.mark.usefixtures("few_checkpoints")
def test_minimised_the_truth_vanishes():
    rows = trained(TINY_DOWN, 80)
    assert rows[0].truth_low > 0.1
    assert rows[-1].truth_low < 0.02
    assert rows[-1].estimate < 0.08

"""Flags, checkpoints, probes and tables that the recipes share."""

import argparse
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
import common


def parsed(tmp_path: Path, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    common.add_flags(parser, "name", epochs=2, batch_size=32, lr=0.1)
    common.add_compare_flags(parser)
    parser.add_argument("--method", default="one")
    return parser.parse_args(["--output", str(tmp_path), *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "nonsense"), "expected auto, cpu, or a device of this machine, got nonsense"),
        (("--device", "cuda:99"), "got cuda:99"),
        (("--batch-size", "15"), "must be at least 16, got 15"),
        (("--epochs", "many"), "invalid"),
    ],
)
def test_bad_flags_are_explained(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        parsed(tmp_path, *arguments)
    assert message in capsys.readouterr().err


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    return module, torch.optim.AdamW(module.parameters(), lr=0.1)


def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    module(torch.randn(8, 3)).square().sum().backward()
    optimizer.step()


def test_a_checkpoint_goes_on_as_if_nothing_had_happened(tmp_path):
    args = parsed(tmp_path, "--resume")
    torch.manual_seed(0)
    module, optimizer = make()
    assert common.load_checkpoint(args, module, [optimizer]) is None
    step(module, optimizer)
    common.save_checkpoint(args, module, [optimizer], {"history": [1.5]})
    step(module, optimizer)
    drawn = torch.rand(3)
    again, its_optimizer = make()
    assert common.load_checkpoint(args, again, [its_optimizer]) == {"history": [1.5]}
    step(again, its_optimizer)
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert torch.equal(torch.rand(3), drawn)
    assert [path.name for path in tmp_path.iterdir()] == [common.CHECKPOINT]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    module, optimizer = make()
    common.start(parsed(tmp_path))
    config = (tmp_path / "config.json").read_bytes()
    common.save_checkpoint(parsed(tmp_path), module, [optimizer], {})
    with pytest.raises(ValueError, match=r"lr 0\.1 there, 0\.2 now"):
        common.load_checkpoint(parsed(tmp_path, "--resume", "--lr", "0.2"), module, [optimizer])
    for more in ([], ["--resume"]):
        with pytest.raises(ValueError, match="lr"):
            common.start(parsed(tmp_path, "--lr", "0.2", *more))
    assert (tmp_path / "config.json").read_bytes() == config  # nor are the settings there overwritten
    assert common.load_checkpoint(parsed(tmp_path, "--lr", "0.2"), module, [optimizer]) is None  # without --resume


def test_batches_are_full_and_cover_what_they_can():
    indices = common.batches(10, 4)
    assert [len(index) for index in indices] == [4, 4]
    assert len(torch.cat(list(indices)).unique()) == 8
    assert [len(index) for index in common.batches(3, 4)] == [3]
    assert [common.steps_an_epoch(n, 4) for n in (3, 4, 10)] == [1, 1, 2]


def test_the_rate_warms_up_and_ends_at_zero():
    _, optimizer = make()
    rates = []
    for progress in (0, 0.05, 0.1, 0.55, 1.0):
        common.set_rate(optimizer, 1.0, progress)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] < rates[1] < rates[2] > rates[3] > rates[4]
    assert rates[0] > 0
    assert rates[4] == pytest.approx(0, abs=1e-9)


def test_probes_read_what_is_there_and_nothing_else():
    torch.manual_seed(0)
    label = torch.arange(600) % 3
    corner = torch.eye(3)[label] + 0.1 * torch.randn(600, 3)
    ring = torch.randn(600, 2)
    ring = ring / ring.norm(dim=1, keepdim=True) * (1.0 + label[:, None])
    for probe in (common.linear_probe, common.neighbour_probe, common.neural_probe):
        assert probe(corner[:400], label[:400], corner[400:], label[400:]) > 95
        assert probe(torch.randn(400, 3), label[:400], torch.randn(200, 3), label[400:]) < 50
    assert common.neural_probe(ring[:400], label[:400], ring[400:], label[400:]) > 80  # not linear
    assert common.linear_probe(ring[:400], label[:400], ring[400:], label[400:]) < 60


def test_a_sweep_keeps_what_is_finished_and_a_table_averages(tmp_path):
    ran = []

    def run(args: argparse.Namespace) -> dict:
        ran.append((args.method, args.seed))
        args.output.mkdir(parents=True, exist_ok=True)
        score = {"one": 10.0, "two": 0.25}[args.method] + args.seed
        result = {"config": common.settings(args), "score": score}
        common.write_text(args.output / "result.json", json.dumps(result))
        return result

    args = parsed(tmp_path, "--seeds", "1", "2")
    results = common.sweep(run, args, "method", ["one", "two"])
    assert common.sweep(run, args, "method", ["one", "two"]) == results
    assert sorted(ran) == [("one", 1), ("one", 2), ("two", 1), ("two", 2)]
    lines = common.table(results, "method", {"points": "score"}).split("\n")
    assert lines[2] == f"| one | 11.5 ± {math.sqrt(0.5):.1f} |"
    assert lines[3] == f"| two | 1.750 ± {math.sqrt(0.5):.3f} |"
    common.sweep(run, parsed(tmp_path, "--seeds", "1", "--lr", "0.3"), "method", ["one"])  # other settings: runs again
    assert len(ran) == 5


def test_metrics_may_lack_columns(tmp_path):
    common.write_metrics(tmp_path / "metrics.csv", [{"epoch": 1}, {"epoch": 2, "probe": 0.5}])
    assert (tmp_path / "metrics.csv").read_text() == "epoch,probe\n1,\n2,0.5\n"


def test_runs_with_other_flags_have_other_folders():
    parser = argparse.ArgumentParser()
    common.add_flags(parser, "name", epochs=2, batch_size=32, lr=0.1)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    for flags, folder in (
        ([], "runs/name"),
        (["--cache", "cache"], "runs/name"),
        (["--cache", "path/to/other"], "runs/name-cache-other"),
        (["--epochs", "2", "--device", "cpu"], "runs/name"),
        (["--output", "here", "--seed", "1"], "here"),
        (["--data", "path/to/birds", "--seed", "1", "--smoke"], "runs/name-data-birds-seed-1-smoke"),
    ):
        assert common.parse_flags(parser, flags).output == Path(folder)

"""The second look is fitted, and nothing else; what was read is kept."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mist_loss import MIST, cli
from mist_loss.model.weights import find, read_header, save_weights, sha256
from mist_loss.training import look
from mist_loss.training.look import LookConfig, fit_second_look

SHIPPED = 43  # the run of mist-base


@pytest.fixture
def parent(model, tmp_path, monkeypatch):
    monkeypatch.setattr(look, "GROUPS", 2)
    path = tmp_path / "parent.safetensors"
    save_weights(MIST(dataclasses.replace(model.config, balls=False, intrinsic=False)).eval(), path, {"seed": 0})
    return path


def config(parent, **more):
    sizes = {"parts": 3, "width": 32, "steps": 60, "batch": 32}
    settings: dict[str, Any] = {"mixture": "paper", "lr": 1e-2} | sizes | more
    return LookConfig(str(parent), **settings)


def test_nothing_else_changes_and_held_out_sets_are_read_better(parent, tmp_path):
    path = fit_second_look(config(parent), tmp_path / "run")
    before, after = MIST.from_pretrained(parent), MIST.from_pretrained(path)
    assert after.second_look is not None
    wide = before.state_dict()
    for name, tensor in after.state_dict().items():
        if name in wide:
            same = tensor[..., : wide[name].shape[-1]] if tensor.dim() else tensor
            assert torch.equal(same, wide[name]), name
    after.second_look = None
    x, y = torch.randn(2, 3, 60, 2)
    torch.testing.assert_close(after(x, y), before(x, y))
    with (tmp_path / "run" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["held_out_loss"]) < 0.8 * float(rows[0]["held_out_loss"])
    assert [int(rows[0]["step"]), int(rows[-1]["step"])] == [0, 60]
    assert read_header(path)["provenance"]["parent_sha256"] == sha256(parent)


def test_a_run_goes_on_with_what_it_has_read(parent, tmp_path):
    path = fit_second_look(config(parent, steps=5), tmp_path / "run")
    expected = MIST.from_pretrained(path).state_dict()
    first = tmp_path / "run" / "part-0.safetensors"
    written = first.stat().st_mtime_ns
    (tmp_path / "run" / "part-1.safetensors").unlink()
    path.unlink()
    again = MIST.from_pretrained(fit_second_look(config(parent, steps=5), tmp_path / "run")).state_dict()
    assert first.stat().st_mtime_ns == written
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())
    with pytest.raises(ValueError, match="use another folder"):
        fit_second_look(config(parent, seed=2), tmp_path / "run")


def test_a_second_look_that_is_told_less_is_fitted_anew(model, parent, tmp_path):
    less = tmp_path / "less.safetensors"
    save_weights(MIST(dataclasses.replace(model.config, intrinsic=False)).eval(), less, {"seed": 0})
    fitted = MIST.from_pretrained(fit_second_look(config(less, steps=5), tmp_path / "run"))
    before = MIST.from_pretrained(less)
    assert fitted.config == dataclasses.replace(before.config, intrinsic=True)  # of its own width, not of the run's
    x, y = torch.randn(2, 3, 60, 2)
    torch.testing.assert_close(fitted.first_reading(x, y), before.first_reading(x, y))


def test_what_was_fitted_is_fitted_on(parent, tmp_path):
    path = fit_second_look(config(parent, steps=5), tmp_path / "run")
    on = MIST.from_pretrained(fit_second_look(config(path, steps=1, lr=0.0), tmp_path / "on"))
    before = MIST.from_pretrained(path)
    assert all(torch.equal(tensor, on.state_dict()[name]) for name, tensor in before.state_dict().items())


def test_parts_of_other_runs_are_fitted_to_as_well(parent, tmp_path):
    fit_second_look(config(parent, steps=1, mixture="broad", seed=5, parts=2), tmp_path / "other")
    alone = MIST.from_pretrained(fit_second_look(config(parent, steps=5), tmp_path / "run")).state_dict()
    with (tmp_path / "run" / "log.csv").open() as file:
        start = next(csv.DictReader(file))
    path = fit_second_look(config(parent, steps=5), tmp_path / "run", also=[tmp_path / "other"])
    both = MIST.from_pretrained(path).state_dict()
    assert not torch.equal(both["second_look.layers.2.weight"], alone["second_look.layers.2.weight"])
    with (tmp_path / "run" / "log.csv").open() as file:
        assert next(csv.DictReader(file)) == start  # what is held out is of the run itself
    told = read_header(path)["provenance"]
    assert [(part["mixture"], part["seed"], part["parts"]) for part in told["also"]] == [("broad", 5, 2)]
    read = [load_file(tmp_path / run / f"part-{i}.safetensors")["mi"] for run, i in (("run", 1), ("run", 2))]
    more = [load_file(tmp_path / "other" / f"part-{i}.safetensors")["mi"] for i in (0, 1)]
    assert told["sets"] == sum(map(len, read + more))


def test_parts_of_other_weights_or_of_the_same_problems_are_refused(model, parent, tmp_path):
    stranger = tmp_path / "stranger.safetensors"
    save_weights(MIST(dataclasses.replace(model.config, balls=False, intrinsic=False)).eval(), stranger, {"seed": 1})
    fit_second_look(config(stranger, steps=1, parts=2), tmp_path / "other")
    with pytest.raises(ValueError, match="was read with parent_sha256"):
        fit_second_look(config(parent, steps=1), tmp_path / "run", also=[tmp_path / "other"])
    assert not list((tmp_path / "run").glob("part-*"))  # before anything is read
    fit_second_look(config(parent, steps=1), tmp_path / "same")
    with pytest.raises(ValueError, match="of the mixture and seed of the run itself"):
        fit_second_look(config(parent, steps=1), tmp_path / "run", also=[tmp_path / "same"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty, which has no parts"):
        fit_second_look(config(parent, steps=1), tmp_path / "run", also=[tmp_path / "empty"])


def test_independent_sets_are_drawn_as_often_as_asked():
    mi, rows = torch.tensor([0.0, 0.3, 1.0, 0.0, 2.0, 0.4]), torch.full((6,), 100.0)
    torch.manual_seed(0)
    drawn = torch.multinomial(look._chances(mi, rows, 0.5), 4000, replacement=True).bincount(minlength=6) / 4000
    torch.testing.assert_close(drawn, torch.tensor([0.25, 0.125, 0.125, 0.25, 0.125, 0.125]), atol=0.03, rtol=0)
    for told, share in ((mi, 0.0), (mi + 1, 0.5), (0 * mi, 0.5)):  # all alike, where none is asked or to be had
        assert look._chances(told, rows, share).unique().numel() == 1


def test_dependent_sets_are_drawn_by_a_power_of_their_rows():
    mi, rows = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([16.0, 10000.0, 16.0, 10000.0])
    torch.testing.assert_close(look._chances(mi, rows, 0.2), torch.tensor([0.1, 0.1, 1.6 / 12, 8 / 12]))
    torch.testing.assert_close(look._chances(mi, rows, 0.0), torch.tensor([2.0, 10.0, 2.0, 10.0]))


def test_the_share_of_independent_sets_is_that_of_the_fit(parent, tmp_path, monkeypatch):
    def fitted(share, bar):
        monkeypatch.setattr(look, "NOTHING", bar)
        path = fit_second_look(config(parent, independent=share, steps=5), tmp_path / "run")  # reads but once
        return MIST.from_pretrained(path).state_dict()["second_look.layers.2.weight"]

    as_they_come = fitted(0.0, 0.5)
    assert torch.equal(fitted(0.9, 0.0), as_they_come)  # none of these problems is independent
    assert not torch.equal(fitted(0.9, 0.5), as_they_come)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mixture": "none"}, "mixture must be one of"),
        ({"parts": 1}, "parts must be a whole number from 2"),
        ({"steps": 0}, "steps must be a whole number from 1"),
        ({"batch": True}, "batch must be a whole number"),
        ({"width": 0}, "width must be a whole number from 1"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"lr": float("nan")}, "lr must be a finite number"),
        ({"independent": 1.0}, "independent must be a share from 0 and below 1"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        config("mist-base", **wrong)


def test_the_log_of_the_shipped_weights_is_kept_and_its_settings_can_be_used_again():
    origin = read_header(find("mist-base"))["provenance"]
    assert dataclasses.asdict(LookConfig(**origin["config"])) == origin["config"]
    log = Path(__file__).parents[2] / "pretrained" / "training" / f"look-{SHIPPED}.csv"
    assert log.read_text().splitlines()[-1].startswith(f"{origin['config']['steps']},")
    card = (log.parents[1] / "mist-base.md").read_text()
    settings = origin["config"]
    counts = " ".join(f"--{name} {settings[name]}" for name in ("seed", "parts", "steps"))
    assert f"{counts} --workers 2 --output runs/look-{SHIPPED}" in card
    assert f"first readings of {origin['sets']:,} sets" in card


def test_the_command_says_what_it_refuses(tmp_path, capsys):
    assert cli.main(["look", "mist-base", "--workers", "0", "--output", str(tmp_path)]) == 2
    assert "workers must be a whole number in 1 to 64" in capsys.readouterr().err

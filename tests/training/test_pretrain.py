"""A killed run goes on with the same stream and reaches the same weights."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mist_loss import cli
from mist_loss.meta.mixtures import MIXTURES
from mist_loss.model.network import MIST, MISTConfig
from mist_loss.model.weights import find, read_header, sha256
from mist_loss.training import state
from mist_loss.training.optimisation import learning_rate
from mist_loss.training.pretrain import PretrainConfig, pretrain
from mist_loss.training.stream import group

pytest.importorskip("accelerate")
CPU = torch.device("cpu")
SMALL = ["--mixture", "paper", "--groups", "1", "--warmup", "2", "--normalization-groups", "2"]
FAST = ["--validate-every", "3", "--validation-groups", "2", "--checkpoint-minutes", "0"]


def command(output, steps, *launcher):
    run = [*launcher, "-m", "mist_loss.cli", "pretrain", *SMALL, *FAST, "--steps", str(steps), "--output", str(output)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    return {"args": [sys.executable, *run], "env": environment, "stderr": subprocess.STDOUT}


def test_stream_is_a_function_of_seed_step_process_and_index():
    mixture = MIXTURES["paper"]
    torch.manual_seed(7)
    first = group(mixture, 0, 5, 0, 0, CPU)
    after = torch.rand(2)
    torch.manual_seed(7)
    torch.testing.assert_close(torch.rand(2), after)  # the user's random numbers are left alone
    again = group(mixture, 0, 5, 0, 0, CPU)
    torch.testing.assert_close(first.x, again.x, atol=0, rtol=0)
    others = [group(mixture, *key, CPU) for key in ((1, 5, 0, 0), (0, 6, 0, 0), (0, 5, 1, 0), (0, 5, 0, 1))]
    assert all(other.x.shape != first.x.shape or not torch.equal(other.x, first.x) for other in others)


def test_a_killed_run_reaches_the_same_weights(tmp_path):
    steps = 12
    subprocess.run(**command(tmp_path / "whole", steps), check=True, stdout=subprocess.PIPE, timeout=120)
    state = tmp_path / "killed" / "state.safetensors"
    with subprocess.Popen(**command(tmp_path / "killed", steps), stdout=subprocess.DEVNULL) as process:
        while not state.exists() and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed" / "weights.safetensors").exists(), "the run ended before it was killed"
    subprocess.run(**command(tmp_path / "killed", steps), check=True, stdout=subprocess.PIPE, timeout=120)
    whole, killed = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    for key in whole:
        torch.testing.assert_close(killed[key], whole[key], atol=0, rtol=0)
    logs = [list(csv.DictReader((tmp_path / name / "log.csv").open())) for name in ("whole", "killed")]
    assert [row["step"] for row in logs[0]] == [row["step"] for row in logs[1]] == ["3", "6", "9", "12"]
    assert logs[0][-1]["pinball"] == logs[1][-1]["pinball"]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    assert (tmp_path / "whole" / "curve.png").stat().st_size > 0
    assert not list(tmp_path.glob("*/tmp-*"))
    assert MIST.from_pretrained(tmp_path / "killed" / "weights.safetensors").config.rows == MIXTURES["paper"].rows


def test_the_first_reading_is_trained_and_not_the_second_look(tmp_path):
    torch.manual_seed(0)
    parent = MIST(MISTConfig(width=16, set_width=8, row_pairs=2, pair_width=4, look_width=24))
    assert parent.second_look is not None
    with torch.no_grad():
        for weight in parent.second_look.parameters():
            weight.normal_()
    parent.save_pretrained(tmp_path / "parent")
    config = PretrainConfig(steps=2, groups=1, warmup=1, mixture="paper", parent=str(tmp_path / "parent"))
    before = parent.state_dict()
    after = MIST.from_pretrained(pretrain(config, tmp_path / "run", validation_groups=2)).state_dict()
    torch.testing.assert_close(after["second_look.layers.0.weight"], before["second_look.layers.0.weight"])
    assert before["second_look.layers.2.weight"].any()
    assert not after["second_look.layers.2.weight"].any()  # of another first reading: it begins anew
    for name in ("quantiles.weight", "skip.weight"):
        assert not torch.equal(after[name], before[name])


@pytest.mark.slow
def test_two_processes_share_one_model(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    run = command(tmp_path, 4, *launcher)
    subprocess.run(**run, check=True, stdout=subprocess.PIPE, timeout=180)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    mixture = MIXTURES["paper"]
    sets = 0
    for step in range(4):
        first, second = (group(mixture, 0, step, rank, 0, CPU) for rank in (0, 1))
        assert first.x.shape == second.x.shape
        assert not torch.equal(first.x, second.x)
        sets += len(first.mi)
    assert int(rows[-1]["sets"]) == 2 * sets
    assert (tmp_path / "weights.safetensors").exists()


@pytest.mark.slow
def test_a_killed_run_of_two_processes_keeps_its_adversaries(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]

    def start(folder):
        run = command(folder, 8, *launcher)
        run["args"] += ["--adversaries"]
        return run

    subprocess.run(**start(tmp_path / "whole"), check=True, stdout=subprocess.PIPE, timeout=180)
    state = tmp_path / "killed" / "state.safetensors"
    run = start(tmp_path / "killed") | {"start_new_session": True}
    with subprocess.Popen(**run, stdout=subprocess.DEVNULL) as process:
        while not state.exists() and process.poll() is None:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "killed" / "weights.safetensors").exists(), "the run ended before it was killed"
    subprocess.run(**start(tmp_path / "killed"), check=True, stdout=subprocess.PIPE, timeout=180)
    whole, killed = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert any(key.startswith("adversaries.") and len(value) == 2 for key, value in whole.items())
    for key in whole:
        torch.testing.assert_close(killed[key], whole[key], atol=0, rtol=0)


def test_another_configuration_is_refused(tmp_path):
    settings: dict[str, Any] = {"mixture": "paper", "groups": 1, "normalization_groups": 1, "steps": 1}
    pretrain(PretrainConfig(**settings), tmp_path, validation_groups=1)
    with pytest.raises(ValueError, match="another folder to start afresh"):
        pretrain(PretrainConfig(**settings | {"lr": 1e-4}), tmp_path, validation_groups=1)


def test_training_goes_on_from_a_parent(tmp_path):
    settings: dict[str, Any] = {"mixture": "paper", "groups": 1, "normalization_groups": 1, "steps": 1}
    parent = pretrain(PretrainConfig(**settings), tmp_path / "parent", validation_groups=1)
    child = pretrain(PretrainConfig(**settings, seed=1, parent=str(parent)), tmp_path / "child", validation_groups=1)
    before, after = load_file(parent), load_file(child)
    torch.testing.assert_close(after["vector_mean"], before["vector_mean"], atol=0, rtol=0)
    assert not torch.equal(after["embed_vector.weight"], before["embed_vector.weight"])
    torch.testing.assert_close(after["embed_vector.weight"], before["embed_vector.weight"], atol=1e-2, rtol=0)
    assert read_header(child)["provenance"]["parent_sha256"] == sha256(parent)


def test_mixed_precision_trains(tmp_path):
    run = command(tmp_path, 2)
    run["args"] += ["--precision", "bf16"]
    subprocess.run(**run, check=True, stdout=subprocess.PIPE, timeout=120)
    weights = load_file(tmp_path / "weights.safetensors").values()
    assert all(t.dtype == torch.float32 and torch.isfinite(t).all() for t in weights)


@pytest.mark.parametrize(
    "bad",
    [
        {"mixture": "narrow"},
        {"seed": -1},
        {"seed": 0.5},
        {"steps": 0},
        {"steps": 10.5},
        {"groups": 33},
        {"warmup": 0},
        {"lr": "a"},
        {"clip": "b"},
        {"precision": "fp16"},
    ],
)
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=f"got .*{next(iter(bad.values()))}"):
        PretrainConfig(**bad)


ONE: dict[str, Any] = {"mixture": "paper", "groups": 1, "normalization_groups": 1, "warmup": 1}


def test_a_run_that_diverges_keeps_its_last_good_state(tmp_path):
    config = PretrainConfig(**ONE, lr=1e30, steps=4)
    with pytest.raises(ValueError, match=r"finite gradient at step \d, got the norm (nan|inf)"):
        pretrain(config, tmp_path, checkpoint_minutes=0, validation_groups=1)
    assert state.read_header(tmp_path / "state.safetensors")["step"] >= 1
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "state.safetensors").values())
    assert not (tmp_path / "weights.safetensors").exists()


@pytest.mark.parametrize("option", ["validate_every", "validation_groups"])
def test_a_run_that_could_not_be_validated_does_not_start(tmp_path, option):
    never: dict[str, Any] = {option: 0}
    with pytest.raises(ValueError, match=f"{option} must be a whole number in 1 to"):
        pretrain(PretrainConfig(**ONE, steps=1), tmp_path / "run", **never)
    assert not (tmp_path / "run").exists()


def test_a_missing_library_is_said_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pretraining needs matplotlib: pip install .*train"):
        pretrain(PretrainConfig(**ONE, steps=1), tmp_path / "run", validation_groups=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("log", [None, "", "step,se", "step,sets\n", "step,sets\n1,9\n1\n", "step,sets\n1,9\n1,8"])
def test_a_run_goes_on_whatever_became_of_its_log(tmp_path, log):
    path, config = tmp_path / "log.csv", PretrainConfig(**ONE, steps=1)
    pretrain(config, tmp_path, validation_groups=1)
    path.unlink() if log is None else path.write_text(log)
    pretrain(config, tmp_path, validation_groups=1)
    assert (path.read_text() if path.exists() else None) == ("step,sets\n1,9\n" if log and "9" in log else None)


def test_a_state_from_before_the_stream_changed_is_refused(tmp_path):
    path, config = tmp_path / "state.safetensors", PretrainConfig(**ONE, steps=1)
    pretrain(config, tmp_path, validation_groups=1)
    header = state.read_header(path)
    save_file(load_file(path), path, {"header": json.dumps(header | {"stream": header["stream"] - 1})})
    with pytest.raises(ValueError, match="holds a run with"):
        pretrain(config, tmp_path, validation_groups=1)


def test_a_seed_that_is_too_large_is_a_mistake_of_one_line(tmp_path, capsys):
    assert cli.main(["pretrain", "--seed", str(2**64), "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("mist-loss pretrain: seed must be in 0 to 2^63 - 1, got 18446")


@pytest.mark.parametrize("most", [{"steps": 2**18 - 1}, {"groups": 31}])
def test_adversaries_take_their_share_of_the_numbering(most):
    (name, limit), *_ = most.items()
    PretrainConfig(**most, adversaries=True)
    PretrainConfig(**{name: limit + 1})
    with pytest.raises(ValueError, match=f"{name}.*got .*{limit + 1}"):
        PretrainConfig(**{name: limit + 1}, adversaries=True)


@pytest.mark.parametrize("name", ["mist-paper"])
def test_settings_in_the_shipped_weights_can_be_used_again(name):
    settings = read_header(find(name))["provenance"]["config"]
    config = PretrainConfig(**settings)
    assert {key: getattr(config, key) for key in settings} == settings


def test_learning_rate_warms_up_and_decays():
    config = PretrainConfig(steps=1000, warmup=100, lr=1.0)
    rates = [learning_rate(config, step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01, rel=0.01)
    assert max(rates) == pytest.approx(rates[99], rel=0.02)
    assert rates[-1] < 0.002

"""Fine-tuning lowers the error on what it is shown, keeps to its time, and goes on where it stopped."""

import math

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("tqdm")
from mist_loss.meta.families import canonical_normal
from mist_loss.model import quantiles
from mist_loss.model.network import MIST
from mist_loss.training import state
from mist_loss.training.finetune import FinetuneConfig, finetune
from mist_loss.training.losses import departure


def draw(step, index):
    return canonical_normal(0.95 * torch.rand(16, 1), 64, 2, 1)


def copy_of(model):
    copy = MIST(model.config)
    copy.load_state_dict(model.state_dict())
    return copy


def error(model):
    torch.manual_seed(1)
    problem = draw(0, 0)
    with torch.no_grad():
        return (quantiles.mean(model(problem.x, problem.y)) - problem.mi).abs().mean().item()


def test_error_falls(model):
    tuned = copy_of(model)
    finetune(tuned, draw, FinetuneConfig(steps=40, groups=1, lr=3e-3))
    assert not tuned.training
    assert error(tuned) < 0.7 * error(model)


def test_the_stream_depends_on_the_seed_and_not_on_the_caller(model):
    results = []
    for caller, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(caller)
        tuned = copy_of(model)
        torch.manual_seed(caller)
        finetune(tuned, draw, FinetuneConfig(steps=2, groups=1, seed=seed))
        results.append(tuned.quantiles.weight.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_half_precision_runs(model):
    tuned = copy_of(model)
    finetune(tuned, draw, FinetuneConfig(steps=2, groups=1, precision="bf16"))
    assert all(parameter.isfinite().all() for parameter in tuned.parameters())


def test_a_state_of_another_run_is_refused(model, tmp_path):
    state = tmp_path / "state.safetensors"
    finetune(copy_of(model), draw, FinetuneConfig(steps=2, groups=1), state, {"about": "first"})
    with pytest.raises(ValueError, match="about differ"):
        finetune(copy_of(model), draw, FinetuneConfig(steps=2, groups=1), state, {"about": "second"})


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"groups": 33}, {"lr": 0.0}, {"lr": math.nan}, {"precision": "fp8"}, {"seed": -1}, {"seed": 2**63}]
    + [{"clip": bad} for bad in (-1.0, 0.0, math.nan)]
    + [{"average": bad} for bad in (-0.1, 1.0, 2.0, math.nan)]
    + [{"weight_decay": bad} for bad in (-1.0, math.nan, math.inf)],
)
def test_settings_that_cannot_be_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        FinetuneConfig(**change)


def test_what_is_kept_stays_closer_to_the_parent(model):
    def mixed(step, index):  # the second group claims that nothing is shared
        problem = draw(step, index)
        return problem._replace(mi=0 * problem.mi) if index else problem

    moved = []
    for kept in (0, 1):
        tuned = copy_of(model)
        finetune(tuned, mixed, FinetuneConfig(steps=25, groups=2, lr=3e-3), kept=kept)
        torch.manual_seed(2)
        x, y, _ = draw(0, 0)
        with torch.no_grad():
            moved.append(departure(tuned(x, y), model(x, y)).mean().item())
    assert moved[1] < 0.8 * moved[0]


def test_a_run_that_diverges_stops_before_its_state_is_spoilt(model, tmp_path):
    def diverge(step, index):
        problem = draw(step, index)
        return problem._replace(mi=problem.mi * torch.nan) if step == 2 else problem

    path = tmp_path / "state.safetensors"
    with pytest.raises(ValueError, match="finite gradient at step 3, got the norm nan"):
        finetune(copy_of(model), diverge, FinetuneConfig(steps=4, groups=1), path, checkpoint_minutes=0)
    assert state.read_header(path)["step"] == 2
    assert all(tensor.isfinite().all() for tensor in load_file(path).values())

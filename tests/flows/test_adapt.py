"""Adapting: nothing but a copy changes, runs go on where they stopped, and the file says where it comes from."""

import functools
import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("normflows")
from mist_loss import MISTCriterion
from mist_loss.cli import main
from mist_loss.flows import adapt as module
from mist_loss.flows.adapt import Source, adapt, parent_hash, unfrozen_copy
from mist_loss.flows.coordinates import NormalCoordinates
from mist_loss.flows.marginals import PoorFit, fit_marginal
from mist_loss.meta.mixtures import MIXTURES
from mist_loss.model.network import MIST
from mist_loss.model.weights import read_header, save_weights, sha256
from mist_loss.training.finetune import FinetuneConfig
from mist_loss.training.stream import group

FAST: dict[str, Any] = {"rows": (16, 24), "replay": 0.0, "mixture": "paper", "checkpoint_minutes": 0.0}
CONFIG = FinetuneConfig(steps=5, groups=2, warmup=2)
# copies of a network lie elsewhere in memory, and where decides in which order sums are taken
ROUNDING: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(autouse=True)
def quick_flows(monkeypatch):
    monkeypatch.setattr(module, "fit_marginal", functools.partial(fit_marginal, epochs=2))
    monkeypatch.setattr(module.Source.held_out, "__defaults__", (1,))
    monkeypatch.setattr("mist_loss.flows.pushed.POOL", 512)


@pytest.fixture
def x():
    return torch.randn(150, 2) @ torch.tensor([[1.0, 0.5], [0.0, 2.0]])


def same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=0, rtol=0)


def test_a_copy_is_adapted_and_saved_with_its_origin(model, x, tmp_path):
    parent = tmp_path / "parent.safetensors"
    save_weights(model, parent, {})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = adapt(parent, x, x[:, :1], tmp_path / "run", config=CONFIG, **FAST)
    assert result.path is not None
    same(model.state_dict(), before)
    after = result.model.state_dict()
    assert any(not torch.equal(after[key], before[key]) for key in before)
    same(MIST.from_pretrained(result.path).state_dict(), result.model.state_dict())
    header = read_header(result.path)
    origin = header["provenance"]
    assert header["config"]["dims"] == list(model.config.dims)
    assert origin["parent"] == sha256(parent)
    assert origin["data"] == {"x": {"rows": 150, "dims": 2}, "y": {"rows": 150, "dims": 1}}
    assert origin["flows"]["x"]["width"] == 2
    assert origin["flows"]["y"]["auc"] == result.reports["y"].auc
    assert origin["finetune"]["steps"] == 5
    assert origin["held_out_problems"]["after"] == result.after._asdict()
    card = (tmp_path / "run" / "card.md").read_text()
    assert origin["parent"] in card
    assert f"| adapted | {result.after.error:.3f} |" in card
    assert not list((tmp_path / "run").glob("tmp-*"))
    criterion = MISTCriterion(model=result.model)
    assert criterion(x, x[:, :1]).isfinite()
    assert MISTCriterion(model=result.path)(x, x[:, :1]) == criterion(x, x[:, :1])


@pytest.mark.parametrize("after", [0.3, 0.1])
def test_a_copy_that_became_worse_is_named(model, x, monkeypatch, recwarn, after):
    errors = iter([0.2, after])
    monkeypatch.setattr(module, "accuracy", lambda *args: module.Accuracy(next(errors), 0.9))
    adapt(model, x, config=CONFIG, **FAST)
    said = [str(warning.message) for warning in recwarn if "worse than its parent" in str(warning.message)]
    assert len(said) == (after > 0.2)
    assert all("more steps than 5" in message for message in said)


def test_no_rows_in_the_weights_but_their_flow(model, x, tmp_path):
    result = adapt(model, x, output=tmp_path, config=CONFIG, **FAST)
    assert result.path is not None
    saved = load_file(result.path)
    added = saved.keys() - model.state_dict().keys()
    flows = {key for key in added if key.startswith("coordinates.sides.0.")}
    assert flows
    assert added - flows == {f"parent.{key}" for key in model.state_dict()}
    assert module._digest(x.double()) not in json.dumps(read_header(result.path))


def test_an_interrupted_run_reaches_the_same_weights(model, x, tmp_path, monkeypatch):
    whole = adapt(model, x, output=tmp_path / "whole", config=CONFIG, **FAST)
    original = Source.draw

    def stop(self, step, index):
        if (step, index) == (3, 1):
            raise KeyboardInterrupt
        return original(self, step, index)

    monkeypatch.setattr(Source, "draw", stop)
    with pytest.raises(KeyboardInterrupt):
        adapt(model, x, output=tmp_path / "killed", config=CONFIG, **FAST)
    monkeypatch.setattr(Source, "draw", original)
    monkeypatch.setattr(module, "fit_marginal", None)  # flows are read, not fitted again
    killed = adapt(model, x, output=tmp_path / "killed", config=CONFIG, **FAST)
    same(killed.model.state_dict(), whole.model.state_dict())
    assert (killed.before, killed.after) == (whole.before, whole.after)


@pytest.mark.parametrize(
    "change", [{"x": 1.0}, {"replay": 0.5}, {"config": FinetuneConfig(steps=6, groups=2, warmup=2)}]
)
def test_another_run_is_not_gone_on_with(model, x, tmp_path, change):
    arguments: dict[str, Any] = {"x": x, "output": tmp_path, "config": CONFIG, **FAST}
    adapt(model, **arguments)
    arguments |= {"x": x + change["x"]} if "x" in change else change
    with pytest.raises(ValueError, match="holds another run"):
        adapt(model, **arguments)


def test_replayed_problems_are_those_of_the_mixture(x):
    marginal, _ = fit_marginal(x, epochs=1)
    source = Source(marginal, marginal, (16, 24), 8, "paper", 1, seed=4)
    same(source.draw(2, 0)._asdict(), group(MIXTURES["paper"], 4, 2, 0, 0, torch.device("cpu"))._asdict())
    assert source.draw(2, 1).x.shape[1] <= 24


@pytest.mark.parametrize(
    ("share", "groups", "expected"), [(0.25, 4, 1), (0.25, 2, 1), (0.5, 2, 1), (0.25, 1, 0), (0.0, 4, 0), (1.0, 3, 3)]
)
def test_a_share_that_is_asked_for_is_replayed(share, groups, expected):
    assert module.replayed_groups(share, groups) == expected


def test_replay_runs(model, x, monkeypatch):
    kept = []

    def finetune(*args, **kwargs):
        kept.append(kwargs["kept"])
        return original(*args, **kwargs)

    original = module.finetune
    monkeypatch.setattr(module, "finetune", finetune)
    adapt(model, x, config=CONFIG, **FAST | {"replay": 0.5})
    assert kept == [1]


def test_fine_tuning_inverts_no_flow(model, x, monkeypatch):
    def finetune(*args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(module.NormalCoordinates, "forward", None)
            return original(*args, **kwargs)

    original = module.finetune
    monkeypatch.setattr(module, "finetune", finetune)
    assert adapt(model, x, config=CONFIG, **FAST).after.error >= 0


def test_held_out_problems_do_not_depend_on_the_random_numbers_of_the_caller(x):
    marginal, _ = fit_marginal(x, epochs=1)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(Source(marginal, marginal, (16, 24), 8, "paper", 1, seed=0).held_out(2))
    for first, second in zip(*found, strict=True):
        for one, other in zip((*first[:3], *first.normal), (*second[:3], *second.normal), strict=True):
            assert torch.equal(one, other)


def test_parent_hash(model, tmp_path):
    path = tmp_path / "parent.safetensors"
    save_weights(model, path, {})
    assert parent_hash(path) == sha256(path)
    assert parent_hash(model) == parent_hash(unfrozen_copy(model)) != parent_hash(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replay": 1.5}, "replay"),
        ({"rows": (5, 10)}, "rows"),
        ({"rows": 64}, "rows"),
        ({"replay": "a"}, "replay"),
        ({"width": "a"}, "width"),
        ({"mixture": "nothing"}, "mixture"),
        ({"x": torch.zeros(200, 2, dtype=torch.long)}, "floating"),
        ({"x": torch.zeros(200)}, "shape"),
        ({"output": __file__}, "folder"),
    ],
)
def test_what_cannot_be_used_is_refused(model, x, change, message):
    with pytest.raises(ValueError, match=message):
        adapt(model, **({"x": x, "config": CONFIG} | FAST | change))


def test_refresh_changes_a_frozen_criterion_in_place(model, x):
    criterion = MISTCriterion(model=model)
    before = {key: value.clone() for key, value in criterion.state_dict().items()}
    codes = (x + 0.1 * torch.randn_like(x)).requires_grad_()
    other, narrow = torch.randn(1, 40, 5), torch.randn(1, 40, 1)
    plain, own = criterion.model(other, narrow), criterion(codes, x)
    reports = criterion.refresh(codes, x, seconds=5.0)
    assert set(reports) == {"x", "y"}
    assert codes.grad is None
    assert not list(criterion.parameters())  # still frozen
    after = criterion.state_dict()
    assert all("coordinates." in key or "parent." in key for key in after.keys() - before.keys())
    assert criterion.model.coordinates is not None  # the flows of present codes, read through from now on
    same({key: after[key] for key in before}, before)
    assert criterion(codes, x).isfinite()
    assert criterion(codes, x) != own
    assert torch.equal(criterion.model(other, narrow), plain)
    first = [t.clone() for t in criterion.model.coordinates.state_dict().values()]
    criterion.refresh(2 * codes, x, seconds=3.0, seed=1)
    second = criterion.model.coordinates.state_dict().values()
    assert not all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert torch.equal(criterion.model(other, narrow), plain)


@pytest.mark.parametrize(("options", "wide", "message"), [({"components": 1}, False, "whole"), ({}, True, "direction")])
def test_refresh_refuses_codes_that_no_flow_can_hold_whole(model, x, options, wide, message):
    criterion = MISTCriterion(model=model, **options)
    before = {key: value.clone() for key, value in criterion.state_dict().items()}
    codes = torch.randn(120, 5) if wide else x
    with pytest.raises(ValueError, match=message):
        criterion.refresh(codes, codes, seconds=2.0)
    same(criterion.state_dict(), before)


def test_nothing_is_forgotten_of_other_widths(model, x, tmp_path):
    result = adapt(model, x, output=tmp_path, config=CONFIG, **FAST)
    assert result.path is not None
    anew = adapt(result.model, torch.cat([x, x[:, :1].exp()], dim=1), config=CONFIG, **FAST)
    wide, narrow, own = (torch.randn(2, 40, d) for d in (5, 1, 2))
    with torch.no_grad():
        loaded, criterion = MIST.from_pretrained(result.path), MISTCriterion(model=result.model)
        for adapted in (result.model, loaded, criterion.model, anew.model):
            for sides in ((wide, narrow), (own, narrow)):
                torch.testing.assert_close(adapted(*sides), model(*sides), **ROUNDING)
        assert not torch.allclose(result.model(own, own), model(own, own), rtol=1e-3)
        # of three features now, and no longer of two
        torch.testing.assert_close(anew.model(own, own), model(own, own), **ROUNDING)


def test_what_is_kept_is_not_trained(model, x):
    criterion = MISTCriterion(model=adapt(model, x, config=CONFIG, **FAST).model, frozen=False)
    names = [name for name, _ in criterion.model.named_parameters()]
    assert names
    assert not any(name.startswith(("parent.", "coordinates.")) for name in names)
    criterion.freeze()
    assert not list(criterion.parameters())


def test_an_adapted_estimator_is_adapted_anew(model, x):
    first = adapt(model, x, config=CONFIG, **FAST).model
    second = adapt(first, torch.cat([x, x[:, :1].exp()], dim=1), config=CONFIG, **FAST).model
    assert first.coordinates is not None
    assert second.coordinates is not None
    assert [t.shape for k, t in first.coordinates.named_buffers() if "center" in k] == [(2,)]
    assert [t.shape for k, t in second.coordinates.named_buffers() if "center" in k] == [(3,)]


def test_fine_tuning_leaves_the_flows_alone(model, x):
    result = adapt(model, x, config=CONFIG, **FAST)
    assert result.model.coordinates is not None
    same(result.model.coordinates.state_dict(), NormalCoordinates(*result.flows).state_dict())


def test_the_hold_is_to_the_parent_which_reads_once(model, x, monkeypatch):
    held: dict[str, MIST] = {}

    def finetune(*args, parent, **kwargs):
        held["parent"] = parent
        return 1

    monkeypatch.setattr(module, "finetune", finetune)
    adapt(model, x, config=CONFIG, **FAST)
    assert held["parent"] is model


def test_refresh_leaves_the_criterion_alone_where_no_flow_fits(model, x):
    criterion = MISTCriterion(model=model)
    before = {key: value.clone() for key, value in criterion.state_dict().items()}
    clusters = torch.randint(0, 2, (400, 2)) * 6 + 0.05 * torch.randn(400, 2)
    with pytest.raises(PoorFit, match="does not fit"):
        criterion.refresh(clusters, clusters, seconds=1.0)
    same(criterion.state_dict(), before)


def test_command(model, x, tmp_path, capsys):
    parent, data = tmp_path / "parent.safetensors", tmp_path / "rows.npy"
    save_weights(model, parent, {})
    np.save(data, x.numpy())
    command = ["adapt", str(data), "--x", "0:2", "--output", str(tmp_path / "run"), "--model", str(parent)]
    assert main([*command, "--steps", "2", "--groups", "1", "--replay", "0", "--rows", "16", "24"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("flow of x: 2 of 2 dimensions")
    assert json.loads(printed[-1])["weights"] == str(tmp_path / "run" / "weights.safetensors")


def test_command_names_what_is_wrong(x, tmp_path, capsys):
    data = tmp_path / "rows.npy"
    np.save(data, x.numpy()[:20])
    assert main(["adapt", str(data), "--x", "0:2", "--output", str(tmp_path / "run")]) == 2
    assert "at least 100 rows" in capsys.readouterr().err


def test_rows_far_from_zero_keep_their_differences(model, x):
    config = FinetuneConfig(steps=2, groups=1, warmup=1)
    result = adapt(model, x.double() + 1e8, x, config=config, **FAST)
    rows = Source(*result.flows, (16, 24), 2, "paper", 0, 0).pushed.pools[0].rows
    assert all(len(column.unique()) > 0.99 * len(column) for column in rows.T)
    near = adapt(model, x.double(), x, config=config, **FAST)
    assert result.before.error == pytest.approx(near.before.error, rel=0.05)


def test_rows_of_another_shape_are_another_run(model, x, tmp_path):
    config = FinetuneConfig(steps=2, groups=1, warmup=1)
    adapt(model, x, output=str(tmp_path / "run"), config=config, **FAST)
    with pytest.raises(ValueError, match="another run"):
        adapt(model, x.reshape(300, 1), output=tmp_path / "run", config=config, **FAST)


def test_masked_rows_are_refused(model, x):
    with pytest.raises(ValueError, match="without a mask"):
        adapt(model, np.ma.masked_array(x.numpy(), mask=False))


def test_refresh_in_a_validation_hook(model):
    criterion = MISTCriterion(model)
    with torch.inference_mode():
        codes = torch.randn(150, 2)
        reports = criterion.refresh(codes, codes[:, :1] + torch.randn(150, 1), seconds=1)
    assert reports["x"].width == 2
    x = torch.randn(32, 2, requires_grad=True)
    criterion(x, x[:, :1]).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(("content", "message"), [(b"", "is not the state of a run"), (None, "holds another run")])
def test_flows_that_are_none_of_the_run_are_refused(model, x, tmp_path, content, message):
    flows = tmp_path / "flows.safetensors"
    if content is None:
        save_file({"a": torch.zeros(1)}, flows)  # without a header
    else:
        flows.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        adapt(model, x, output=tmp_path, config=CONFIG, **FAST)

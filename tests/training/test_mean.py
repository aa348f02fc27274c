"""The mean of weights, by function and by command."""

import copy
import dataclasses

import pytest
import torch

from mist_loss import MIST, cli
from mist_loss.model.network import MISTConfig
from mist_loss.model.weights import read_header, save_weights, sha256
from mist_loss.training.mean import mean


def _heir(model: MIST, seed: int) -> MIST:
    """Trained on, as it were."""
    heir = copy.deepcopy(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in heir.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return heir


def test_shares_count_by_their_ratio(model):
    heirs = {"a": _heir(model, 1), "b": _heir(model, 2)}
    before = {name: copy.deepcopy(heir.state_dict()) for name, heir in heirs.items()}
    found = mean(heirs, {"a": 3.0, "b": 1.0})
    assert not found.training
    for key, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, 0.75 * before["a"][key] + 0.25 * before["b"][key])
        assert all(torch.equal(heir.state_dict()[key], before[name][key]) for name, heir in heirs.items())


def test_weights_that_are_not_told_of_repeats_count_as_zero(model):
    config = dataclasses.replace(model.config, normal=False, balls=False, intrinsic=False)
    plain = MIST(dataclasses.replace(config, repeats=False)).eval()
    told = _heir(plain.widened(config), 1)
    found = mean({"plain": plain, "told": told}, {"plain": 1.0, "told": 1.0})
    assert found.config.repeats
    more = told.vector_mean.numel() - plain.vector_mean.numel()
    torch.testing.assert_close(found.embed_vector.weight[:, -more:], told.embed_vector.weight[:, -more:] / 2)


def test_weights_of_which_one_reads_more_tokens(model):
    plain = MIST(dataclasses.replace(model.config, feature_pairs=0)).eval()
    more = _heir(plain.widened(dataclasses.replace(model.config, feature_pairs=3)), 1)
    found = mean({"more": more, "plain": plain}, {"more": 1.0, "plain": 1.0})
    assert found.config == more.config
    torch.testing.assert_close(found.embed_token.weight, (more.embed_token.weight + plain.embed_token.weight) / 2)


def test_a_second_look_that_only_some_have_begins_again(model):
    plain = MIST(dataclasses.replace(model.config, balls=False, intrinsic=False, look_width=8)).eval()
    fitted = _heir(plain.widened(model.config), 1)  # of another width, which counts for nothing without a look
    for names in (["plain", "fitted"], ["fitted", "plain"]):
        models = {name: {"plain": plain, "fitted": fitted}[name] for name in names}
        found = mean(models, {"plain": 1.0, "fitted": 1.0})
        torch.manual_seed(5)  # what it begins with is not the caller's to draw
        again = mean(models, {"plain": 1.0, "fitted": 1.0})
        assert found.config == fitted.config
        torch.testing.assert_close(
            found.skip.weight, fitted.skip.weight / 2 + plain.widened(model.config).skip.weight / 2
        )
        assert not found.get_parameter("second_look.layers.2.weight").any()
        assert fitted.get_parameter("second_look.layers.2.weight").any()
        assert all(torch.equal(a, b) for a, b in zip(found.parameters(), again.parameters(), strict=True))


def test_a_second_look_that_is_told_less_begins_again(model):
    less = _heir(MIST(dataclasses.replace(model.config, intrinsic=False)).eval(), 1)
    more = _heir(less.widened(model.config), 2)
    found = mean({"less": less, "more": more}, {"less": 1.0, "more": 1.0})
    assert found.config == more.config
    assert not found.get_parameter("second_look.layers.2.weight").any()
    assert more.get_parameter("second_look.layers.2.weight").any()


def test_second_looks_of_other_widths_have_no_mean(model):
    plain = MIST(dataclasses.replace(model.config, balls=False, intrinsic=False)).eval()
    a, b = (plain.widened(dataclasses.replace(model.config, look_width=width)) for width in (8, 16))
    with pytest.raises(ValueError, match="same sizes and ranges, got a and b"):
        mean({"a": a, "b": b}, {"a": 1.0, "b": 1.0})


def test_networks_without_a_common_ancestor_have_no_mean(model):
    stranger = copy.deepcopy(model)
    stranger.token_mean += 1
    with pytest.raises(ValueError, match="got a and b, which normalise otherwise"):
        mean({"a": model, "b": stranger}, {"a": 1.0, "b": 1.0})


@pytest.mark.parametrize(
    ("names", "shares", "message"),
    [
        (["a"], [1.0], "two weights or more, got 1"),
        (["a", "b"], [1.0, 0.0], "positive numbers, got 0.0 for b"),
        (["a", "b"], [1.0, float("nan")], "positive numbers, got nan for b"),
        (["a", "other"], [1.0, 1.0], "same sizes and ranges, got a and other"),
        (["a", "adapted"], [1.0, 1.0], "not adapted, got adapted"),
    ],
)
def test_what_has_no_mean(model, names, shares, message):
    adapted = copy.deepcopy(model)
    adapted.coordinates = torch.nn.Identity()
    other = MIST(MISTConfig(width=16, set_width=8, row_pairs=2, pair_width=4))
    models = {"a": model, "b": model, "other": other, "adapted": adapted}
    with pytest.raises(ValueError, match=message):
        mean({name: models[name] for name in names}, dict(zip(names, shares, strict=True)))


def test_the_command_says_of_what_the_mean_is(model, tmp_path, capsys):
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    heirs = [_heir(model, seed) for seed in (1, 2)]
    for file, heir in zip(files, heirs, strict=True):
        save_weights(heir, file, {"command": file.stem})
    output = tmp_path / "mean.safetensors"
    assert cli.main(["mean", f"{files[0]}=3", str(files[1]), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{sha256(output)}  {output}\n"
    expected = mean(dict(zip("ab", heirs, strict=True)), {"a": 3.0, "b": 1.0}).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in MIST.from_pretrained(output).state_dict().items())
    parts = read_header(output)["provenance"]["mean_of"]
    assert [(part["share"], part["sha256"], part["provenance"]["command"]) for part in parts.values()] == [
        (3.0, sha256(files[0]), "a"),
        (1.0, sha256(files[1]), "b"),
    ]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (["a=x", "b"], "WEIGHTS=SHARE, got 'a=x'"),
        (["mist-base", "mist-base=2"], "every file once"),
        (["mist-base", "mist-paper"], "same sizes and ranges, got mist-base and mist-paper"),
    ],
)
def test_what_the_command_refuses(weights, message, tmp_path, capsys):
    assert cli.main(["mean", *weights, "--output", str(tmp_path / "mean.safetensors")]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

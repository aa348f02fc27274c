"""Weights go out and come back unchanged, and nothing else comes in."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from mist_loss.model import weights
from mist_loss.model.network import MIST, MISTConfig


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = MIST(MISTConfig(width=32, set_width=16))
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    weights.save_weights(model, path, {"seed": 0})
    return model, path


def test_round_trip(saved):
    model, path = saved
    loaded = MIST.from_pretrained(path)
    assert loaded.config == model.config
    assert not loaded.training
    x, y = torch.randn(2, 20, 3), torch.randn(2, 20, 2)
    torch.testing.assert_close(loaded(x, y), model.eval()(x, y))
    assert weights.read_header(path)["provenance"] == {"seed": 0}
    assert list(path.parent.iterdir()) == [path]


def test_loading_leaves_the_random_numbers_alone(saved):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    MIST.from_pretrained(saved[1])
    torch.testing.assert_close(torch.rand(3), expected)


def test_unknown_and_missing_names():
    with pytest.raises(ValueError, match=r"expected one of .* got 'mist-huge'"):
        MIST.from_pretrained("mist-huge")
    with pytest.raises(FileNotFoundError, match=r"no weights at .*gone\.safetensors"):
        MIST.from_pretrained("gone.safetensors")


def test_foreign_truncated_and_misshapen_files_are_refused(saved, tmp_path):
    _, good = saved
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(good.read_bytes()[:-100])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    pickled = tmp_path / "pickled.safetensors"
    torch.save({"a": 1}, pickled)
    for path in (truncated, foreign, pickled):
        with pytest.raises(ValueError, match=path.name):
            MIST.from_pretrained(path)
    misshapen = tmp_path / "misshapen.safetensors"
    tensors = load_file(good) | {"vector_mean": torch.zeros(3)}
    header = {"format": weights.FORMAT, "config": '{"width": 32, "set_width": 16}', "provenance": "{}"}
    save_file(tensors, misshapen, header)
    with pytest.raises(ValueError, match="does not fit"):
        MIST.from_pretrained(misshapen)


def test_a_registered_file_that_was_altered_is_refused(saved, tmp_path, monkeypatch):
    _, good = saved
    (tmp_path / "small.safetensors").write_bytes(good.read_bytes())
    monkeypatch.setattr(weights, "pretrained_folder", lambda: tmp_path)
    monkeypatch.setitem(weights.REGISTRY, "small", ("small.safetensors", weights.sha256(good)))
    assert MIST.from_pretrained("small").config.width == 32
    altered = bytearray(good.read_bytes())
    altered[-1] ^= 1
    (tmp_path / "small.safetensors").write_bytes(altered)
    with pytest.raises(ValueError, match=r"not the released 'small'"):
        MIST.from_pretrained("small")
    (tmp_path / "small.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="are missing"):
        MIST.from_pretrained("small")

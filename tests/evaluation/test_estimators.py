import sys
from types import ModuleType

import pytest
import torch

from mist_loss.estimate import estimate_mi
from mist_loss.evaluation import estimators
from mist_loss.model.quantiles import KNOTS
from mist_loss.model.weights import save_weights, sha256


@pytest.fixture
def peers(monkeypatch) -> dict:
    """A stand-in for the peers and their libraries."""
    module = ModuleType("mist_loss.evaluation.peers")
    module.PEERS = {"peer": lambda: "the peer"}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.PEERS


def test_a_file_is_the_model_in_it(tmp_path, model):
    path = tmp_path / "small.safetensors"
    save_weights(model, path, {})
    found = estimators.named(str(path))
    x, y = torch.randn(2, 30, 2)
    assert found.weights == sha256(path)
    result, expected = found.estimate(x, y), estimate_mi(x, y, model=model)
    for a, b in zip((result.value, result.low, result.high), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_resamples_average_quantile_functions(model, monkeypatch):
    x, y = torch.randn(2, 40, 2)
    seen = []

    def predict(network, xs, ys, projection):
        seen.append(xs)
        return torch.arange(KNOTS) + xs.mean((1, 2))[:, None]

    monkeypatch.setattr(estimators, "predict", predict)
    result = estimators.bootstrapped(model, 7)(x, y)
    drawn = torch.cat(seen)
    assert drawn.shape == (7, 40, 2)
    assert (drawn[:, :, None] == x[None, None]).all(-1).any(-1).all()
    assert not torch.equal(drawn[0], drawn[1])
    assert isinstance(result, estimators.Predictive)
    torch.testing.assert_close(result.knots, torch.arange(KNOTS) + drawn.mean((1, 2)).mean())


def test_estimates_have_no_graph(model):
    x = torch.randn(20, 2, requires_grad=True)
    assert not estimators.single(model)(x, x).value.requires_grad


def test_names(peers, tmp_path, model):
    assert estimators.named("peer") == ("peer", "", "the peer")
    path = tmp_path / "small.safetensors"
    save_weights(model, path, {})
    assert estimators.named(f"{path}@3").name == f"{path}@3"
    with pytest.raises(ValueError, match=r"mist-base.*peer.*got 'nobody'"):
        estimators.named("nobody")
    with pytest.raises(ValueError, match="weights before @50"):
        estimators.named("peer@50")
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors"):
        estimators.named(str(tmp_path / "missing.safetensors"))

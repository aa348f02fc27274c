"""Reading through flows: the rows of the flow, both readings, and files that cannot do harm."""

import copy
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytest.importorskip("normflows")
from mist_loss import MISTCriterion, estimate_mi
from mist_loss.estimate import predict
from mist_loss.flows.coordinates import NormalCoordinates
from mist_loss.flows.marginals import Marginal, fit_marginal
from mist_loss.meta.families import canonical_normal
from mist_loss.model import quantiles
from mist_loss.model.network import MIST
from mist_loss.model.weights import save_weights


def crooked(width, seed):
    """A flow of random weights, far from the identity: fitting one takes longer and bends less."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        flow = Marginal(width, width, True, layers=4, hidden=16, bins=6)
        for name, weight in flow.named_parameters():
            if "final_layer" in name or "unnormalized" in name:
                torch.nn.init.normal_(weight, std=0.7)
    flow.directions.copy_(torch.eye(width))
    return flow.double().requires_grad_(False).eval()


@pytest.fixture(scope="module")
def flow():
    return crooked(2, 1)


@pytest.fixture(scope="module")
def narrow():
    return crooked(1, 2)


def test_the_coordinates_are_those_that_the_flow_generates_from(flow, narrow):
    coordinates = NormalCoordinates(flow, narrow)
    u, v = torch.randn(3, 50, 2), torch.randn(3, 50, 1)
    x, y = coordinates(flow.generate(u).float(), narrow.generate(v).float())
    torch.testing.assert_close(x, u, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(y, v, atol=2e-3, rtol=1e-3)


def test_embeddings_side_by_side_are_mapped_one_by_one(flow):
    coordinates = NormalCoordinates(flow, flow)
    x, y = torch.randn(2, 30, 4), torch.randn(2, 30, 2)
    whole, _ = coordinates(x, y)
    parts = [coordinates(half, y)[0] for half in x.split(2, dim=2)]
    torch.testing.assert_close(whole, torch.cat(parts, dim=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sides_too_wide_to_be_read_are_read_in_the_principal_coordinates_of_the_flow(model, tmp_path, dtype):
    scales = torch.cat([torch.tensor([4.0, 3.0]), torch.full((68,), 0.1)]).double()
    flow, _ = fit_marginal(3 + torch.randn(200, 70, dtype=torch.float64) * scales, width=2, epochs=1)
    adapted = copy.deepcopy(model)
    adapted.coordinates = NormalCoordinates(flow, flow)
    with torch.random.fork_rng():
        adapted.keep(MIST(model.config).eval())
    save_weights(adapted, tmp_path / "weights.safetensors", {})
    with torch.device("meta"):  # whatever the default device is
        flows = MIST.from_pretrained(tmp_path / "weights.safetensors").coordinates
    adapted = MIST.from_pretrained(tmp_path / "weights.safetensors").to(torch.float32)
    x, y = (3 + torch.randn(3, 80, 70, dtype=dtype) * scales.to(dtype) for _ in "xy")
    x[2] = 100 * torch.randn(80, 70, dtype=dtype)  # of no modality: read as ever
    narrow = tuple(torch.stack([flow.project(rows) for rows in side]) for side in (x, y))
    assert flows is not None
    assert flows.narrows(x, y)
    assert adapted.parent is not None
    expected = predict(adapted, narrow[0], narrow[1], "none")
    plain = predict(adapted.parent, x, y, "pca")
    assert (expected - plain).abs().amin() > 0.01
    found = predict(adapted, x, y, "pca")
    torch.testing.assert_close(found[:2], expected[:2], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found[2], plain[2])
    for part in (slice(0, 2), slice(2, 3)):  # as whole batches of one kind
        torch.testing.assert_close(predict(adapted, x[part], y[part], "pca"), found[part], atol=1e-4, rtol=1e-4)
    for one, other in ((x, narrow[1]), (narrow[0], y)):
        torch.testing.assert_close(predict(adapted, one, other, "pca")[:2], expected[:2], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(predict(adapted, x, y, "random"), predict(adapted.parent, x, y, "random"))


def test_sides_that_can_be_read_whole_are(model):
    scales = torch.tensor([4.0, 3.0, 0.5, 0.1], dtype=torch.float64)
    flow, _ = fit_marginal(torch.randn(200, 4, dtype=torch.float64) * scales, width=2, epochs=1)
    adapted = copy.deepcopy(model)
    adapted.coordinates = NormalCoordinates(flow, flow)
    x, y = (torch.randn(1, 40, 4) * scales.float() for _ in "xy")
    torch.testing.assert_close(adapted(x, y), model(x, y))
    torch.testing.assert_close(estimate_mi(x, y, model=adapted), estimate_mi(x, y, model=model))


def test_one_feature_is_no_part_of_many(narrow):
    coordinates = NormalCoordinates(narrow, narrow)
    one, two = torch.randn(2, 30, 1), torch.randn(2, 30, 2)
    assert coordinates.maps(one, one)
    assert not coordinates.maps(one, two)
    assert not coordinates.maps(one[:, :1], one[:, :1])  # no more rows than features


def test_principal_coordinates_of_a_cut_embedding():
    flow, _ = fit_marginal(torch.randn(100, 5) @ torch.randn(5, 5), width=2, epochs=1, strict=False)
    u = torch.randn(1, 40, 2)
    rows = flow.generate(u).float()
    assert rows.shape == (1, 40, 2)
    torch.testing.assert_close(NormalCoordinates(flow, flow)(rows, rows)[0], u, atol=2e-3, rtol=1e-3)


def test_both_readings_count(model, flow):
    x, y = torch.randn(12, 40, 2), torch.randn(12, 40, 2)
    y[::2] += 3 * x[::2]
    coordinates = NormalCoordinates(flow, flow)
    adapted = MIST(model.config).eval()
    adapted.load_state_dict(model.state_dict())
    adapted.coordinates = coordinates
    combined = quantiles.combine(model(x, y), model(*coordinates(x, y)))
    torch.testing.assert_close(adapted(x, y), combined)
    assert not torch.allclose(combined, model(x, y))
    known = (torch.randn(12, 40, 2), y)  # not what the flow gives, so that it shows whose coordinates are read
    torch.testing.assert_close(adapted(x, y, known), quantiles.combine(model(x, y), model(*known)))
    other = torch.randn(12, 40, 3)
    torch.testing.assert_close(adapted(x, other), model(x, other))  # three features are not of this modality


def test_sets_unlike_the_modality_are_left_to_the_parent(model, flow):
    """A mixed batch: rows of the flow in every other set, in the others such rows scaled, or in another direction."""
    adapted = MIST(model.config).eval()
    adapted.coordinates = NormalCoordinates(flow, flow)
    u = torch.randn(6, 60, 2)
    x, y = (flow.generate(t).float() for t in (u, u + torch.randn(6, 60, 2)))
    x[1], y[3], x[5] = 40 * x[1], y[3] - 30, x[5] @ torch.tensor([[0.0, 1.0], [0.05, 0.0]])
    alike = adapted.coordinates.alike(*adapted.coordinates(x, y))
    assert alike.tolist() == [True, False] * 3
    both = adapted(x, y)  # without a parent there is nobody else to ask
    adapted.keep(model)
    torch.testing.assert_close(adapted(x, y), torch.where(alike[:, None], both, model(x, y)))
    torch.testing.assert_close(adapted(x[1::2], y[1::2]), model(x[1::2], y[1::2]))


@pytest.mark.slow
def test_compiled_code_does_not_look_whether_sets_are_alike(model, flow):
    adapted = MIST(model.config).eval()
    adapted.coordinates = NormalCoordinates(flow, flow)
    adapted.keep(model)
    u = torch.randn(4, 40, 2)
    x = flow.generate(u).float()
    x[1] *= 40
    with torch.no_grad():
        assert adapted.coordinates.alike(*adapted.coordinates(x, x)).tolist() == [True, False, True, True]
        compiled = torch.compile(lambda x: adapted(x, x), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), adapted(x, x))


def test_narrow_sides_may_be_clusters(flow):
    square = torch.tensor([0.1, 10.0, 0.05, 20.0]).sqrt()[:, None, None]
    rows = square * torch.ones(4, 30, 8)
    for side in (flow, crooked(8, 3)):
        width = side.width
        alike = NormalCoordinates(side, side).alike(rows[..., :width], rows[..., :width])
        assert alike.tolist() == [width < 8, width < 8, False, False]


def test_what_bending_hides_is_read(flow):
    """Analytic truth: an invertible map of a side leaves the nats of a Gaussian as they are."""
    u, v, mi = canonical_normal(torch.tensor([[0.9, 0.5]]).expand(16, 2), 200, 2, 2)
    turn = torch.linalg.qr(torch.randn(16, 2, 2)).Q
    x, y = (flow.generate(side).float() for side in (u @ turn, v))
    network = MIST.from_pretrained("mist-base")
    with torch.no_grad():
        plain = (quantiles.mean(network(x, y)) - mi).abs().mean()
        network.coordinates = NormalCoordinates(flow, flow)
        error = (quantiles.mean(network(x, y)) - mi).abs().mean()
    assert error < plain / 2


def test_gradients_reach_the_rows_and_stay_finite(flow):
    network = MIST.from_pretrained("mist-base")
    network.coordinates = NormalCoordinates(flow, flow)
    criterion = MISTCriterion(model=network)
    assert not list(criterion.parameters())
    for scale in (1e-12, 1.0, 1e12):
        x = torch.randn(64, 2, requires_grad=True)
        criterion(scale * x, x.detach() + 0.3 * torch.randn(64, 2)).backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert x.grad.norm() > 0
    criterion.unfreeze()
    assert {name.split(".")[0] for name, _ in criterion.model.named_parameters()}.isdisjoint({"coordinates"})


@pytest.fixture
def saved(model, flow, narrow, tmp_path):
    adapted = MIST(model.config).eval()
    adapted.coordinates = NormalCoordinates(flow, narrow)
    save_weights(adapted, tmp_path / "good.safetensors", {})
    return adapted, tmp_path / "good.safetensors"


def test_file_and_back(saved):
    adapted, path = saved
    state = torch.random.get_rng_state()
    loaded = MIST.from_pretrained(path)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(loaded.state_dict(), adapted.state_dict())
    x, y = torch.randn(2, 30, 2), torch.randn(2, 30, 1)
    torch.testing.assert_close(loaded(x, y), adapted(x, y), atol=0, rtol=0)


def test_a_state_brings_its_coordinates(saved, model):
    """A criterion that was refreshed is restored into a new one, and back."""
    adapted, plain = MISTCriterion(model=saved[0]), MISTCriterion(model=model)
    x, y = torch.randn(30, 2), torch.randn(30, 1)
    other = MISTCriterion(model=model)
    other.load_state_dict(adapted.state_dict())
    assert other(x, y) == adapted(x, y)
    assert not list(other.parameters())
    other.load_state_dict(plain.state_dict())
    assert other.model.coordinates is None
    assert other(x, y) == plain(x, y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(saved, dtype):
    network = copy.deepcopy(saved[0]).to(dtype)
    assert network(torch.randn(2, 30, 2), torch.randn(2, 30, 1)).isfinite().all()


def rewrite(path, **tensors):
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    kept = {key: tensor for key, tensor in load_file(path).items() if key not in tensors}
    save_file(kept | {key: tensor for key, tensor in tensors.items() if tensor is not None}, path, header)


SIDE, LAYER = "coordinates.sides.0.", "coordinates.sides.0.layers.0.prqct."
PERMUTATION = SIDE + "layers.1.permutation._permutation"


@pytest.mark.parametrize(
    "tensors",
    [
        {SIDE + "matrix": torch.zeros(2, 3)},
        {SIDE + "matrix": torch.zeros(2)},
        {SIDE + "matrix": None},
        {SIDE + "layers.99999.bias": torch.zeros(1)},  # would be thousands of layers
        {LAYER + "transform_net.initial_layer.weight": torch.zeros(10**9, 0)},  # nothing in the file, 4e18 bytes built
        {LAYER + "unconditional_transform.unnormalized_widths": torch.zeros(1, 10**6)},
        {PERMUTATION: torch.tensor([0, 0])},
        {PERMUTATION: torch.tensor([1, 2])},
        {PERMUTATION: torch.tensor([True, False])},
        {PERMUTATION: torch.tensor([0, 1], dtype=torch.uint8)},
        {PERMUTATION: torch.tensor([0.0, 1.0])},
        {LAYER + "identity_features": torch.tensor([1])},
        {SIDE + "center": torch.zeros(2, dtype=torch.long)},
        {SIDE + "center": torch.zeros(2, dtype=torch.complex64)},
    ],
)
def test_what_is_no_flow_is_refused(saved, tensors):
    rewrite(saved[1], **tensors)
    with pytest.raises(ValueError, match=r"good\.safetensors does not fit this version"):
        MIST.from_pretrained(saved[1])


def test_a_parent_is_whole_and_not_adapted_itself(saved, model):
    adapted, path = saved
    adapted.keep(model)
    save_weights(adapted, path, {})
    wide = torch.randn(2, 30, 5)
    torch.testing.assert_close(MIST.from_pretrained(path)(wide, wide), model(wide, wide), atol=0, rtol=0)
    tensors = load_file(path)
    name = "parent.skip.bias"
    for wrong in (
        {name: None},
        {name: torch.zeros(2)},
        {"parent." + name: tensors[name]},
        {"parent." + SIDE + "center": tensors[SIDE + "center"]},
        {"parent." * 2000 + "x": torch.zeros(1)},
    ):
        save_weights(adapted, path, {})
        rewrite(path, **wrong)
        with pytest.raises(ValueError, match=r"good\.safetensors does not fit this version"):
            MIST.from_pretrained(path)
    del tensors[name]
    with pytest.raises(ValueError, match=r"a whole parent, got one without skip\.bias"):
        adapted.load_state_dict(tensors, strict=False)
    assert adapted(wide, wide).equal(model(wide, wide))  # as it was


def test_numbers_that_are_not_finite_are_refused(saved):
    rewrite(saved[1], **{SIDE + "center": torch.tensor([0.0, torch.nan])})
    with pytest.raises(ValueError, match="no finite numbers in coordinates"):
        MIST.from_pretrained(saved[1])


def test_the_extra_is_named_where_it_is_missing(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "normflows", None)
    with pytest.raises(ModuleNotFoundError, match=r"mist-loss\[flows\]"):
        MIST.from_pretrained(saved[1])


def test_the_parent_alone_can_be_trained_and_with_its_child_cannot(model, flow):
    adapted = MIST(model.config).eval()
    adapted.coordinates = NormalCoordinates(flow, flow)
    adapted.keep(model)
    names = {name for name, _ in model.named_parameters()}
    assert adapted.parent is not None
    for _ in range(2):  # the first neither takes it along nor spoils it
        whole = MISTCriterion(adapted, frozen=False).freeze().unfreeze()
        assert {name for name, _ in whole.model.named_parameters()} == names
        alone = MISTCriterion(adapted.parent, frozen=False)
        assert {name for name, _ in alone.model.named_parameters()} == names
    assert not list(adapted.parent.parameters())

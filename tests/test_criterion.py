import copy
import io
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from mist_loss import MIST, MISTCriterion, estimate_mi
from mist_loss.criterion import Last
from mist_loss.model import quantiles, weights

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture
def criterion(model):
    return MISTCriterion(model)


def pair(n=50, dx=2, dy=3, b=None, dtype=torch.float32):
    lead = () if b is None else (b,)
    x = torch.randn(*lead, n, dx)
    y = torch.randn(*lead, n, dy) + x[..., :1]
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs, retain_graph=True)


def describe(criterion) -> Last:
    assert criterion.last is not None
    return criterion.last


def same(first, second):
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# the number


@pytest.mark.parametrize("b", [None, 1, 3])
@pytest.mark.parametrize("dims", [(1, 1), (2, 3), (8, 1)])
def test_loss_is_minus_the_mean_estimate(model, criterion, b, dims):
    x, y = pair(dx=dims[0], dy=dims[1], b=b)
    loss = criterion(x, y)
    assert loss.shape == ()
    torch.testing.assert_close(loss, -estimate_mi(x, y, model=model).value.mean())
    torch.testing.assert_close(MISTCriterion(model, objective="minimize")(x, y), -loss)
    for gradient, sample in zip(gradients(loss, x, y), (x, y), strict=True):
        assert gradient.shape == sample.shape
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_quantile_is_optimised_instead(model):
    x, y = pair(b=2)
    expected = quantiles.quantile(model(x, y), 0.1).mean()
    torch.testing.assert_close(MISTCriterion(model, quantile=0.1)(x, y), -expected)
    torch.testing.assert_close(MISTCriterion(model, "minimize", quantile=0.1)(x, y), expected)


@pytest.mark.parametrize("b", [None, 3])
def test_last_describes_the_call_without_a_graph(model, criterion, b):
    assert criterion.last is None
    x, y = pair(b=b)
    criterion(x, y)
    last = describe(criterion)
    assert (last.rows, last.dims, last.in_range) == (50, (2, 3), True)
    for got, expected in zip(last[:3], estimate_mi(x, y, level=0.9, model=model), strict=True):
        assert not got.requires_grad
        torch.testing.assert_close(got, expected.detach())


@pytest.mark.parametrize(("n", "dx", "in_range"), [(4, 2, False), (9, 2, False), (10, 2, True), (600, 8, True)])
def test_range(criterion, n, dx, in_range):
    loss = criterion(*pair(n, dx))
    assert criterion.last.in_range is in_range
    assert loss.isfinite()


def test_accumulated_gradients_are_those_of_the_batch(criterion):
    x, y = pair(b=2)
    whole = gradients(criterion(x, y), x, y)
    (sum(criterion(x[i], y[i]) / 2 for i in range(2))).backward()
    torch.testing.assert_close((x.grad, y.grad), whole, atol=1e-6, rtol=1e-4)


def test_memory_is_linear_in_the_rows(criterion):
    def kept(n: int) -> int:
        """Bytes that wait for the way back."""
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x, y = pair(n, 4, 4)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = criterion(x, y)
        assert loss.isfinite()
        return sum(storages.values())

    small, middle, large = (kept(n) for n in (1000, 2000, 4000))
    assert large - middle < 2.1 * (middle - small)
    assert large < 4.1 * small


# precision


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(model, dtype):
    criterion = MISTCriterion(model).to(dtype)
    x, y = pair(dtype=dtype)
    loss = criterion(x, y)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert all(g.dtype == dtype and g.isfinite().all() and g.abs().max() > 0 for g in gradients(loss, x, y))


def test_mixed_dtypes(criterion):
    x, y = pair(dtype=torch.float64)[0], pair(dtype=torch.bfloat16)[1]
    assert [g.dtype for g in gradients(criterion(x, y), x, y)] == [torch.float64, torch.bfloat16]


def test_float64_input_is_not_rounded_on_its_way_in(criterion):
    x, y = pair(dtype=torch.float64)
    torch.testing.assert_close(criterion(x + 1e5, y), criterion(x, y), atol=1e-5, rtol=0)


def test_autocast_leaves_the_estimator_alone(criterion):
    x, y = pair()
    expected = criterion(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(criterion(x, y), expected)


def test_autocast_training_step(criterion):
    encoder = nn.Linear(5, 4)
    rows = torch.randn(50, 5)
    with torch.autocast("cpu", torch.bfloat16):
        codes = encoder(rows)
        assert codes.dtype == torch.bfloat16
        loss = criterion(codes, rows)
    loss.backward()
    assert loss.dtype == torch.float32
    gradient = encoder.weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_gradient_scaler(criterion):
    x, y = pair(dtype=torch.float16)
    expected = gradients(criterion(x, y), x, y)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaled = gradients(scaler.scale(criterion(x, y)), x, y)
    for got, reference in zip(scaled, expected, strict=True):
        torch.testing.assert_close(got.float() / 2**10, reference.float(), atol=1e-5, rtol=1e-2)


@pytest.mark.parametrize("objective", ["maximize", "minimize"])
def test_half_codes_have_the_gradient_of_their_values(model, objective):
    criterion = MISTCriterion(model, objective=objective)
    x, y = pair(dtype=torch.float16)
    half = gradients(2.0**15 * criterion(x, y), x, y)  # a scale that what is summed inside would not bear
    single = [t.detach().float().requires_grad_() for t in (x, y)]
    for got, expected in zip(half, gradients(criterion(*single), *single), strict=True):
        torch.testing.assert_close(got.float() / 2**15, expected, atol=1e-6, rtol=2e-3)


def test_nearly_collapsed_half_codes_have_no_nan(criterion):
    x, y = pair(n=256, dtype=torch.float16)
    x = torch.ones_like(x).index_fill(0, torch.tensor([0]), 1.001).requires_grad_()
    assert not any(g.isnan().any() for g in gradients(criterion(x, y), x, y))


def test_a_given_model_in_half_precision(model):
    half = copy.deepcopy(model).half()
    x, y = pair()
    torch.testing.assert_close(MISTCriterion(half)(x, y), MISTCriterion(model)(x, y), atol=0.02, rtol=0.02)
    assert half.vector_mean.dtype == torch.float16
    with pytest.raises(ValueError, match=r"float32 or float64, got torch.float16: call \.float\(\)"):
        estimate_mi(x, y, model=half)


def test_a_criterion_born_in_inference_mode_trains(model):
    with torch.inference_mode():
        criteria = [MISTCriterion(model), MISTCriterion(copy.deepcopy(model).half())]
    x, y = pair()
    for criterion in criteria:
        assert gradients(criterion(x, y), x, y)[0].isfinite().all()


def test_half_parent_keeps_the_estimator_in_float32(model, criterion):
    parent = nn.Sequential(nn.Linear(2, 2), criterion).half()
    assert parent[0].weight.dtype == torch.float16
    assert same(criterion.model, model)


# frozen


def test_frozen_weights_are_out_of_reach(model, criterion):
    parent = nn.ModuleDict({"encoder": nn.Linear(2, 2), "loss": criterion})
    parent.train().requires_grad_(True)
    assert {name for name, _ in parent.named_parameters()} == {"encoder.weight", "encoder.bias"}
    assert criterion.training
    assert not any(module.training for module in criterion.model.modules())
    assert not any(t.requires_grad for t in criterion.model.state_dict(keep_vars=True).values())
    assert same(criterion.model, model)


def test_the_given_model_is_copied(model):
    before = copy.deepcopy(model.state_dict())
    criterion = MISTCriterion(model, frozen=False)
    with torch.no_grad():
        for parameter in criterion.parameters():
            parameter.zero_()
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert len(list(MISTCriterion(model).parameters())) == 0 < len(list(model.parameters()))


def test_unfreeze_and_freeze(model, criterion):
    names = {f"model.{name}" for name, _ in model.named_parameters()}
    assert criterion.train().unfreeze() is criterion
    assert {name for name, _ in criterion.named_parameters()} == names
    assert all(parameter.requires_grad for parameter in criterion.parameters())
    assert criterion.model.training
    assert not criterion.eval().model.training
    assert same(criterion.model, model)

    optimizer = torch.optim.SGD(criterion.parameters(), lr=0.1)
    criterion(*pair()).backward()
    optimizer.step()
    assert not same(criterion.model, model)
    trained = copy.deepcopy(criterion)
    assert same(trained.freeze(), criterion)
    assert list(trained.parameters()) == []
    assert not trained.train().model.training
    x, y = pair()
    torch.testing.assert_close(trained(x, y), criterion(x, y))


def test_freezing_twice_is_freezing_once(model, criterion):
    criterion.freeze().freeze().unfreeze()
    assert len(list(criterion.parameters())) == len(list(model.parameters()))
    assert same(criterion.unfreeze().model, model)


def test_the_copy_of_a_frozen_model_can_be_trained(model, criterion):
    second = MISTCriterion(criterion.model, frozen=False)
    assert len(list(second.parameters())) == len(list(model.parameters()))
    assert list(criterion.parameters()) == []


@pytest.mark.parametrize("frozen", [True, False])
def test_state_dict_passes_between_frozen_and_unfrozen(model, frozen):
    torch.manual_seed(1)
    source = MISTCriterion(MIST(model.config), frozen=frozen)
    target = MISTCriterion(model, frozen=not frozen)
    assert not same(source, target)
    target.load_state_dict(source.state_dict())
    assert same(source, target)


@pytest.mark.parametrize("frozen", [True, False])
def test_copies(model, frozen):
    criterion = MISTCriterion(model, frozen=frozen)
    x, y = pair()
    expected = criterion(x, y)
    stream = io.BytesIO()
    torch.save(criterion, stream)
    stream.seek(0)
    for other in (copy.deepcopy(criterion), torch.load(stream, weights_only=False)):
        assert torch.equal(other(x, y), expected)
        assert len(list(other.parameters())) == len(list(criterion.parameters()))
        assert all(a is not b for a, b in zip(other.buffers(), criterion.buffers(), strict=True))
        assert len(list(other.unfreeze().parameters())) == len(list(model.parameters()))


def test_averaged_model(criterion):
    parent = nn.ModuleDict({"encoder": nn.Linear(2, 2), "loss": criterion})
    averaged = torch.optim.swa_utils.AveragedModel(parent)
    averaged.update_parameters(parent)
    assert same(averaged.module.get_submodule("loss"), criterion)


def test_device_moves_every_weight(criterion):
    assert {t.device.type for t in criterion.to("meta").state_dict().values()} == {"meta"}


def test_weights_by_path(model, tmp_path):
    path = tmp_path / "small.safetensors"
    weights.save_weights(model, path, {})
    assert same(MISTCriterion(path).model, model)


def test_repr(criterion):
    shown = (
        "objective='maximize', quantile=None, frozen=True, projection='pca', components=None, gather=False, pull=2.0"
    )
    assert f"{shown}, push=6.0" in repr(criterion)


def test_few_rows_are_read_with_a_warning_once(model):
    criterion, (x, y) = MISTCriterion(model), pair(n=6)
    with pytest.warns(UserWarning, match="6 rows, the model knows 10 and more") as caught:
        criterion(x, y)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion(x, y)
        criterion(*pair(n=10))
    with pytest.warns(UserWarning, match="x has 20"):  # another matter
        criterion(*pair(dx=20))


# wide input


def test_wide_input_warns_once(criterion):
    x, y = pair(dx=20, dy=9)
    with pytest.warns(UserWarning, match="x has 20 and y has 9 dimensions, the model reads at most 8: projected"):
        loss = criterion(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion(x, y)
    assert criterion.last.dims == (20, 9)
    assert criterion.last.in_range is False
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients(loss, x, y))


@pytest.mark.filterwarnings("ignore:x has 2048")
@pytest.mark.parametrize("projection", ["pca", "random", "sliced"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_codes_and_few_rows(model, projection, dtype):
    x, y = pair(n=16, dx=2048, dy=2048, dtype=dtype)
    loss = MISTCriterion(model, projection=projection)(x, y)
    assert all(g.dtype == dtype and g.isfinite().all() for g in gradients(loss, x, y))


def test_projection_none_refuses(model):
    with pytest.raises(ValueError, match="x has 9 dimensions, the model reads at most 8: choose another projection"):
        MISTCriterion(model, projection="none")(*pair(dx=9))


# degenerate but valid input


def duplicated(x):
    return torch.cat([x[:, :1], x[:, :1]], dim=1)


DEGENERATE = {
    "constant feature": lambda x: torch.cat([x, torch.ones(len(x), 1)], dim=1),
    "all constant": torch.ones_like,
    "all zero": torch.zeros_like,
    "duplicated feature": duplicated,
    "one repeated row": lambda x: x[:1].expand(len(x), -1),
    "two different rows": lambda x: x[:1] * (torch.arange(len(x)) % 2)[:, None],
    "binary": lambda x: (x > 0).float(),
    "tiny": lambda x: 1e-30 * x,
    "huge": lambda x: 1e30 * x,
}


@pytest.mark.parametrize("n", [4, 50])
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_input_is_finite(criterion, case, n):
    x, y = (t.detach() for t in pair(n))
    x = DEGENERATE[case](x).requires_grad_()
    for first, second in ((x, y), (y, x), (x, x)):
        loss = criterion(first, second)
        assert loss.isfinite()
        assert gradients(loss, x)[0].isfinite().all()


# errors: what was expected, what came, what to do


GOOD = torch.zeros(50, 2)
BAD = {
    "rows": (GOOD, torch.zeros(49, 2), r"as many rows in x as in y, got shapes \(50, 2\) and \(49, 2\): row i"),
    "sets": (torch.zeros(2, 50, 2), torch.zeros(3, 50, 2), "as many sets in x as in y, got"),
    "ranks": (GOOD, torch.zeros(1, 50, 2), r"both of shape \(n, d\) or both \(b, n, d\), got"),
    "vector": (torch.zeros(50), GOOD, r"x of shape \(n, d\).*got \(50,\): a single feature is x\[:, None\]"),
    "images": (GOOD, torch.zeros(50, 3, 8, 8), r"y of shape .* a feature map y\.flatten\(1\)"),
    "no rows": (torch.zeros(0, 2), torch.zeros(0, 2), r"at least one value, got shape \(0, 2\)"),
    "no features": (GOOD, torch.zeros(50, 0), "y with at least one value"),
    "few rows": (torch.zeros(3, 2), torch.zeros(3, 2), "at least 4 rows, got 3: give more of them"),
    "integer": (GOOD.long(), GOOD, r"x in float16, .*got torch\.int64: make labels .* with x\.float\(\)"),
    "boolean": (GOOD, GOOD.bool(), r"y in float16, .*got torch\.bool"),
    "complex": (GOOD, GOOD.to(torch.complex64), "view_as_real"),
    "devices": (GOOD, GOOD.to("meta"), r"on one device, got cpu and meta: move one with \.to"),
    "no values": (GOOD.to("meta"), GOOD.to("meta"), "x and y with values, got tensors on 'meta'"),
    "nested": (torch.nested.nested_tensor([GOOD, GOOD]), GOOD, r"dense tensor, got a nested one: .*unbind"),
    "not a tensor": (GOOD.numpy(), GOOD, r"x to be a tensor, got ndarray: convert it with torch\.as_tensor"),
    "nothing": (GOOD, None, "y to be a tensor, got NoneType"),
    "nan": (
        GOOD,
        GOOD.log().sqrt() * 0,
        "expected finite values, got 100 of 100 NaN or infinite in y: drop those rows",
    ),
    "infinite": (1 / GOOD, GOOD, "NaN or infinite in x"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(criterion, case):
    x, y, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        criterion(x, y)
    assert criterion.last is None


def test_estimator_on_another_device(criterion):
    with pytest.raises(ValueError, match=r"on one device, got meta and cpu: move the estimator with \.to\('cpu'\)"):
        criterion.to("meta")(*pair())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "max"}, "expected objective to be one of 'maximize', 'minimize', got 'max'"),
        ({"projection": None}, "expected projection to be one of 'pca', 'random', 'sliced', 'none', got None"),
        ({"quantile": 1.0}, "expected quantile as a number strictly between 0 and 1, got 1.0"),
        ({"model": "no-such-model"}, "expected one of"),
        ({"frozen": "False"}, "expected frozen to be True or False, got 'False'"),
        ({"gather": 1}, "expected gather to be True or False, got 1"),
        ({"pull": "2"}, r"expected pull as a number between 0 and 1e\+06, got '2'"),
        ({"push": True}, r"expected push as a number between 0 and 1e\+06, got True"),
        ({"pull": 10**400}, "expected pull as a number between"),
        ({"objective": ["maximize"]}, "expected objective to be one of"),
        ({"model": MISTCriterion}, r"weights, or a MIST, got type: of a MISTCriterion give criterion\.model"),
    ],
)
def test_bad_options(model, options, message):
    with pytest.raises(ValueError, match=message):
        MISTCriterion(**({"model": model} | options))


def test_missing_weights():
    with pytest.raises(FileNotFoundError, match=r"no weights at none\.safetensors"):
        MISTCriterion("none.safetensors")


# compiled


@pytest.mark.parametrize(
    ("backend", "dx", "projection"),
    [
        ("eager", 12, "random"),
        pytest.param("aot_eager", 2, "none", marks=pytest.mark.slow),
        pytest.param("aot_eager", 12, "pca", marks=pytest.mark.slow),
        pytest.param("aot_eager", 12, "random", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("dy", [3, 14])
def test_compiles_without_graph_breaks(model, backend, dx, dy, projection):
    if projection == "none" and dy > 8:
        pytest.skip("too wide to be read as it is")
    criterion = MISTCriterion(model, projection=projection)
    torch.compiler.reset()  # shapes of other tests would make these dynamic ones
    compiled: Any = torch.compile(criterion, fullgraph=True, backend=backend)
    x, y = pair(dx=dx, dy=dy)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss = compiled(x, y)
        compiled(x, y)
        last = describe(compiled)
        assert len([w for w in caught if "the model reads at most 8" in str(w.message)]) == (max(dx, dy) > 8)
        expected = criterion(x, y)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, x, y), gradients(expected, x, y))
    assert last[3:] == describe(criterion)[3:] == (50, (dx, dy), max(dx, dy) <= 8)
    torch.testing.assert_close(last.value, describe(criterion).value)

    # where looking would break the graph, what is not finite becomes NaN
    broken = torch.where(torch.arange(50)[:, None] == 7, torch.inf, x)
    loss = compiled(broken, y)
    assert loss.isnan()
    assert all(g.isnan().any() for g in gradients(loss, x, y))


def test_not_finite_on_a_device_that_must_not_wait(criterion, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x, y = pair(b=2)
    broken = x * torch.tensor([1.0, torch.nan])[:, None, None]
    assert criterion(broken, y).isnan()
    assert criterion.last.value.isnan().tolist() == [False, True]
    assert criterion(x, y).isfinite()


def test_components_need_a_projection(model):
    with pytest.raises(ValueError, match="components"):
        MISTCriterion(model, projection="none", components=8)


@pytest.mark.parametrize("objective", ["maximize", "minimize"])
@pytest.mark.parametrize("weight", [0.0, 2.0], ids=["alone", "pulled or pushed"])
@pytest.mark.parametrize("copies", [[0, 1, 0, 1], [0, 1, 1, 1, 0]])
def test_features_that_copy_others_share_the_gradient_of_what_they_copy(objective, weight, copies):
    torch.manual_seed(0)
    x = torch.randn(256, 2)
    y = x[:, :1] + torch.randn(256, 2)
    criterion = MISTCriterion(objective=objective, pull=weight, push=weight)

    def gradient(side):
        side = side.detach().requires_grad_()
        criterion(side, y).backward()
        return side.grad

    whole, shared = gradient(x), gradient(x[:, copies])
    assert shared.norm() < 2 * whole.norm()
    for feature in range(2):
        parts = shared[:, [i for i, copied in enumerate(copies) if copied == feature]]
        torch.testing.assert_close(parts, parts[:, :1].expand_as(parts), atol=1e-4, rtol=1e-3)

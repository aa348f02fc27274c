import pytest
import torch

from mist_loss import MISTCriterion
from mist_loss.estimate import predict
from mist_loss.model.frontend import standardize
from mist_loss.model.projection import METHODS, SLICES, LearnedProjection, directions, project, random_directions

FIXED = [method for method in METHODS if method != "sliced"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "d", "k"), [(64, 20, 8), (16, 2048, 8), (16, 2048, 64), (4, 9, 8)])
def test_shape_and_gradient(method, n, d, k):
    x = torch.randn(2, n, d, requires_grad=True)
    z = project(x, k, method)
    sets = 2 * SLICES if method == "sliced" else 2
    assert z.shape == (sets, n, min(k, n - 1) if method == "pca" else k)
    z.square().mean().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize(("n", "d"), [(64, 20), (16, 40)])
def test_pca_keeps_the_most_variance(n, d):
    x = torch.randn(1, n, d, dtype=torch.float64) @ torch.randn(d, d, dtype=torch.float64)
    z = project(x, 5, "pca")[0]
    singular = torch.linalg.svdvals(standardize(x)[0])[:5]
    torch.testing.assert_close(z.square().sum(0).sqrt(), singular)
    torch.testing.assert_close(z.T @ z, singular.square().diag(), atol=1e-8, rtol=0)


@pytest.mark.parametrize(("n", "d"), [(64, 20), (16, 40)])
def test_pca_drops_directions_without_variance(n, d):
    x = (torch.randn(1, n, 2) @ torch.randn(2, d)).requires_grad_()
    z = project(x, 6, "pca")
    assert (z.std(1)[0] > 0).tolist() == [True, True, False, False, False, False]
    (gradient,) = torch.autograd.grad(z.abs().sum(), x)
    assert gradient.abs().max() < 1e3


def test_random_directions_are_orthonormal_and_fixed():
    q = random_directions(torch.zeros(1, 4, 50, dtype=torch.float64), 8)
    torch.testing.assert_close(q.T @ q, torch.eye(8, dtype=torch.float64))
    torch.manual_seed(1)
    assert torch.equal(q, random_directions(torch.zeros(1, 9, 50, dtype=torch.float64), 8))


@pytest.mark.parametrize("method", FIXED)
def test_scale_and_shift_of_a_feature_do_not_matter(method):
    x = torch.randn(1, 32, 20, dtype=torch.float64)
    moved = (x + torch.linspace(-1, 1, 20, dtype=x.dtype)) * torch.logspace(-12, 12, 20, dtype=x.dtype)
    torch.testing.assert_close(project(x, 4, method).abs(), project(moved, 4, method).abs())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(method, dtype):
    x = (1e4 * torch.randn(1, 16, 100)).to(dtype).requires_grad_()
    z = project(x, 8, method)
    assert z.dtype == torch.float32
    z.square().mean().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("method", METHODS)
def test_constant_input_is_finite(method):
    x = torch.ones(1, 16, 100, requires_grad=True)
    project(x, 8, method).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(("n", "k"), [(4, 4), (16, 4), (32, 4), (64, 8), (256, 32), (512, 64), (4096, 64)])
def test_directions_fit_the_rows(n, k):
    assert directions(n, 64) == k


def test_slices_are_fresh_independent_draws_of_each_set():
    x = torch.randn(2, 32, 20)
    first, second = project(x, 3, "sliced"), project(x, 3, "sliced")
    assert not torch.allclose(first, second)
    assert not torch.allclose(first[0], first[1])
    z = standardize(x)  # the slices of a set stand together: each is a linear map of that set
    for part, source in ((first[:SLICES], z[0]), (first[SLICES:], z[1])):
        fitted = source @ torch.linalg.lstsq(source.expand(SLICES, -1, -1), part).solution
        torch.testing.assert_close(fitted, part, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dy", [3, 20])
def test_sliced_is_the_mean_over_slices(model, dy):
    x, y = torch.randn(2, 32, 20), torch.randn(2, 32, dy)
    torch.manual_seed(1)
    knots = predict(model, x, y, "sliced")
    torch.manual_seed(1)
    k = directions(32, 8)
    px = project(x, k, "sliced")
    py = project(y, k, "sliced") if dy > 8 else y.repeat_interleave(SLICES, 0)
    assert knots.shape == (2, 13)
    expected = torch.stack([model(px[:SLICES], py[:SLICES]).mean(0), model(px[SLICES:], py[SLICES:]).mean(0)])
    torch.testing.assert_close(knots, expected)


def gaussian(n: int, d: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two shared coordinates behind mixings into d dimensions, and noise in all of these: 1.43 nats without noise."""
    rho = torch.tensor([0.9, 0.7])
    u = torch.randn(n, 2)
    v = rho * u + (1 - rho**2).sqrt() * torch.randn(n, 2)
    return tuple(t @ torch.randn(2, d) + noise * torch.randn(n, d) for t in (u, v))  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore:x has")
@pytest.mark.parametrize(("n", "d"), [(16, 2048), (64, 512)])
def test_wide_codes_and_small_batches_are_estimated_not_imagined(n, d):
    criterion = MISTCriterion()
    truth = -0.5 * torch.log(1 - torch.tensor([0.9, 0.7]) ** 2).sum()
    values, shuffled = [], []
    for _ in range(6):
        x, y = gaussian(n, d, 0.1)
        values.append(-criterion(x, y))
        shuffled.append(-criterion(x, y[torch.randperm(n)]))
    assert (torch.stack(values).mean() - truth).abs() < 0.5
    assert torch.stack(shuffled).mean() < 0.5


@pytest.mark.filterwarnings("ignore:x has")
def test_projections_only_lower_the_information():
    x, y = gaussian(512, 256, 1.0)
    truth = -0.5 * torch.log(1 - torch.tensor([0.9, 0.7]) ** 2).sum()
    values = {method: -MISTCriterion(projection=method, components=8)(x, y).item() for method in METHODS}
    assert max(values.values()) < truth + 0.25
    assert values["random"] < 0.7 * values["pca"]
    assert values["sliced"] < 0.7 * values["pca"]


def test_components_also_reduce_what_the_model_could_read(model):
    x, y = torch.randn(16, 8), torch.randn(16, 2)
    loss = MISTCriterion(model, components=4)(x, y)
    torch.testing.assert_close(loss, MISTCriterion(model)(project(x[None], 4, "pca")[0], y))


@pytest.mark.parametrize(("shape", "method"), [((1, 16, 8), "umap"), ((16, 8), "pca")])
def test_what_cannot_be_projected(shape, method):
    with pytest.raises(ValueError, match=r"expected (method to be one of|x of shape \(b, n, d\))"):
        project(torch.zeros(shape), 4, method)


@pytest.mark.parametrize("components", [0, 9, 4.0, "4", True])
def test_bad_components(model, components):
    with pytest.raises(ValueError, match=f"components as a whole number between 1 and 8, .* got {components!r}"):
        MISTCriterion(model, components=components)


# learned


@pytest.mark.parametrize("objective", ["maximize", "minimize"])
def test_learned_projection_ascends_whatever_the_encoder_does(objective):
    torch.manual_seed(1)
    x, y = gaussian(256, 80, 1.0)
    projection = LearnedProjection(80, 80, 2)
    criterion = MISTCriterion(objective=objective, projection=projection)
    assert {name for name, _ in criterion.named_parameters()} == {"projection.x", "projection.y"}
    x.requires_grad_()
    optimizer = torch.optim.Adam(criterion.parameters(), lr=0.1)
    values = []
    for _ in range(10):
        optimizer.zero_grad()
        criterion(x, y).backward()
        optimizer.step()
        assert criterion.last is not None
        values.append(criterion.last.value.item())
    assert values[-1] > values[0] + 0.3
    # the rows themselves go where the objective says
    assert x.grad is not None
    step = 1e-2 * x.grad / x.grad.norm() * x.norm()
    before = criterion(x, y)
    assert criterion(x - step, y) < before


def test_learned_projection_leaves_the_value_alone(model):
    x, y = torch.randn(1, 32, 20), torch.randn(1, 32, 3)
    projection = LearnedProjection(20, 3, 4)
    for plain, reversed_ in zip(projection(x, y), projection(x, y, adversary=True), strict=True):
        assert torch.equal(plain, reversed_)
    assert [t.shape[2] for t in projection(x, y)] == [4, 3]


def test_learned_projection_refuses_other_sizes(model):
    criterion = MISTCriterion(model, projection=LearnedProjection(20, 3, 4))
    with pytest.raises(ValueError, match="expected x with the 20 dimensions of its LearnedProjection, got 21"):
        criterion(torch.randn(32, 21), torch.randn(32, 3))
    with pytest.raises(ValueError, match=r"k of LearnedProjection as a whole number between 1 and 8, .* got 9"):
        MISTCriterion(model, projection=LearnedProjection(20, 3, 9))
    with pytest.raises(ValueError, match="expected k as a whole number of at least 1, got 0"):
        LearnedProjection(20, 3, 0)

import pytest
import torch

from mist_loss.model.frontend import standardize
from mist_loss.model.projection import METHODS, project, random_directions


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "d", "k"), [(64, 20, 8), (16, 2048, 8), (16, 2048, 64), (4, 9, 8)])
def test_shape_and_gradient(method, n, d, k):
    x = torch.randn(2, n, d, requires_grad=True)
    z = project(x, k, method)
    assert z.shape == (2, n, min(k, n - 1) if method == "pca" else k)
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


@pytest.mark.parametrize("method", METHODS)
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

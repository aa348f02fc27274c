"""The push apart: worth nothing, and it sees what too few rows show of any kind of dependence."""

import math

import pytest
import torch

from mist_loss import MISTCriterion
from mist_loss.parting import BLOCK, _blocks, parting


def slope(x, y, direction, weight=1.0):
    """What the push says of a step of x along a direction."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(parting(x, y, weight), x)
    return (gradient * direction).sum().item()


def test_it_is_worth_nothing():
    x, y = torch.randn(2, 100, 3), torch.randn(2, 100, 2)
    assert parting(x, y + x[..., :2], 6.0) == 0


@pytest.mark.parametrize("d", [2, 4, 16])
def test_for_weakly_correlated_gaussians_it_is_half_to_three_quarters_as_steep_as_their_mutual_information(d):
    rho, n = 0.2, 20_000
    y, noise = torch.randn(1, n, d), torch.randn(1, n, d)
    x = rho * y + math.sqrt(1 - rho**2) * noise
    # d/drho of -d/2 log(1 - rho^2), along the path that keeps the variance of x
    exact = d * rho / (1 - rho**2)
    assert 0.5 < slope(x, y, y - rho / math.sqrt(1 - rho**2) * noise) / exact < 0.85


def test_independent_sides_are_left_alone_on_average():
    x, y = torch.randn(600, 64, 8), torch.randn(600, 64, 8)
    weight = 600.0  # the mean over sets, times their number
    outward = x * x.square().sum(2, keepdim=True)  # heavier tails
    each = torch.stack(
        [torch.tensor(slope(x[i : i + 60], y[i : i + 60], outward[i : i + 60], weight)) for i in range(0, 600, 60)]
    )
    assert each.mean().abs() < 3 * each.std() / math.sqrt(len(each))


@pytest.mark.parametrize("kind", ["signs", "spread", "label"])
def test_less_of_a_dependence_without_correlation_is_downhill(kind):
    n = 2000
    noise, v = torch.randn(1, n, 2), torch.randn(1, n, 2)
    if kind == "label":
        label = torch.randint(3, (1, n))
        y = torch.nn.functional.one_hot(label, 3).float()
        hidden = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [-1.0, -1.0]])[label]
    else:
        y = v
        hidden = v.abs() - v.abs().mean(1, keepdim=True) if kind == "signs" else noise * v.abs()
    x = noise + hidden
    assert slope(x, y, hidden) > 0


@pytest.mark.parametrize("n", [BLOCK, BLOCK + 1, 3 * BLOCK - 5])
def test_blocks_hold_every_row_and_keep_sets_apart(n):
    t = torch.arange(2 * n).reshape(2, n, 1)
    blocks = _blocks(t)
    k = math.ceil(n / BLOCK)
    assert blocks.shape == (2 * k, math.ceil(n / k), 1)
    assert set(blocks.flatten().tolist()) == set(range(2 * n))
    assert (blocks[:k] < n).all()


@pytest.mark.parametrize("label", [torch.arange(512) % 2, torch.arange(512) // 256])
def test_labels_that_come_in_turn_or_in_runs_are_seen_as_well(label):
    y = label[None, :, None].float()
    hidden = 2 * y - 1
    shuffled = torch.randperm(512)
    noise = torch.randn(1, 512, 1)
    in_order, out_of_order = (slope((noise + hidden)[:, o], y[:, o], hidden[:, o]) for o in (slice(None), shuffled))
    assert in_order == pytest.approx(out_of_order, rel=0.3)


def test_rows_in_another_order_and_features_of_another_scale_do_not_matter():
    x, y, order = torch.randn(1, 80, 3), torch.randn(1, 80, 2), torch.randperm(80)
    direction = torch.randn_like(x)
    expected = slope(x, y, direction)
    assert slope(x[:, order], y[:, order], direction[:, order]) == pytest.approx(expected, abs=1e-5)
    scale = torch.tensor([10.0, 0.1, 1.0])
    assert slope(x * scale + 5, y, direction * scale) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("x", [torch.zeros(1, 20, 2), torch.cat([torch.zeros(1, 20, 1), torch.randn(1, 20, 1)], 2)])
def test_constant_features_give_finite_gradients(x):
    assert math.isfinite(slope(x, torch.randn(1, 20, 2), torch.randn(1, 20, 2)))


@pytest.mark.parametrize("residue", [1e-7, 2e-6])
def test_what_varies_by_rounding_only_is_left_alone(residue):
    x = 5 + residue * torch.randn(1, 64, 4)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(parting(x, torch.randn(1, 64, 3), 6.0), x)
    assert gradient.abs().max() < 1


@pytest.mark.parametrize("positives", [0, 2, 40])
def test_a_rare_label_or_none_moves_no_code_by_rounding(positives):
    torch.manual_seed(0)
    label = torch.zeros(1024, 1)
    label[torch.randperm(1024)[:positives]] = 1
    z = (torch.randn(1024, 16) + 2 * label).requires_grad_()
    (gradient,) = torch.autograd.grad(parting(z[None], label[None], 3.0), z)
    assert gradient.norm() < 0.2
    assert (gradient.norm() > 0) == (positives > 0)


def test_codes_that_are_projected_get_none():
    x, y = torch.randn(600, 70, requires_grad=True), torch.randn(600, 3)
    criteria = [MISTCriterion(objective="minimize", push=push) for push in (0.0, 6.0)]
    with pytest.warns(UserWarning, match="dimensions"):
        gradients = [torch.autograd.grad(criterion(x, y), x)[0] for criterion in criteria]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("push", [-1.0, float("inf"), float("nan")])
def test_a_push_that_cannot_be_is_refused(push):
    with pytest.raises(ValueError, match="push"):
        MISTCriterion(push=push)


def test_maximising_knows_no_push():
    x, y = torch.randn(50, 3, requires_grad=True), torch.randn(50, 3)
    gradients = [torch.autograd.grad(MISTCriterion(push=push)(x, y), x)[0] for push in (0.0, 6.0)]
    torch.testing.assert_close(*gradients)

"""Features with levels that face each other: which are found, and what must not move them."""

import pytest
import torch

from mist_loss.model.features import facing_features
from mist_loss.model.frontend import ascending, gaussianize, standardize
from mist_loss.model.network import MIST, MISTConfig
from mist_loss.model.repeats import repeats
from mist_loss.model.statistics import summarize


def facing(x, y, pairs=8):
    x, y = standardize(x), standardize(y)
    agree_x, agree_y = (repeats(ascending(side).values)[0] for side in (x, y))
    return facing_features(agree_x, agree_y, gaussianize(x), gaussianize(y), pairs)


def rounded(sets=3, n=400, d=4, strength=0.9):
    """Whole numbers, of which those of a side are dependent in order: the first pair most."""
    torch.manual_seed(0)
    x = torch.randn(sets, n, d, dtype=torch.float64)
    rho = strength * 0.8 ** torch.arange(d)
    y = rho * x + (1 - rho**2).sqrt() * torch.randn_like(x)
    return (2 * x).round(), (2 * y).round()


def test_each_feature_faces_the_one_it_goes_with():
    x, y = rounded()
    u, v, rho = facing(x, y[..., [2, 0, 3, 1]])
    assert u.shape == v.shape == (3, 400, 4)
    assert (rho.diff(dim=1) < 0).all()
    for i in range(4):  # in the order of their strength, and not mixed with anything
        for found, side in ((u, x), (v, y)):
            assert len(found[0, :, i].unique()) == len(side[0, :, i].unique())
        assert torch.corrcoef(torch.stack([u[0, :, i], gaussianize(x)[0, :, i]]))[0, 1].abs() > 1 - 1e-6
    torch.testing.assert_close((u * v).mean(1), rho)
    torch.testing.assert_close(u.square().mean(1), torch.ones(3, 4, dtype=torch.float64))


def test_neither_order_nor_sign_nor_which_side_is_which_matters():
    x, y = rounded()
    u, v, rho = facing(x, y)
    columns, rows = torch.randperm(4), torch.randperm(400)
    moved = facing(-3 * x[..., columns] + 1, y)
    torch.testing.assert_close(moved[2], rho)
    torch.testing.assert_close((moved[0] * moved[1]).sum(1), (u * v).sum(1))
    torch.testing.assert_close((moved[0] ** 3 + moved[1] ** 3).sum(1), (u**3 + v**3).sum(1).abs())
    torch.testing.assert_close(facing(x[:, rows], y[:, rows])[0], u[:, rows])
    torch.testing.assert_close(facing(y, x), (v, u, rho))


def test_features_without_levels_are_left_to_the_canonical_frame():
    torch.manual_seed(0)
    x = torch.randn(2, 200, 3)
    y = x + 0.1 * torch.randn_like(x)
    assert not any(part.any() for part in facing(x, y))
    halves = torch.cat([x[..., :2], x[..., 2:].sign()], dim=2)
    u, _, rho = facing(halves, y)
    assert (rho[:, 0] > 0.7).all()  # the sign and what it is the sign of
    # two numbers are not shown, however much they say of each other
    assert (rho > 0).sum(1).tolist() == [1, 1]
    assert not u[:, :, 1:].any()


def test_holes_are_levels_and_halves_of_bfloat16_are_none():
    torch.manual_seed(0)
    x = torch.randn(1, 512, 2)
    assert not facing(x.bfloat16().float(), x.bfloat16().float())[2].any()
    assert facing(x * (torch.rand_like(x) < 0.75), x)[2].all()


@pytest.mark.parametrize("pairs", [1, 3])
def test_as_many_tokens_as_asked_for_at_most(pairs):
    x, y = rounded()
    without = summarize(x, y, 4096, 0, 0, 0, 0, 0, False, False, False, False).tokens
    tokens = summarize(x, y[..., :2], 4096, 0, 0, 0, pairs, 0, False, False, False, False).tokens
    marked = (tokens[..., -3:] == 1).all(-1).sum(1)
    assert marked.tolist() == [min(pairs, 2)] * 3
    assert not (without[..., -3:] == 1).all(-1).any()


def test_sets_without_levels_say_the_same_beside_others():
    torch.manual_seed(0)
    x, levels = torch.randn(1, 200, 3), torch.randn(1, 200, 3).round()
    alone = summarize(x, x, 4096, 0, 0, 0, 3, 0, False, False, False, False).tokens
    beside = summarize(
        torch.cat([x, levels]), torch.cat([x, levels]), 4096, 0, 0, 0, 3, 0, False, False, False, False
    ).tokens
    torch.testing.assert_close(alone[0], beside[0])


def test_they_carry_no_gradient():
    x, y = rounded()
    x = (x + 1e-3 * x.abs()).requires_grad_()
    assert not any(part.requires_grad for part in facing(x, y))


def test_numbers_are_read_alike_after_a_linear_map_with_them_and_without():
    torch.manual_seed(0)
    model = MIST(MISTConfig(width=16, set_width=8, row_pairs=2, pair_width=4)).double().eval()
    x = torch.randn(1, 800, 3, dtype=torch.float64)
    y = 0.8 * x + 0.6 * torch.randn_like(x)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    torch.testing.assert_close(model(x @ turn, y), model(x, y), atol=0.05, rtol=0)

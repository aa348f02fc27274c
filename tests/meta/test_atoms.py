"""Columns whose values repeat: their truths against sums over tables, and their samples against their tables."""

import math

import pytest
import torch

from mist_loss.meta import atoms
from mist_loss.meta.discrete import label_mi


def orthant(rho: float) -> float:
    """Chance that both of a normal pair are positive (Sheppard 1899)."""
    return 0.25 + math.asin(rho) / (2 * math.pi)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.9, 0.99])
def test_two_levels_follow_the_chance_of_an_orthant(rho):
    zero = torch.zeros(1, 1)
    both = orthant(rho)
    table = torch.tensor([[[both, 0.5 - both], [0.5 - both, both]]], dtype=torch.float64)
    torch.testing.assert_close(
        atoms.levels_mi(torch.tensor([rho]), zero, zero), label_mi(table), atol=2e-4, rtol=0, check_dtype=False
    )


def test_levels_against_a_finer_integration():
    """Table of cells by adaptive quadrature: five levels of a pair of correlation .9 share .6065 nats."""
    cuts = torch.tensor([[-1.2, -0.4, 0.4, 1.2]])
    mi = atoms.levels_mi(torch.tensor([0.9]), cuts, cuts)
    assert mi.item() == pytest.approx(0.6065, abs=1e-3)
    finer = atoms.levels_mi(torch.tensor([0.9]), cuts, cuts, points=2**16)
    assert mi.item() == pytest.approx(finer.item(), abs=1e-3)


def test_fine_levels_share_what_the_numbers_share():
    rho = torch.tensor([0.8])
    cuts = torch.linspace(-4, 4, 161)[None]
    assert atoms.levels_mi(rho, None, cuts).item() == pytest.approx(-0.5 * math.log(0.36), abs=2e-3)
    coarse = torch.tensor([[-0.5, 1.0]])
    one, two = atoms.levels_mi(rho, None, coarse), atoms.levels_mi(rho, coarse, coarse)
    assert two < one < -0.5 * math.log(0.36)


def test_levels_count_the_cuts_below():
    t = torch.tensor([[[-2.0, 0.1], [0.0, 5.0], [3.0, -5.0]]])
    cuts = torch.tensor([[[-1.0, 1.0], [0.0, 0.2]]])
    assert atoms.levels(t, cuts).tolist() == [[[0, 1], [1, 2], [2, 0]]]


def test_presence_keeps_its_margins_and_reaches_its_bounds():
    p, q = torch.tensor([0.3, 0.3, 0.3, 0.8]), torch.tensor([0.6, 0.6, 0.6, 0.7])
    table = atoms.presence(p, q, torch.tensor([0.0, 1.0, -1.0, -1.0]))
    torch.testing.assert_close(table.sum(-1)[:, 1], p)
    torch.testing.assert_close(table.sum(-2)[:, 1], q)
    torch.testing.assert_close(table[:, 1, 1], torch.tensor([0.18, 0.3, 0.0, 0.5]))


def test_present_pairs_follow_their_table_and_add_their_numbers():
    """A fifth of the entries set to zero on either side leaves .64 of the information."""
    torch.manual_seed(0)
    table = atoms.presence(torch.tensor([[0.8, 0.3]]), torch.tensor([[0.8, 0.4]]), torch.tensor([[0.0, 0.5]]))
    there_x, there_y, x, y, mi = atoms.present_pairs(table, torch.tensor([[0.99, 0.0]]), 40_000)
    for i in range(2):
        seen = torch.bincount((2 * there_x + there_y)[0, :, i].long(), minlength=4) / 40_000
        torch.testing.assert_close(seen.reshape(2, 2), table[0, i], atol=0.01, rtol=0)
    both = torch.corrcoef(torch.stack([x[0, :, 0], y[0, :, 0]]))
    assert both[0, 1].item() == pytest.approx(0.99, abs=1e-3)
    assert mi[0, 0, 0].item() == pytest.approx(0, abs=1e-6)
    assert mi[1, 0, 0].item() == pytest.approx(-0.5 * 0.64 * math.log(1 - 0.99**2), rel=1e-4)
    torch.testing.assert_close(mi[0, 0, 1], mi[1, 0, 1])
    torch.testing.assert_close(mi[0, 0, 1], label_mi(table[0])[1])


def test_tables_add_up():
    torch.manual_seed(0)
    joint = torch.tensor([[[[0.5, 0.0], [0.0, 0.5]], [[0.25, 0.25], [0.25, 0.25]]]])
    x, y, mi = atoms.tables(joint, 5000)
    assert (x[..., 0] == y[..., 0]).all()
    assert (x[..., 1] == y[..., 1]).float().mean().item() == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(mi, torch.tensor([math.log(2)], dtype=torch.float64))

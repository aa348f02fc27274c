"""Labels against tables whose entropies and mutual information are known."""

import math

import pytest
import torch

from mist_loss import labels
from mist_loss.meta.discrete import draw_labels, label_mi

LEVEL = 0.9


def columns(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., None].float(), y[..., None].float()


def test_a_side_without_repeated_rows_is_no_label():
    x, y = torch.randn(2, 200, 1), torch.randn(2, 200, 1).relu()  # zeros beside distinct values are no label
    most, counted = labels.known(x, y, LEVEL)
    assert most.isinf().all()
    assert counted.isnan().all()


def test_nothing_exceeds_the_entropy_of_a_label():
    x = torch.nn.functional.one_hot(torch.arange(200).remainder(4), 4).float()[None]
    most, counted = labels.known(x, torch.randn(1, 200, 2), LEVEL)
    assert most[0].item() == pytest.approx(math.log(4))
    assert math.log(4) - 0.03 < most[1] < most[2] <= math.log(4)
    assert counted.isnan().all()


@pytest.mark.parametrize(
    "joint",
    [
        [[0.7, 0.1], [0.1, 0.1]],  # skewed: what the network reads as the entropy of a side
        [[0.45, 0.05], [0.05, 0.45]],
        [[0.81, 0.09], [0.09, 0.01]],  # independent
        [[0.5, 0.0], [0.0, 0.5]],
        [[0.2, 0.1, 0.05], [0.0, 0.3, 0.05], [0.1, 0.0, 0.2]],
    ],
)
@pytest.mark.parametrize("n", [100, 1000])
def test_tables_are_counted(joint, n):
    torch.manual_seed(0)
    table = torch.tensor(joint).expand(400, -1, -1)
    mi = label_mi(table)[0].clamp_min(0).item()
    value, low, high = labels.known(*columns(*draw_labels(table, n)), LEVEL)[1]
    assert value.mean().item() == pytest.approx(mi, abs=0.6 / n + 0.05 * mi)
    assert ((low <= mi) & (mi <= high)).double().mean() > 0.83
    assert (low >= 0).all()


def test_a_table_with_few_rows_for_its_cells_is_left_to_the_network():
    torch.manual_seed(0)
    x, y = (torch.randint(20, (1, 400)) for _ in "xy")
    most, counted = labels.known(*columns(x, y), LEVEL)
    assert counted.isnan().all()
    assert (most <= math.log(20)).all()


@pytest.mark.parametrize(("k", "n"), [(20, 500), (100, 2000)])
@pytest.mark.parametrize("flipped", [0.0, 0.3])
def test_labels_that_determine_each_other_are_counted(k, n, flipped):
    x = torch.randint(k, (8, n))
    y = (x * 3 + torch.where(torch.rand(8, n) < flipped, k // 2, 0)) % k  # of one value another one, at times
    value, low, high = labels.known(*columns(x, (torch.randperm(k)[y])), LEVEL)[1]
    chance = torch.tensor([flipped, 1 - flipped])
    mi = math.log(k) + torch.special.xlogy(chance, chance).sum()
    assert value.mean().item() == pytest.approx(float(mi), abs=0.05)
    assert ((low <= mi + 0.01) & (mi <= high + 0.01)).double().mean() > 0.7


@pytest.mark.parametrize(("k", "flipped", "n"), [(100, 0.001, 10000), (20, 0.001, 1000)])
def test_a_few_rows_alone_in_their_cells_widen_the_interval(k, flipped, n):
    x = torch.randint(k, (40, n))
    y = torch.where(torch.rand(40, n) < flipped, torch.randint(k, (40, n)), x)
    wrong = flipped / k
    right = 1 - flipped + wrong
    mi = math.log(k) + right * math.log(right) + (k - 1) * wrong * math.log(wrong)
    value, low, high = labels.known(*columns(x, y), LEVEL)[1]
    counted = ~value.isnan()
    assert counted.double().mean() > 0.8
    assert ((low <= mi) & (mi <= high))[counted].double().mean() > 0.8
    assert (high - low)[counted].mean() < 0.2


def test_independent_labels_of_which_many_are_rare_are_not_called_dependent():
    weights = 1 / torch.arange(1, 101).double() ** 3
    x, y = (torch.multinomial(weights, 20 * 10000, replacement=True).view(20, -1) for _ in "xy")
    assert (labels.known(*columns(x, y), LEVEL)[1][1] <= 0.001).double().mean() > 0.8


def test_a_table_with_rows_alone_in_their_cells_is_not_counted():
    x = torch.randint(20, (1, 2000))
    y = torch.where(torch.rand(1, 2000) < 0.05, torch.randint(20, (1, 2000)), x)
    assert labels.known(*columns(x, y), LEVEL)[1].isnan().all()


def test_a_level_that_rounds_to_one():
    x = torch.arange(40).remainder(2).float()[None, :, None]
    assert labels.known(x, x, math.nextafter(1, 0))[1].isfinite().all()


@pytest.mark.parametrize("d", [1, 3])
def test_amounts_that_are_mostly_zero_are_no_labels(d):
    there = (torch.rand(4, 4000, 1) < 0.1).float()
    x, y = (there * torch.randn(4, 4000, d).exp() for _ in "xy")  # whether there is one says all, how much nothing
    assert labels.known(x, y, LEVEL)[1].isnan().all()


@pytest.mark.parametrize("copies", [8, 20])
def test_rows_of_numbers_that_come_again_are_no_table(copies):
    x, y = (torch.randn(1, 200, 2).repeat(1, copies, 1) for _ in "xy")
    assert labels.known(x, y, LEVEL)[1].isnan().all()


@pytest.mark.parametrize("width", [1, 20])
def test_standardised_indicators_and_whole_codes_are_names(width):
    x = torch.randint(20, (1, 1000))
    shown = torch.nn.functional.one_hot(x).double() if width > 1 else x[..., None].double()
    shown = (shown - shown.mean(1)) / shown.std(1) if width > 1 else shown
    assert labels.known(shown, shown, LEVEL)[1][0].item() == pytest.approx(math.log(20), abs=0.02)


@pytest.mark.parametrize(("n", "within"), [(1000, 0.12), (4000, 0.05)])
def test_the_entropy_of_a_label_of_which_not_all_values_have_come(n, within):
    torch.manual_seed(0)
    share = torch.arange(1, 100_001).double() ** -1.5
    share /= share.sum()
    truth = -(share * share.log()).sum().item()
    found = []
    for _ in range(40):
        x = torch.multinomial(share, n, replacement=True)[None, :, None].double()
        found.append(labels.known(x, torch.randn(1, n, 1), LEVEL)[0][:, 0])
    value, low, high = torch.stack(found).T
    assert value.mean().item() == pytest.approx(truth, abs=within)
    assert ((low <= truth) & (truth <= high)).double().mean() > 0.6  # none without the values that have not come

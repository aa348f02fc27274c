"""How often values and rows repeat: counts that are known, and what must not move them."""

import math

import pytest
import torch

from mist_loss.model.frontend import ascending, standardize
from mist_loss.model.repeats import repeat_summary, repeats, row_codes


def summarized(x, y):
    return repeat_summary(x, y, *(repeats(ascending(side).values) for side in (x, y)))


def test_repeats_are_those_that_counting_pairs_finds():
    torch.manual_seed(0)
    values = torch.randint(6, (5, 3, 40)).double()
    agree, top = repeats(values.sort(-1).values)
    pairs = (values[..., None] == values[..., None, :]).double().sum((2, 3)) - 40
    torch.testing.assert_close(agree, pairs / (40 * 39))
    counts = (values[..., None] == torch.arange(6)).double().sum(2).amax(-1)
    torch.testing.assert_close(top, counts / 40)


def test_numbers_that_never_repeat_have_none():
    torch.manual_seed(0)
    assert not summarized(torch.randn(2, 100, 3), torch.randn(2, 100, 2)).any()
    assert torch.isfinite(summarized(torch.randn(1, 2, 1), torch.zeros(1, 2, 1))).all()


@pytest.mark.parametrize("k", [2, 10])
def test_even_labels_agree_as_often_as_they_have_values(k):
    torch.manual_seed(0)
    x, y = torch.randint(k, (2, 1, 4000, 1)).float()
    summary = summarized(x, y)[0]
    assert float(summary[0]) == pytest.approx(2 * k**-0.25, rel=0.02)  # mean over the features of x and of y
    assert float(summary[-4]) == pytest.approx(2 * k**-0.25, rel=0.02)  # whole rows
    assert float(summary[-2]) == pytest.approx(k**-0.5, rel=0.02)  # both sides at once
    assert abs(float(summary[-1])) < 0.02  # no more often than independent labels
    assert float(summarized(x, x * 3 + 1)[0, -1]) == pytest.approx(math.log(k) / 4, rel=0.02)


def test_any_map_that_is_one_to_one_leaves_them_alone():
    torch.manual_seed(0)
    labels = torch.randint(20, (2, 500, 1))
    x, y = torch.nn.functional.one_hot(labels[..., 0], 20).float(), (labels + torch.randint(2, (2, 500, 1))) % 20
    before = summarized(x, y.float())
    other = torch.randperm(20)[y]  # other numbers for the same labels
    assert torch.equal(before[:, -4:], summarized(x, other.float())[:, -4:])
    assert torch.equal(before[:, -4:], summarized(labels.float(), y.float())[:, -4:])
    order = torch.randperm(500)
    torch.testing.assert_close(summarized(x[:, order], y[:, order].float()), before)
    torch.testing.assert_close(summarized(standardize(x), standardize(y.float())), before)


def test_sides_may_be_exchanged():
    torch.manual_seed(0)
    x, y = torch.randint(3, (2, 200, 4)).float(), torch.randn(2, 200, 2).round()
    torch.testing.assert_close(summarized(x, y), summarized(y, x))


def test_codes_of_rows_are_equal_where_rows_are():
    torch.manual_seed(0)
    x = torch.randint(2, (3, 400, 9)).float() - 0.5 * torch.randint(2, (3, 1, 9))
    for rows, codes in zip(x, row_codes(x), strict=True):
        same = (rows[:, None] == rows[None]).all(2)
        assert torch.equal(codes[:, None] == codes[None], same)


def test_zero_and_minus_zero_are_one_value():
    rows = torch.tensor([[[0.0, 1.0], [-0.0, 1.0], [0.0, 2.0]]])
    first, second, third = row_codes(rows)[0].tolist()
    assert first == second != third


def test_they_carry_no_gradient():
    x = torch.randn(1, 20, 2, requires_grad=True)
    assert not summarized(x, x).requires_grad


def test_they_compile_without_a_break():
    torch.manual_seed(0)
    x, y = torch.randint(3, (2, 1, 50, 2)).float()
    compiled = torch.compile(summarized, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), summarized(x, y))

"""Real rows with known nats: the labels that are shown share what the channel lets through."""

import math

import pytest
import torch

from mist_loss.flows.labelled import channel_pairs, separable_classes


def clusters(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three far clusters in two dimensions, and a fourth inside the third."""
    labels = torch.arange(n) % 4
    centre = torch.tensor([[-20.0, 0.0], [20.0, 0.0], [0.0, 20.0], [0.0, 20.0]])
    return centre[labels] + torch.randn(n, 2), labels


def test_only_classes_that_can_be_told_apart():
    rows, labels = clusters(400)
    assert separable_classes(rows, labels) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]


@pytest.mark.parametrize(("flip", "nats"), [(0.0, math.log(2)), (0.5, 0.0), (0.1, 0.3681)])
def test_pairs_follow_the_channel(flip, nats):
    x, y = clusters(4000), clusters(4000)
    problem = channel_pairs(x, y, [(0, 1)], 3, flip, 4000)
    assert problem.x.shape == problem.y.shape == (1, 4000, 6)
    assert problem.mi.item() == pytest.approx(3 * nats, abs=1e-3)
    sent, received = (side[0, :, ::2] > 0 for side in (problem.x, problem.y))
    assert (sent != received).double().mean(0).tolist() == pytest.approx([flip] * 3, abs=0.03)
    assert sent.double().mean(0).tolist() == pytest.approx([0.5] * 3, abs=0.03)
    agreement = torch.corrcoef(sent.T.double())
    torch.testing.assert_close(agreement, torch.eye(3).double(), atol=0.06, rtol=0)  # sources are independent
    assert len(torch.unique(problem.x[0, :, 0])) >= 1999  # no image twice before all of its class were shown


@pytest.mark.parametrize(("sources", "flip"), [(0, 0.1), (1, 2.0)])
def test_no_channel(sources, flip):
    with pytest.raises(ValueError, match=r"expected (sources|flip)"):
        channel_pairs(clusters(40), clusters(40), [(0, 1)], sources, flip, 10)


def test_no_classes():
    with pytest.raises(ValueError, match="pair of classes"):
        channel_pairs(clusters(40), clusters(40), [], 1, 0.0, 10)

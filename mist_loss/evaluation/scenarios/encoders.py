"""Fresh encoders, their weights from torch's generator."""

import math

from torch import nn

HIDDEN = 64  # of an MLP


def matrix(views: int, dims: int) -> nn.Linear:
    """A linear encoder without bias, of normal weights: codes of about the scale of the views."""
    encoder = nn.Linear(views, dims, bias=False)
    nn.init.normal_(encoder.weight, std=1 / math.sqrt(views))
    return encoder


def mlp(views: int, dims: int) -> nn.Module:
    """Two hidden layers of GELUs."""
    first, second, last = nn.Linear(views, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, dims)
    return nn.Sequential(first, nn.GELU(), second, nn.GELU(), last)

"""Refusing what no flow can follow: an invertible map makes no normal variable of one that takes a few values."""

import torch
from torch import Tensor

FEWEST_VALUES = 32  # of a column besides its commonest one; fewer are labels or counts


def require_no_labels(x: Tensor, name: str) -> None:
    """Refuse columns of labels or counts, which no principal direction need show; a ReLU's zeros may come often.

    Args:
        x: (n, d) rows as they are.
        name: of the side, for the message.

    Raises:
        ValueError: a column of few values.
    """
    for i, column in enumerate(x.T):
        values, counts = torch.unique(column, return_counts=True)
        others = len(column) - int(counts.max())  # rows of another value than the commonest
        if len(values) - 1 < min(FEWEST_VALUES, others / 2):
            raise ValueError(
                f"expected continuous values in {name}, got column {i} with {len(values)} values in {len(column)} "
                "rows: leave it out, or add noise of the size of a step, which can only lower the mutual information"
            )


def require_continuous(white: Tensor, name: str) -> None:
    """Refuse features that take few values, and rows that repeat.

    Args:
        white: (n, width), principal coordinates of unit variance.
        name: of the side, for the message.

    Raises:
        ValueError: a direction of few values.
    """
    for column in white.T:
        values, counts = torch.unique((column * 1e6).round(), return_counts=True)
        most = int(counts.max())
        if len(values) < 0.6 * len(column) or most > max(3, len(column) / 10):
            raise ValueError(
                f"expected continuous values in {name}, got a principal direction with {len(values)} values in "
                f"{len(column)} rows, one of them {most} times: drop repeated rows and discrete features, or add noise "
                "of the size of a step to them, which can only lower the mutual information"
            )

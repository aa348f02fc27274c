"""Real rows whose mutual information is known, for those who have labels: to see what an adaptation is worth.

A source is a fair bit and two classes: x shows a row of the class that the bit names, y one of the class that a binary
symmetric channel makes of the bit (Lee & Rhee 2024, arXiv 2410.10924). Where rows tell the two classes apart, k sources
side by side share k (ln 2 - H(flip)) nats.
"""

import itertools

import torch
from torch import Tensor

from mist_loss.meta.discrete import label_mi, symmetric_channel
from mist_loss.meta.families import Problem
from mist_loss.validation import check_count


def separable_classes(rows: Tensor, labels: Tensor, accuracy: float = 0.99) -> list[tuple[int, int]]:
    """The pairs of classes that least squares, fitted to every other row, tells apart on the remaining ones.

    Args:
        rows: (n, d).
        labels: (n,) integers.
        accuracy: share of the remaining rows, classes counting alike, that must be told right.
    """
    found = []
    for first, second in itertools.combinations(labels.unique().tolist(), 2):
        parts = [rows[labels == label].double() for label in (first, second)]
        if min(len(part) for part in parts) < 2 * rows.shape[1]:
            continue
        both = torch.cat([part[::2] for part in parts])
        design = torch.cat([both, torch.ones_like(both[:, :1])], dim=1)
        signs = torch.cat([torch.full((len(part[::2]), 1), s) for part, s in zip(parts, (-1.0, 1.0), strict=True)])
        weights = torch.linalg.lstsq(design, signs.to(design), driver="gelsd").solution
        right = [
            ((part[1::2] @ weights[:-1] + weights[-1]) * sign > 0).double().mean()
            for part, sign in zip(parts, (-1.0, 1.0), strict=True)
        ]
        if float(sum(right)) / 2 >= accuracy:
            found.append((first, second))
    return found


def channel_pairs(
    x: tuple[Tensor, Tensor],
    y: tuple[Tensor, Tensor],
    classes: list[tuple[int, int]],
    sources: int,
    flip: float,
    n: int,
) -> Problem:
    """One set of n pairs, each side ``sources`` rows wide, from torch's global generator.

    Args:
        x: rows (m, dx) and their labels (m,).
        y: other rows (l, dy), none of which is in x, and their labels.
        classes: pairs to choose the sources from.
        sources: how many stand side by side.
        flip: of the channel.
        n: rows of the set.

    Raises:
        ValueError: there is no pair of classes, a side lacks one, sources is no count, or flip no probability.
    """
    check_count("sources", sources)
    if not 0 <= flip <= 1:
        raise ValueError(f"expected flip as a probability, got {flip}")
    if not classes:
        raise ValueError("expected at least one pair of classes, got none: use more directions or other labels")
    parts: list[list[Tensor]] = [[], []]
    for chosen in torch.randint(len(classes), (sources,)).tolist():
        pair = torch.tensor(classes[chosen])
        sent = torch.randint(2, (n,))
        received = sent ^ (torch.rand(n) < flip).long()
        for part, (rows, labels), bits in zip(parts, (x, y), (sent, received), strict=True):
            picked = torch.empty(n, dtype=torch.long)
            for bit in (0, 1):
                places, own = torch.nonzero(bits == bit)[:, 0], torch.nonzero(labels == pair[bit])[:, 0]
                if not len(own):
                    raise ValueError(f"expected rows of class {int(pair[bit])} on both sides, got none on one of them")
                # in random order, none again before all were shown
                rounds = [own[torch.randperm(len(own))] for _ in range(-(-len(places) // len(own)))]
                picked[places] = torch.cat([*rounds, own[:0]])[: len(places)]
            part.append(rows[picked])
    joint = symmetric_channel(torch.full((1, 2), 0.5), torch.tensor([flip]))
    shown_x, shown_y = (torch.cat(part, dim=1)[None] for part in parts)
    return Problem(shown_x, shown_y, (sources * label_mi(joint)).float())

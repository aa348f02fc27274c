"""Classifier two-sample test: can a network tell two samples apart? (Lopez-Paz & Oquab 2017, arXiv 1610.06545)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mist_loss.seeding import seeded

HIDDEN, STEPS = 64, 150


def two_sample_auc(first: Tensor, second: Tensor, seed: int = 0) -> float:
    """Area under the ROC curve of a classifier on rows it was not trained on: 0.5 alike, 1 fully distinct.

    Each half of the rows is judged by a network trained on the other half; the mean of both areas is returned.

    Args:
        first: (n, d), at least four rows.
        second: (m, d), likewise.
        seed: of the networks and of the halves.
    """
    with seeded(seed, first.device), torch.enable_grad():
        rows = torch.cat([first, second]).float()
        rows = (rows - rows.mean(0)) / rows.std(0).clamp_min(1e-12)
        labels = torch.cat([torch.zeros(len(first)), torch.ones(len(second))]).to(rows)
        half = torch.empty_like(labels, dtype=torch.bool)
        for label in (0, 1):  # as many of either sample in both halves
            place = torch.nonzero(labels == label)[:, 0]
            half[place] = (torch.randperm(len(place)) % 2 == 0).to(half.device)
        areas = [_area(_scores(rows, labels, train), labels[~train]) for train in (half, ~half)]
    return sum(areas) / len(areas)


def _scores(rows: Tensor, labels: Tensor, train: Tensor) -> Tensor:
    d = rows.shape[1]
    network = nn.Sequential(
        nn.Linear(d, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 1)
    ).to(rows)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.1)
    for _ in range(STEPS):
        loss = F.binary_cross_entropy_with_logits(network(rows[train])[:, 0], labels[train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network(rows[~train]).detach()[:, 0]


def _area(scores: Tensor, labels: Tensor) -> float:
    """Share of pairs (a row of each label) that the scores put in order."""
    below, above = scores[labels == 0], scores[labels == 1].sort().values
    smaller = torch.searchsorted(above, below)
    equal = torch.searchsorted(above, below, right=True) - smaller
    return 1 - float((smaller + equal / 2).double().mean()) / len(above)

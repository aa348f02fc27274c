"""Attention blocks of the Set Transformer (Lee et al. 2019), normalised as in SetTransformer++ (Zhang et al. 2022)."""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

HEADS = 4  # of every attention, and of the pooling of a row's pairs
INDUCING = 16  # points
SEEDS = 4  # of a pooling


class MAB(nn.Module):
    """Multihead attention block: queries (b, q, h) read a set (b, k, h), then a feed-forward layer; -> (b, q, h)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm_query, self.norm_set, self.norm_out = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, queries: Tensor, items: Tensor) -> Tensor:
        """Attend from queries to items."""
        q = self.query(self.norm_query(queries))
        k, v = self.key_value(self.norm_set(items)).chunk(2, dim=-1)
        q, k, v = (rearrange(t, "b n (a c) -> b a n c", a=HEADS) for t in (q, k, v))
        mixed = rearrange(F.scaled_dot_product_attention(q, k, v), "b a n c -> b n (a c)")
        hidden = queries + self.out(mixed)
        return hidden + self.feed(self.norm_out(hidden))


class ISAB(nn.Module):
    """Self-attention of a set (b, n, h) through learned inducing points: linear in n; -> (b, n, h)."""

    def __init__(self, width: int):
        super().__init__()
        self.inducing = nn.Parameter(0.3 * torch.randn(INDUCING, width))
        self.gather, self.spread = MAB(width), MAB(width)

    def forward(self, items: Tensor) -> Tensor:
        """Let the inducing points read the set, and the set read them."""
        points = repeat(self.inducing, "i h -> b i h", b=len(items))
        return self.spread(items, self.gather(points, items))


class PMA(nn.Module):
    """Pooling by attention: learned seeds read a set (b, n, h) -> (b, SEEDS * h)."""

    def __init__(self, width: int):
        super().__init__()
        self.seeds = nn.Parameter(0.3 * torch.randn(SEEDS, width))
        self.read = MAB(width)

    def forward(self, items: Tensor) -> Tensor:
        """Pool the set."""
        return self.read(repeat(self.seeds, "s h -> b s h", b=len(items)), items).flatten(1)

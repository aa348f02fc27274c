"""What each part of the estimator is worth: variants trained with one budget, compared on fixed problems.

    python benchmarks/ablation.py --mixture broad --output runs/ablation        # trains what is missing, then the table
    torchrun --nproc_per_node 2 benchmarks/ablation.py --variants full ...      # one variant on two processes

Every variant is a run of ``mist_loss.training.pretrain`` that goes on where it was interrupted. The paper's families
depend column by column, x_i with y_i, so that they cannot tell whether a sample is read in the right frame; those of
``broad`` are mixed by random linear maps. So both mixtures are worth training on, and every variant is tested on both.
"""

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from mist_loss.meta.mixtures import MIXTURES
from mist_loss.model import quantiles, statistics
from mist_loss.model.frontend import Canonical, align
from mist_loss.model.network import MIST, MISTConfig
from mist_loss.model.statistics import Summary
from mist_loss.training.pretrain import PretrainConfig, pretrain
from mist_loss.training.stream import group

TEST_SEED = 77  # of the problems that the table is measured on; no run trains on them
BUCKETS = ((10, 100), (100, 300), (300, 513))
BROAD_BUCKETS = ((10, 100), (100, 300), (300, 1000), (1000, 4097))
PARTS = {"align": align, "gaussianize": statistics.gaussianize}


def columns(zx: Tensor, zy: Tensor) -> Canonical:
    """In place of ``align``: column i of x faces column i of y, as they came."""
    m = min(zx.shape[2], zy.shape[2])
    x, y = statistics.standard_score(zx), statistics.standard_score(zy)
    u, v = x[..., :m], y[..., :m]
    one = torch.ones(len(x), dtype=x.dtype, device=x.device)
    return Canonical(u, v, (u * v).mean(1), x, y, one, one)


def blind_to_statistics(summary: Summary) -> Summary:
    """Keep the rows and the shape of the sample (the last seven entries of the vector)."""
    shape = torch.cat([torch.zeros_like(summary.vector[:, :-7]), summary.vector[:, -7:]], dim=1)
    return summary._replace(vector=shape, tokens=torch.zeros_like(summary.tokens))


def blind_to_rows(summary: Summary) -> Summary:
    """Keep the statistics."""
    return summary._replace(u=summary.u * 0, v=summary.v * 0, radii=summary.radii * 0)


class Variant(NamedTuple):
    """What differs from the full estimator."""

    about: str
    front: Mapping[str, Callable] = MappingProxyType({})  # functions of mist_loss.model.statistics that are replaced
    independent: bool = True  # components, which need an aligned frame to start from
    see: Callable[[Summary], Summary] = lambda summary: summary
    pair_sum: bool = True
    share: float = 1.0  # of the steps


VARIANTS = {
    "full": Variant("all parts"),
    "no-gaussianize": Variant("features standardised, not Gaussianised", {"gaussianize": lambda x, _=None: x}),
    "no-align": Variant("neither whitened nor aligned: column i faces column i", {"align": columns}, independent=False),
    "no-front-end": Variant(
        "features standardised only", {"align": columns, "gaussianize": lambda x, _=None: x}, independent=False
    ),
    "no-independent": Variant("no independent components", independent=False),
    "no-statistics": Variant("rows only", see=blind_to_statistics),
    "no-rows": Variant("statistics only", see=blind_to_rows),
    "no-pair-sum": Variant("no term for each pair added to the estimate", pair_sum=False),
    "half": Variant("half the sets", share=0.5),
}


def architecture(variant: Variant) -> type[MIST]:
    """The estimator without the parts that the variant lacks."""

    class Ablated(MIST):
        def __init__(self, config=None):
            config = config or MISTConfig()
            super().__init__(config if variant.independent else dataclasses.replace(config, independent_pairs=0))
            if not variant.pair_sum:
                torch.nn.init.zeros_(self.pair_term.bias)
                self.pair_term.requires_grad_(False)

        def summarize(self, x, y):
            return variant.see(super().summarize(x, y))

    return Ablated


@torch.no_grad()
def errors(model: MIST, mixture: str, groups: int) -> tuple[Tensor, Tensor]:
    """Rows of each fixed problem of a mixture, and estimate minus truth in nats, (sets,) each."""
    rows, found = [], []
    for i in range(groups):
        x, y, mi = group(MIXTURES[mixture], TEST_SEED, i, 0, 0, torch.device("cpu"))
        rows.append(torch.full_like(mi, x.shape[1]))
        found.append(quantiles.mean(model.first_reading(x, y)) - mi)  # which is what was trained
    return torch.cat(rows), torch.cat(found)


def numbers(model: MIST, groups: int) -> list[float]:
    """A row of the table: mean squared errors on the paper's mixtures, mean absolute errors on ``broad``, by rows."""
    cells = []
    for mixture in ("paper-imd", "paper-oomd"):
        n, error = errors(model, mixture, groups)
        cells += [error[(n >= low) & (n < high)].square().mean().item() for low, high in BUCKETS]
    n, error = errors(model, "broad", groups)
    return cells + [error[(n >= low) & (n < high)].abs().mean().item() for low, high in BROAD_BUCKETS]


def main() -> None:
    """Train the variants, and print the table of those that are trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--mixture", choices=("paper", "broad"), default="paper", help="what is trained on")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--test-groups", type=int, default=150)
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    args = parser.parse_args()
    table = [
        "| variant | what differs | IMD 10-100 | 100-300 | 300-512 | OoMD 10-100 | 100-300 | 300-512 "
        "| broad 10-100 | 100-300 | 300-1000 | 1000-4096 |",
        "| --- " * 12 + "|",
    ]
    for name in args.variants:
        variant = VARIANTS[name]
        for function, replacement in (PARTS | dict(variant.front)).items():
            setattr(statistics, function, replacement)
        steps = round(args.steps * variant.share)
        config = PretrainConfig(mixture=args.mixture, steps=steps, warmup=max(1, steps // 8), average=0.99, seed=5)
        folder = args.output / f"{args.mixture}-{name}"
        weights = folder / "weights.safetensors"
        if not weights.exists():
            pretrain(config, folder, architecture=architecture(variant), validation_groups=24)
        trained = MIST.from_pretrained(weights)
        model = architecture(variant)(trained.config).eval()
        model.load_state_dict(trained.state_dict())
        cells = " | ".join(f"{number:.3g}" for number in numbers(model, args.test_groups))
        table.append(f"| {name} | {variant.about} | {cells} |")
    for function, part in PARTS.items():
        setattr(statistics, function, part)
    shipped = {"paper": "mist-paper", "broad": "mist-base"}[args.mixture]
    cells = " | ".join(f"{number:.3g}" for number in numbers(MIST.from_pretrained(shipped), args.test_groups))
    table.append(f"| {shipped} | all parts, the shipped weights | {cells} |")
    print("\n".join(table))


if __name__ == "__main__":
    main()

"""``mist-loss mean``: the mean of weights that were trained on from the same ones.

Such weights often lie in one valley of the loss, where their mean can be better than each (Izmailov et al. 2018,
arXiv 1803.05407; Wortsman et al. 2022, arXiv 2203.05482): what one run forgot, another kept.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from mist_loss import provenance
from mist_loss.model.network import MIST
from mist_loss.model.weights import OPTIONAL, TOLD, find, read_header, save_weights, sha256
from mist_loss.seeding import seeded

CONSTANTS = ("vector_mean", "vector_std", "token_mean", "token_std")  # of the normalisation, set once for all heirs


def mean(models: Mapping[str, MIST], shares: Mapping[str, float]) -> MIST:
    """The mean of some estimators, in eval mode. It reads whatever one of them reads; the others are widened.

    Second looks are averaged too, and best fitted again by ``mist-loss look``, since they were fitted to the readings
    of one. If one of the estimators has none, or one that is told less, that of the mean is as it begins.

    Args:
        models: by name, two or more.
        shares: by the same names, positive; only their ratios count.

    Raises:
        ValueError: fewer than two, a share that is no positive number, an adapted estimator, other sizes or
            other constants of normalisation: networks without a common ancestor have no mean.
    """
    if len(models) < 2:
        raise ValueError(f"expected two weights or more, got {len(models)}")
    for name, share in shares.items():
        if not (share > 0 and math.isfinite(share)):
            raise ValueError(f"expected shares as positive numbers, got {share} for {name}")
    if adapted := [name for name, model in models.items() if model.coordinates is not None]:
        raise ValueError(f"expected weights that are not adapted, got {adapted[0]}: adapt the mean")
    configs = [model.config for model in models.values()]
    read = {name: max(getattr(config, name) for config in configs) for name in (*OPTIONAL, *TOLD)}
    first, *others = models
    looks = [config.look_width for config in configs if config.balls]
    read["look_width"] = looks[0] if looks else configs[0].look_width  # without a look nothing is of this width
    config = replace(models[first].config, **read)
    for name in others:
        own = models[name].config
        if replace(own, **read) != config or (own.balls and own.look_width != config.look_width):
            raise ValueError(
                f"expected weights of the same sizes and ranges, got {first} and {name}: see mist-loss info"
            )
    with seeded(0):  # what a second look begins with is drawn
        states = {name: model.widened(config).state_dict() for name, model in models.items()}
    for name in others:
        # means of means have them but for rounding
        if not all(torch.allclose(states[name][key], states[first][key], rtol=1e-4) for key in CONSTANTS):
            raise ValueError(
                f"expected weights that were trained on from the same ones, got {first} and {name}, which normalise "
                "otherwise: networks that share no training have no mean"
            )
    total = sum(shares.values())
    averaged = {key: sum(shares[name] / total * state[key] for name, state in states.items()) for key in states[first]}
    if told_less := [name for name, model in models.items() if any(read[t] > getattr(model.config, t) for t in TOLD)]:
        begun = states[told_less[0]]
        averaged |= {key: tensor for key, tensor in begun.items() if key.startswith("second_look.")}
    result = models[first].widened(config)
    result.load_state_dict(averaged)
    return result.eval()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mist-loss mean``."""
    parser.add_argument(
        "weights", nargs="+", metavar="WEIGHTS[=SHARE]", help="names, files or folders, two or more; shares are even"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.safetensors", help="write the mean here")


def main(args: argparse.Namespace) -> int:
    """Read, average and write; the header says of what."""
    shares = dict(_parse(entry) for entry in args.weights)
    if len(shares) < len(args.weights):
        raise ValueError("expected every file once: give it a larger share instead")
    if args.output.suffix != ".safetensors":
        raise ValueError(f"expected --output as FILE.safetensors, got {args.output}")
    files = {name: find(name) for name in shares}
    result = mean({name: MIST.from_pretrained(file) for name, file in files.items()}, shares)
    parts = {
        name: {"share": shares[name], "sha256": sha256(file), "provenance": read_header(file)["provenance"]}
        for name, file in files.items()
    }
    origin = {"mean_of": parts, "commit": provenance.commit(), "torch": torch.__version__}
    print(f"{save_weights(result, args.output, origin)}  {args.output}")
    return 0


def _parse(entry: str) -> tuple[str, float]:
    name, sign, share = entry.rpartition("=")
    if not sign:
        return entry, 1.0
    try:
        return name, float(share)
    except ValueError:
        raise ValueError(f"expected WEIGHTS=SHARE, got {entry!r}: add =1 to a path that has an = of its own") from None

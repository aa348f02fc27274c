"""``mist-loss models``: the weights that come with the package."""

import argparse
import json

from mist_loss.model import weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mist-loss models``."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    """Print a line for each registered name, its file checked."""
    found = [weights.describe(name) for name in weights.REGISTRY]
    if args.json:
        print(json.dumps(found))
        return 0
    for model in found:
        rows, dims = (f"{low:,} to {high:,}" for low, high in (model["config"]["rows"], model["config"]["dims"]))
        print(f"{model['name']}: {rows} rows, {dims} dimensions a side, {model['parameters']:,} parameters")
    return 0

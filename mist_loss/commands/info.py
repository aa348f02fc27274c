"""``mist-loss info``: what a weight file is and where it comes from."""

import argparse
import json

from mist_loss.model import weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mist-loss info``."""
    parser.add_argument("name", metavar="NAME", help="as in `mist-loss models`, a file, a folder, or OWNER/NAME@COMMIT")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    """Check the file and print its header."""
    found = weights.describe(args.name)
    if args.json:
        print(json.dumps(found))
        return 0
    for key, value in found.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for inner, setting in value.items():
                print(f"  {inner}: {json.dumps(setting)}")
        else:
            print(f"{key}: {value}")
    return 0

"""``mist-loss estimate``: the mutual information between columns of a file."""

import argparse
import json
import sys
from pathlib import Path

import torch

from mist_loss import matrix, tables
from mist_loss.estimate import PROJECTIONS, estimate_mi


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mist-loss estimate``."""
    parser.add_argument(
        "file", type=Path, metavar="FILE", help=".csv with a header, .npy, .npz or .parquet; a row is an observation"
    )
    columns = (
        "columns, by comma: names (CSV, Parquet), array names (NPZ), positions (NPY); or a range of positions FIRST:END"
    )
    parser.add_argument("--x", metavar="COLS", help=columns)
    parser.add_argument("--y", metavar="COLS", help="likewise")
    parser.add_argument(
        "--matrix", action="store_true", help="every column of --x against every column of --y, by default all of both"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE.csv", help="write the matrix here, and a heat map beside it as FILE.png"
    )
    parser.add_argument("--level", type=float, default=0.9, help="probability of the interval (default 0.9)")
    parser.add_argument(
        "--model",
        default="mist-base",
        help="a name, .safetensors file, folder or OWNER/NAME@COMMIT (default mist-base)",
    )
    parser.add_argument(
        "--projection",
        choices=PROJECTIONS,
        default=None,
        help="for more dimensions than the model reads (default pca)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    """Estimate the mutual information between two groups of columns of a file, or pair by pair, and print it."""
    if args.matrix:
        return _matrix(args)
    if args.x is None or args.y is None or args.output is not None:
        raise ValueError("expected --x COLS and --y COLS; --output belongs to --matrix, which compares all columns")
    x, y = tables.read_columns(args.file, args.x, args.y)
    estimate = estimate_mi(x, y, args.level, args.model, args.projection or "pca")
    value, low, high = (t.item() for t in estimate)
    rows, dims = len(x), (x.shape[1], y.shape[1])
    if args.json:
        numbers = {"value": value, "low": low, "high": high, "unit": "nats", "level": args.level}
        print(json.dumps(numbers | {"rows": rows, "dims": dims, "model": args.model}))
    else:
        print(f"I(x; y) = {value:.3f} nats, {100 * args.level:g}% interval {low:.3f} to {high:.3f}")
        print(f"{rows} rows, {dims[0]} and {dims[1]} dimensions, model {args.model}")
    return 0


def _matrix(args: argparse.Namespace) -> int:
    if args.projection is not None:
        raise ValueError("--projection is for many dimensions at once: leave it out, --matrix reads a column at a time")
    if args.output is not None and (args.output.suffix != ".csv" or not args.output.absolute().parent.is_dir()):
        raise ValueError(f"expected --output to be a .csv file in an existing folder, got {str(args.output)!r}")
    if args.output is not None and args.output.resolve() == args.file.resolve():
        raise ValueError(f"expected --output to be another file than the one that is read, got {str(args.output)!r}")
    if args.output is not None:
        matrix.require_matplotlib()
    columns = tables.load(args.file)
    rows, x = tables.select(columns, args.x or ":")
    names, y = tables.select(columns, args.y or args.x or ":")
    for side, labels in ((x, rows), (y, names)):
        matrix.refuse_missing(side, [repr(label) for label in labels])
    estimate = matrix.mi_matrix(x, None if names == rows else y, args.level, args.model, matrix.show_progress)
    same = torch.tensor([[row == name for name in names] for row in rows])
    for part in estimate:
        part[same] = torch.nan  # as on the diagonal of a symmetric matrix
    if args.output is not None:
        for path in matrix.write(args.output, estimate.value, rows, names):
            print(f"wrote {path}", file=sys.stderr)
    if args.json:
        numbers: dict[str, object] = {"x": rows, "y": names, "unit": "nats", "level": args.level}
        cells = {
            k: [[None if c != c else c for c in line] for line in t.tolist()] for k, t in estimate._asdict().items()
        }
        print(json.dumps(numbers | {"rows": len(x), "model": args.model} | cells))
    elif args.output is None:
        print(matrix.to_csv(estimate.value, rows, names), end="")
    return 0

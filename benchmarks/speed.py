"""What an estimate costs, in times the cost of one pass of the shipped estimator, all in one run.

    python benchmarks/speed.py --compile

Needs ``pip install '.[peers]'``; --compile, which adds the estimator as torch.compile makes it, a C++ compiler and some
minutes. Peers keep the settings with which `mist_loss.evaluation.peers` measures their errors.
"""

import argparse
from functools import partial

import torch
from bmi.estimators import KSGEnsembleFirstEstimator
from timing import seconds

from mist_loss import MIST, estimate_mi, provenance
from mist_loss.evaluation.peers import PEERS
from mist_loss.meta.families import canonical_normal

BATCH = 64
QUICK = ("cca", "ksg")  # the others are timed once


def ratios(rows: int, d: int, peers: list[str], repeats: int, compiled: bool) -> dict[str, float]:
    """Times at one dimension, in times that of one pass."""
    torch.manual_seed(0)
    x, y, _ = canonical_normal(torch.full((BATCH, d), 0.6), rows, d, d)
    times = {}
    for name in ("mist-base", "mist-base, compiled")[: 1 + compiled]:
        model = MIST.from_pretrained("mist-base")
        if name != "mist-base":
            model.compile(fullgraph=True, dynamic=False)
        times[name] = seconds(partial(estimate_mi, x[0], y[0], model=model), 4 * repeats)
        batch = seconds(partial(estimate_mi, x, y, model=model), repeats)
        times[f"{name}, a set of {BATCH} in a batch"] = batch / BATCH
    for name in peers:
        times[name] = seconds(partial(PEERS[name](), x[0], y[0]), repeats if name in QUICK else 1)
    ksg = KSGEnsembleFirstEstimator()
    times["ksg with BMI's own settings"] = seconds(partial(ksg.estimate, x[0].numpy(), y[0].numpy()), repeats)
    return {name: time / times["mist-base"] for name, time in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 5, 16])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["cca", "ksg", "ksg-bootstrap", "mine"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compiled as well")
    args = parser.parse_args()
    columns = [ratios(args.rows, d, args.peers, args.repeats, args.compile) for d in args.dims]
    print(f"n = {args.rows}; {torch.get_num_threads()} threads; {provenance.machine()}\n")
    print(f"| estimator | {' | '.join(f'd = {d}' for d in args.dims)} |\n| --- |{' --- |' * len(args.dims)}")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(f'{column[name]:.3g}' for column in columns)} |")


if __name__ == "__main__":
    main()

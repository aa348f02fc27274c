"""``mist-loss bench``: estimators side by side on corpora with known MI; every estimate, tables and figures.

An estimate is kept as soon as it is made: a run that was killed goes on where it stopped, and a run with more
estimators makes only what is missing.
"""

from __future__ import annotations

import argparse
import math
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mist_loss import provenance
from mist_loss.estimate import LEVEL
from mist_loss.evaluation import corpora, everyday, metrics, tables
from mist_loss.evaluation.corpora import Corpus, Item
from mist_loss.evaluation.estimators import Named, Predictive, named
from mist_loss.evaluation.results import Result, Store
from mist_loss.files import write_text
from mist_loss.meta.mixtures import MIXTURES
from mist_loss.seeding import seeded
from mist_loss.training.stream import VERSION
from mist_loss.validation import MIN_ROWS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUITES = ("paper", "bmi", "scaling", "classes", "everyday", "fresh")
OBJECTIVE = "objective"  # a suite of losses, not of estimators
LOSSES = ("mist-base", "infonce", "vicreg", "club", "hsic", "dcor")
ENCODERS = ("digits", "fashion-pixels", "fashion-efficientnet")

# options by default, and what a quick run changes
DEFAULTS: dict[str, Any] = {
    "estimators": ("mist-base", "cca", "ksg"),
    "limit": None,
    "rows": (500, 1000),
    "repeats": 6,
    "encoders": ENCODERS,
    "mixtures": ("broader",),
}
FRESH = 2000  # sets of a training mixture
QUICK: dict[str, Any] = {"limit": 40, "rows": (500,), "encoders": ("digits",)}
_OPTIONS_OF = {"bmi": ("rows",), "scaling": ("repeats",), "classes": ("encoders",), "fresh": ("mixtures",)}


def estimate(corpus: str, item: Item, estimator: Named) -> Result:
    """One estimate with its time. What an estimator draws at random depends on the item alone.

    Args:
        corpus: its name in the results.
        item: a sample with known MI.
        estimator: whose ValueError or failed linear algebra counts as an estimate of NaN.
    """
    sample = corpora.digest(item)
    x, y = torch.from_numpy(item.x), torch.from_numpy(item.y)
    value = low = high = level = math.nan
    with seeded(int(sample, 16)):
        start = time.perf_counter()
        try:
            found = estimator.estimate(x, y)
            value, low, high = float(found.value), float(found.low), float(found.high)
        except (ValueError, ArithmeticError, np.linalg.LinAlgError, torch.linalg.LinAlgError):
            found = None
        seconds = time.perf_counter() - start
    if isinstance(found, Predictive):
        level = metrics.level(found.knots.numpy(), item.mi)
    about = (corpus, item.name, item.held_out, item.rows, *item.dims, item.mi)
    return Result(*about, estimator.name, value, low, high, level, seconds, estimator.weights, sample)


def run(loaded: Mapping[str, Sequence[Item]], estimators: Sequence[Named], store: Store) -> list[Result]:
    """Makes the estimates that the store lacks, each estimator after one that only warms up.

    Args:
        loaded: corpus to items.
        estimators: each a name once.
        store: keeps each estimate as it is made; results of the same estimators with other weights are dropped.

    Returns:
        the results asked for: by estimator, by corpus, in the order of the items.
    """
    hashes = {estimator.name: estimator.weights for estimator in estimators}
    store.forget(lambda result: hashes.get(result.estimator, result.weights) != result.weights)
    results = []
    for estimator in estimators:
        keyed = {
            (corpus, corpora.digest(item), estimator.name, estimator.weights): item
            for corpus, items in loaded.items()
            for item in items
        }
        missing = {key: item for key, item in keyed.items() if key not in store.results}
        for number, (key, item) in enumerate(_progress(missing.items(), estimator.name, len(missing))):
            if number == 0:
                estimate(key[0], item, estimator)
            store.add(estimate(key[0], item, estimator))
        results += [store.results[key] for key in keyed]
    return results


def suite_corpora(suite: str, seed: int, options: Mapping[str, Any], cache: Path) -> dict[str, Corpus]:
    """The corpora of a suite by the names they have in the results.

    Args:
        suite: one of `SUITES`.
        seed: of the samples.
        options: ``rows`` (bmi), ``repeats`` (scaling), ``encoders`` (classes), ``mixtures`` (fresh), see `DEFAULTS`.
        cache: folder where embeddings are kept.
    """
    if suite == "paper":
        return {group: _paper(group, seed) for group in corpora.PAPER_GRID}
    if suite == "bmi":
        return {f"bmi40-rows{n}": _bmi(n, seed) for n in options["rows"]}
    if suite == "scaling":
        return _scaling(options["repeats"], seed)
    if suite == "everyday":
        return {"everyday": _everyday(seed)}
    if suite == "fresh":
        return {f"fresh-{mixture}": _fresh(mixture, seed) for mixture in options["mixtures"]}
    return {f"classes-{encoder}": _classes(encoder, seed, cache) for encoder in options["encoders"]}


def objective_suite(seed: int, losses: Sequence[str], quick: bool, output: Path) -> str:
    """Runs the objective suite, writes its CSV, Markdown and figures, and returns the Markdown.

    Args:
        seed: of encoders and batches.
        losses: see `mist_loss.evaluation.contenders.named`.
        quick: three scenarios of a few steps.
        output: folder of the results; a folder for each seed is made in it.
    """
    from mist_loss.evaluation import bars, contenders, curves, objective

    folder = output / f"{OBJECTIVE}-seed{seed}"
    rows = objective.run(seed, [contenders.named(name) for name in losses], folder / "results.csv", quick)
    name = f"{OBJECTIVE}-quick" if quick else OBJECTIVE
    words = ["mist-loss", "bench", "--suite", OBJECTIVE, "--seed", str(seed), "--estimators", ",".join(losses)]
    command = shlex.join(words + (["--quick"] if quick else []))
    return _write(folder, name, OBJECTIVE, command, "checkpoint", bars.report(rows), curves.draw(rows))


def write_report(folder: Path, name: str, suite: str, results: Sequence[Result], command: str) -> str:
    """Writes ``{name}.md`` and the figures it shows, ``{name}-*.png``, and returns the Markdown."""
    from mist_loss.evaluation import figures

    return _write(folder, name, suite, command, "estimate", tables.report(suite, results), figures.draw(suite, results))


def _write(
    folder: Path, name: str, suite: str, command: str, kept: str, report: str, drawn: Mapping[str, Figure]
) -> str:
    from mist_loss.evaluation import figures

    for figure_name, figure in drawn.items():
        figures.save(figure, folder / f"{name}-{figure_name}.png")
    versions = ", ".join(f"{package} {version}" for package, version in provenance.versions().items())
    text = (
        f"# {suite}\n\n```sh\n{command}\n```\n\n"
        f"Commit {provenance.commit()}; {versions}; {provenance.machine()}.\n"
        f"MI and its errors in nats, intervals of {LEVEL:.0%}. Every {kept} is in results.csv.\n\n"
        + report
        + "".join(f"\n![{figure_name}]({name}-{figure_name}.png)\n" for figure_name in drawn)
    )
    write_text(folder / f"{name}.md", text)
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``mist-loss bench``."""
    parser.add_argument(
        "--suite",
        choices=(*SUITES, OBJECTIVE, "all"),
        default="all",
        help="paper: the test grid of the MIST paper; bmi: the forty tasks of BMI; scaling: error against rows and "
        "against dimensions; classes: embeddings of images; everyday: plain problems of many kinds; fresh: sets of a "
        "training mixture; all: these; objective: losses while encoders are trained, beside the truth (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--estimators",
        type=_words,
        metavar="NAME,...",
        help="shipped weights, .safetensors files, peers such as cca, ksg or mine; NAME@50 averages weights over 50 "
        "resamples of the rows. The first is the measure of time "
        f"(default: {','.join(DEFAULTS['estimators'])}). Of the "
        "objective suite: weights, NAME@q0.1 for their conservative quantile, NAME@pull0 or NAME@push0 for another "
        f"pull or push, others (default: {','.join(LOSSES)})",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the test samples (default: %(default)s)")
    parser.add_argument(
        "--limit",
        type=int,
        metavar="K",
        help="at most K items of a corpus, evenly spread, for slow estimators (default: all)",
    )
    parser.add_argument(
        "--rows", type=_row_counts, metavar="N,N,...", help="row counts of the bmi suite (default: 500,1000)"
    )
    parser.add_argument(
        "--repeats", type=int, metavar="K", help="problems for each point of the scaling suite (default: 6)"
    )
    parser.add_argument(
        "--encoders",
        type=_words,
        metavar="NAME,...",
        help=f"embeddings of the classes suite (default: {','.join(ENCODERS)})",
    )
    parser.add_argument(
        "--mixtures",
        type=_words,
        metavar="NAME,...",
        help=f"mixtures of the fresh suite (default: {','.join(DEFAULTS['mixtures'])})",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two minutes: --limit 40 --rows 500 --encoders digits, where these are not given; three short problems of "
        "the objective suite",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("bench"),
        metavar="DIR",
        help="folder of the results, one folder for each suite and seed, and of the samples (default: %(default)s)",
    )


def main(args: argparse.Namespace) -> int:
    """Runs ``mist-loss bench`` and prints its tables; returns the exit status.

    Raises:
        ValueError: an option does not fit the suite, or a name is not known.
        FileNotFoundError: weights are missing.
        ModuleNotFoundError: a library is missing.
    """
    from mist_loss.evaluation import figures  # noqa: F401 - a long run must not end in a missing library

    _check(args)
    if args.suite == OBJECTIVE:
        print(objective_suite(args.seed, tuple(dict.fromkeys(args.estimators or LOSSES)), args.quick, args.output))
        return 0
    given = {name: getattr(args, name) for name in DEFAULTS if getattr(args, name) is not None}
    options = DEFAULTS | (QUICK if args.quick else {}) | given
    estimators = [named(name) for name in dict.fromkeys(options["estimators"])]
    cache = args.output / "corpora"
    for suite in SUITES if args.suite == "all" else (args.suite,):
        planned = suite_corpora(suite, args.seed, options, cache)
        loaded = {
            name: corpora.items(corpus, cache, options["limit"])
            for name, corpus in _progress(planned.items(), f"samples of {suite}", len(planned))
        }
        folder = args.output / f"{suite}-seed{args.seed}"
        results = run(loaded, estimators, Store(folder / "results.csv"))
        name = suite if options["limit"] is None else f"{suite}-limit{options['limit']}"
        print(write_report(folder, name, suite, results, command(suite, args.seed, options)))
    return 0


def command(suite: str, seed: int, options: Mapping[str, Any]) -> str:
    """The command that repeats the results of a suite, with every option that bears on them."""
    words = ["mist-loss", "bench", "--suite", suite, "--seed", str(seed)]
    for name in ("estimators", "limit", *_OPTIONS_OF.get(suite, ())):
        value = options[name]
        if value is not None:
            words += [f"--{name}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)


def _check(args: argparse.Namespace) -> None:
    for suite, options in _OPTIONS_OF.items():
        for option in options:
            if getattr(args, option) is not None and args.suite not in (suite, "all"):
                raise ValueError(f"--{option} belongs to --suite {suite}, got --suite {args.suite}: leave it out")
    if args.suite == OBJECTIVE and args.limit is not None:
        raise ValueError(
            "--limit belongs to the suites of estimates, got --suite objective: leave it out, or use --quick"
        )
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"expected --seed in 0 to 2^63 - 1, got {args.seed}")
    for option in ("limit", "repeats"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ValueError(f"expected --{option} of 1 or more, got {value}")
    curve = max(len(corpora.SCALING_ROWS), len(corpora.SCALING_DIMS))
    if args.suite in ("scaling", "all") and args.limit is not None and args.limit < curve:
        raise ValueError(
            f"expected --limit of {curve} or more, got {args.limit}: the points of a curve of the scaling suite belong "
            "together; raise it, or name another suite"
        )
    for option, known in (("encoders", ENCODERS), ("mixtures", MIXTURES)):
        unknown = set(getattr(args, option) or ()) - set(known)
        if unknown:
            raise ValueError(f"expected --{option} among {', '.join(known)}, got {', '.join(sorted(unknown))}")


def _paper(group: str, seed: int) -> Corpus:
    return Corpus(
        f"paper-{group}-seed{seed}",
        {"corpus": f"paper-{group}", "seed": seed},
        corpora.grid_size(group),
        lambda places: corpora.paper_grid(group, seed, places),
    )


def _bmi(n: int, seed: int) -> Corpus:
    return Corpus(
        f"bmi40-rows{n}-seed{seed}",
        {"corpus": "bmi40", "rows": n, "seed": seed},
        40,
        lambda places: corpora.bmi40(n, seed, places),
    )


def _scaling(repeats: int, seed: int) -> dict[str, Corpus]:
    kinds = {
        "scaling-rows": (corpora.scaling_rows, len(corpora.SCALING_ROWS)),
        "scaling-dims": (corpora.scaling_dims, len(corpora.SCALING_DIMS)),
    }
    return {
        name: Corpus(
            f"{name}-repeats{repeats}-seed{seed}",
            {"corpus": name, "repeats": repeats, "seed": seed},
            repeats * points,
            lambda places, build=build: build(seed, places),  # type: ignore[misc]
            points,
        )
        for name, (build, points) in kinds.items()
    }


def _everyday(seed: int) -> Corpus:
    names = [case.name for case in everyday.CASES]
    shape = {"cases": names, "rows": [*everyday.ROWS], "repeats": everyday.REPEATS, "version": everyday.VERSION}
    request = {"corpus": "everyday", "seed": seed, **shape}
    return Corpus(f"everyday-seed{seed}", request, everyday.size(), lambda places: everyday.everyday(seed, places))


def _fresh(mixture: str, seed: int) -> Corpus:
    source = MIXTURES[mixture]
    request = {  # a mixture changes with its weights, its shapes and what its families draw
        "corpus": f"fresh-{mixture}",
        "families": {name: weight for name, (weight, _) in source.families.items()},
        "shapes": [*source.rows, *source.dims, source.equal, *source.equal_dims, source.wide, source.small],
        "stream": VERSION,
        "seed": seed,
    }
    return Corpus(f"fresh-{mixture}-seed{seed}", request, FRESH, lambda places: corpora.fresh(mixture, seed, places))


def _classes(encoder: str, seed: int, cache: Path) -> Corpus:
    from mist_loss.evaluation import embeddings

    def build(places: Sequence[int]) -> list[Item]:
        items = list(embeddings.class_pairs(seed, embeddings.ENCODERS[encoder](cache)))
        return [items[place] for place in places]

    size = len(embeddings.SOURCES) * len(embeddings.FLIPS)
    return Corpus(f"classes-{encoder}-seed{seed}", {"corpus": f"classes-{encoder}", "seed": seed}, size, build)


def _progress(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ModuleNotFoundError('a progress bar needs tqdm: pip install "mist-loss[bmi]"') from error
    return tqdm(items, desc=description, total=total, dynamic_ncols=True)


def _words(text: str) -> tuple[str, ...]:
    words = tuple(text.split(","))
    if not all(words):
        raise argparse.ArgumentTypeError(f"expected names separated by commas, got {text!r}")
    return words


def _row_counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < MIN_ROWS:
        raise argparse.ArgumentTypeError(f"expected row counts of {MIN_ROWS} or more, such as 500,1000, got {text!r}")
    return counts

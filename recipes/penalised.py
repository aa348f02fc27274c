"""Training against a penalty, and its ending: what disentangle.py and invariance.py share."""

import argparse
import copy
import json
from collections.abc import Callable, Iterable
from statistics import mean
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from common import (
    add_compare_flags,
    add_flags,
    amp,
    batches,
    load_checkpoint,
    neural_probe,
    number,
    report,
    save_checkpoint,
    save_figure,
    save_tensors,
    seconds,
    set_rate,
    settings,
    steps_an_epoch,
    sweep,
    table,
    write_metrics,
)
from factors import Factors, Part, draw
from mist_loss.files import write_text
from penalties import TRIED, Fitted, Penalty

WARM_UP = 0.5  # share of the training over which the weight grows: codes first learn what to say
TUNING_SEEDS = (0, 1, 2)  # of --tune; the tables are over others
FOLDS = 5  # of the contents, for a probe of a style that was not painted
TOLERANCE = 1.0  # points of accuracy that a penalty may cost

Losses = Callable[[Any, Part], tuple[Tensor, Tensor, Tensor, Tensor]]


class Study(NamedTuple):
    """A recipe as `carry_out` needs it.

    run: trains and judges by flags, and returns the result. weights: of every penalty. columns: of the tables,
    titles to keys of a result. leaks, tasks: keys of what should be small, and of accuracies that should not suffer.
    """

    run: Callable[[argparse.Namespace], dict]
    weights: dict[str, float]
    columns: dict[str, str]
    leaks: tuple[str, ...]
    tasks: tuple[str, ...]


def add_penalty_flags(parser: argparse.ArgumentParser, name: str, penalties: Iterable[str]) -> None:
    """The flags of both recipes."""
    add_flags(parser, name, epochs=60, batch_size=256, lr=3e-3)
    add_compare_flags(parser)
    parser.add_argument("--tune", action="store_true", help="a few weights of every penalty on seeds 0 to 2, as tables")
    parser.add_argument("--penalty", choices=list(penalties), default="mist")
    parser.add_argument("--weight", type=number(0), default=None, help="of the penalty (default: see WEIGHTS)")
    parser.add_argument("--noise", type=number(0), default=0.5, help="standard deviation of the noise on the codes")
    parser.add_argument("--rebuild", type=number(0), default=50.0, help="weight of the squared error")


def fit(
    args: argparse.Namespace, factors: Factors, model: nn.Module, penalty: Penalty, losses: Losses
) -> tuple[list[dict], float]:
    """Train in place, from a checkpoint if asked; returns a row of numbers for each epoch and the seconds a step.

    `losses` gives, for a model and a batch, the cross entropy, the squared error, and the two codes, (b, dx) and
    (b, dy), that the penalty is to pull apart.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=1e-4)
    optimizers = [optimizer, *([penalty.optimizer] if isinstance(penalty, Fitted) else [])]
    both = nn.ModuleDict({"model": model, "penalty": penalty})
    notes = load_checkpoint(args, both, optimizers) or {"history": [], "seconds": 0.0}
    history, spent = notes["history"], notes["seconds"]
    if args.compile:
        model.compile()
    n = len(factors.train.images)
    per_epoch = steps_an_epoch(n, args.batch_size)
    for epoch in tqdm(range(len(history), args.epochs), desc=args.penalty, unit="epoch", disable=None):
        model.train()
        clock, rows = seconds(args.device), []
        for i, index in enumerate(batches(n, args.batch_size)):
            progress = (epoch + i / per_epoch) / args.epochs
            set_rate(optimizer, args.lr, progress)
            part = draw(factors.train, index, args.device)
            with amp(args):
                task, rebuilt, x, y = losses(model, part)
            x, y = x.float(), y.float()
            penalty.learn(x, y, part.content, part.style)
            shared = penalty(x, y, part.content, part.style)
            optimizer.zero_grad()
            weight = args.weight * min(1.0, progress / WARM_UP)
            (args.rebuild * rebuilt + task + weight * shared).backward()
            optimizer.step()
            rows.append(torch.stack([task, rebuilt, shared]).detach())
        spent += seconds(args.device) - clock
        values = torch.stack(rows).mean(0).tolist()
        history.append({"epoch": epoch + 1} | dict(zip(("task", "rebuilt", "penalty"), values, strict=True)))
        if (epoch + 1) % max(1, args.epochs // 20) == 0 or epoch + 1 == args.epochs:
            save_checkpoint(args, both, optimizers, {"history": history, "seconds": spent})
    torch.manual_seed(args.seed)  # so that a resumed run is judged on the same images
    return history, spent / (args.epochs * per_epoch)


def style_leak(code: Tensor, seen: Part, fresh_code: Tensor, fresh: Part, painted: bool) -> float:
    """Points above chance at which a fresh probe reads the style from codes (n, d) of the images seen in training, on
    those (m, d) of held-out ones.

    Of styles that were not painted a probe is asked about contents it has not seen, of both parts, FOLDS times until
    all were asked about: each has every style once, so that who knows the pairs in training knows which are left, and
    would guess those that are not.
    """
    if painted:
        return neural_probe(code, seen.style, fresh_code, fresh.style) - chance(fresh.style)
    codes = torch.cat([code, fresh_code])
    content, style = (torch.cat([getattr(part, name) for part in (seen, fresh)]) for name in ("content", "style"))
    found = []
    folds = min(FOLDS, int(content.max()) + 1)
    for fold in range(folds):
        asked = content % folds == fold
        found.append(neural_probe(codes[~asked], style[~asked], codes[asked], style[asked]) - chance(style[asked]))
    return mean(found)


def chance(labels: Tensor) -> float:
    """Accuracy in percent of always saying the commonest of these labels (n,)."""
    return 100 * labels.bincount().max().item() / len(labels)


def finish(
    args: argparse.Namespace,
    model: nn.Module,
    history: list[dict],
    step: float,
    scores: dict,
    figure: Figure,
    name: str,
) -> dict:
    """Write the run's folder; returns the result."""
    result = {"config": settings(args), "step_ms": 1000 * step} | scores
    save_tensors(args.output / "model.safetensors", model.state_dict(), settings(args))
    write_metrics(args.output / "metrics.csv", history)
    save_figure(figure, args.output / name)
    write_text(args.output / "result.json", json.dumps(result, indent=2))
    return result


def carry_out(args: argparse.Namespace, study: Study) -> dict | None:
    """Run one penalty and return its result, or print the tables of --compare or --tune."""

    def weighed(penalty: str, **values: object) -> argparse.Namespace:
        return changed(args, weight=study.weights[penalty] if args.weight is None else args.weight, **values)

    if args.tune:
        tune(args, study)
    elif args.compare:
        results = [
            result
            for seed in args.seeds
            for penalty in study.weights
            for result in sweep(study.run, weighed(penalty, seeds=[seed]), "penalty", [penalty])
        ]
        report(table(results, "penalty", study.columns), args)
    else:
        return study.run(weighed(args.penalty))
    return None


def tune(args: argparse.Namespace, study: Study) -> None:
    """Print, for every penalty, a table over the weights of TRIED and which of them `choose` takes."""
    args = changed(args, seeds=list(TUNING_SEEDS))
    plain = sweep(study.run, changed(args, weight=0.0), "penalty", ["none"])
    for penalty in study.weights:
        if penalty == "none":
            continue
        results = sweep(
            study.run, changed(args, penalty=penalty, output=args.output / penalty), "weight", TRIED[penalty]
        )
        print(f"\n{penalty}\n{table([*plain, *results], 'weight', study.columns)}")
        print(f"chosen: {choose(results, plain, study.leaks, study.tasks):g}")


def choose(results: list[dict], plain: list[dict], leaks: tuple[str, ...], tasks: tuple[str, ...]) -> float:
    """The weight that leaks least in sum among those with every task within TOLERANCE points of the runs without one.

    Of penalties that cost more at every weight, the one that costs least. All numbers are means over the seeds.
    """

    def average(key: str, weight: float | None = None) -> float:
        rows = plain if weight is None else [r for r in results if r["config"]["weight"] == weight]
        return mean(row[key] for row in rows)

    def cost(weight: float) -> float:
        return max(average(task) - average(task, weight) for task in tasks)

    weights = list(dict.fromkeys(result["config"]["weight"] for result in results))
    good = [weight for weight in weights if cost(weight) <= TOLERANCE]
    return min(good, key=lambda w: sum(average(leak, w) for leak in leaks)) if good else min(weights, key=cost)


def changed(args: argparse.Namespace, **values: object) -> argparse.Namespace:
    """A copy with other values."""
    args = copy.copy(args)
    vars(args).update(values)
    return args

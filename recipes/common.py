"""What the recipes share: flags, the folder of a run with checkpoints to go on from, probes, tables over seeds."""

import argparse
import copy
import csv
import io
import json
import os
import random
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from mist_loss.files import replacing, write_text

CHECKPOINT = "checkpoint.safetensors"
VERSION = 2  # of what the same settings compute: one more than before where that changes
LARGEST_SEED = 2**32 - 1  # NumPy takes no larger one
NOT_SETTINGS = ("resume", "compare", "tune", "seeds", "output", "device")  # they do not change what a run computes


def add_flags(parser: argparse.ArgumentParser, name: str, epochs: int, batch_size: int, lr: float) -> None:
    """The flags that every recipe has."""
    parser.add_argument("--data", default="digits", help="digits, fashion-mnist or the path of a folder of images")
    parser.add_argument("--images", type=at_least(16), default=None, help="train on the first so many (default all)")
    parser.add_argument("--epochs", type=at_least(1), default=epochs)
    parser.add_argument("--batch-size", type=at_least(16), default=batch_size, help="rows of the estimate")
    parser.add_argument("--lr", type=number(0), default=lr)
    parser.add_argument("--seed", type=at_least(0, LARGEST_SEED), default=0)
    parser.add_argument("--device", type=device, default="auto", help="auto (cuda or cpu), or any device torch knows")
    parser.add_argument("--amp", action="store_true", help="run the networks in bfloat16")
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks")
    parser.add_argument("--output", type=Path, default=Path("runs") / name, help="default: it and the flags given")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --output, if there is one")
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that everything works")


def add_compare_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the recipes that have methods to compare."""
    parser.add_argument("--compare", action="store_true", help="all methods over --seeds, as one table")
    parser.add_argument("--seeds", type=at_least(0, LARGEST_SEED), nargs="+", default=[3, 4, 5], help="of --compare")


def parse_flags(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Parse; a folder that was not chosen is called after the flags that were, so that no run is in another's way."""
    args = parser.parse_args(arguments)
    default = parser.get_default("output")
    if args.output == default:
        defaults = settings(argparse.Namespace(**{key: parser.get_default(key) for key in vars(args)}))
        given = {key: value for key, value in settings(args).items() if value != defaults[key]}
        words = (key if value is True else f"{key}-{Path(str(value)).name}" for key, value in given.items())
        args.output = default.with_name("-".join([default.name, *words]))
    return args


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """A type for argparse: an integer that is not smaller, nor larger than ``most``."""

    def integer(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        if most is not None and int(text) > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, got {text}")
        return int(text)

    return integer


def number(least: float) -> Callable[[str], float]:
    """A type for argparse: a finite number that is not smaller."""

    def real(text: str) -> float:
        if not least <= float(text) < float("inf"):
            raise argparse.ArgumentTypeError(f"must be a finite number of at least {least:g}, got {text}")
        return float(text)

    return real


def device(name: str) -> torch.device:
    """A type for argparse: the named device, if a tensor can be put there; auto is cuda where there is one."""
    try:
        chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=chosen).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise argparse.ArgumentTypeError(
            f"expected auto, cpu, or a device of this machine, got {name}: {reason}"
        ) from None
    return chosen


def start(args: argparse.Namespace) -> None:
    """Seed everything, ask for deterministic kernels, make the run's folder and write its settings there.

    Raises:
        ValueError: the folder holds a run with other settings; it is left as it is.
    """
    config = args.output / "config.json"
    if config.exists():
        require_same(args, json.loads(config.read_text(encoding="utf-8")))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    random.seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002 - libraries draw from it
    torch.manual_seed(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    write_text(config, json.dumps(settings(args), indent=2))


def settings(args: argparse.Namespace) -> dict:
    """What decides the result of a run, as JSON can hold it."""
    return {"version": VERSION} | {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(args).items()
        if key not in NOT_SETTINGS
    }


def amp(args: argparse.Namespace) -> torch.autocast:
    """The context the networks run in: bfloat16 with --amp, which needs no scaling of the loss."""
    return torch.autocast(args.device.type, dtype=torch.bfloat16, enabled=args.amp)


def seconds(where: torch.device) -> float:
    """A clock for training steps: processor time on the CPU, where others may be working, else time on the wall."""
    if where.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize() if hasattr(torch, "accelerator") else torch.cuda.synchronize()
    return time.perf_counter()


def set_rate(optimizer: torch.optim.Optimizer, lr: float, progress: float) -> None:
    """A tenth of the training to warm up, then a half cosine down to zero; `progress` is the share done, 0 to 1."""
    for group in optimizer.param_groups:
        group["lr"] = lr * min(1, 10 * progress + 0.02) * (1 + np.cos(np.pi * progress)) / 2


def steps_an_epoch(n: int, size: int) -> int:
    """How many `batches` n rows make. Asking draws no random number, so a resumed run may ask again."""
    return n // min(size, n)


def batches(n: int, size: int) -> Sequence[Tensor]:
    """Indices of an epoch in random order, in full batches of `size`, or one of all n if these are fewer."""
    size = min(size, n)
    return torch.randperm(n).split(size)[: n // size]


def write_metrics(path: Path, history: list[dict]) -> None:
    """Write rows of numbers as CSV; what a row lacks stays empty."""
    keys = list(dict.fromkeys(key for row in history for key in row))
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([keys, *([row.get(key, "") for key in keys] for row in history)])
    write_text(path, table.getvalue())


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def save_tensors(path: Path, tensors: dict[str, Tensor], notes: dict) -> None:
    """Write tensors, and notes as JSON in the header, whole or not at all."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"notes": json.dumps(notes)})


def save_checkpoint(
    args: argparse.Namespace, modules: nn.Module, optimizers: Sequence[torch.optim.Optimizer], notes: dict
) -> None:
    """Write weights, moments of the optimisers, the state of the random numbers, settings and notes into the folder."""
    tensors = {f"module.{key}": value for key, value in modules.state_dict().items()}
    for i, optimizer in enumerate(optimizers):
        for j, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{key}": value for key, value in moments.items()}
    tensors["random"] = torch.get_rng_state()
    if args.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(args.device)
    save_tensors(args.output / CHECKPOINT, tensors, notes | {"settings": settings(args)})


def read_notes(args: argparse.Namespace) -> dict | None:
    """The notes of the checkpoint to go on from; None without --resume or a checkpoint.

    Raises:
        ValueError: the checkpoint is of a run with other settings.
    """
    path = args.output / CHECKPOINT
    if not args.resume or not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        notes = json.loads(file.metadata()["notes"])
    require_same(args, notes.pop("settings"))
    return notes


def require_same(args: argparse.Namespace, saved: dict) -> None:
    """Compare the settings with those of the run in the folder, which another run would destroy.

    Raises:
        ValueError: they differ.
    """
    now = json.loads(json.dumps(settings(args)))
    changed = ", ".join(
        f"{key} {saved.get(key)} there, {now.get(key)} now"
        for key in sorted(saved | now)
        if saved.get(key) != now.get(key)
    )
    if changed:
        raise ValueError(
            f"expected the settings of the run in {args.output}, got others ({changed}): "
            "choose another --output, or remove that folder"
        )


def load_checkpoint(
    args: argparse.Namespace, modules: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict | None:
    """Restore what `save_checkpoint` wrote and return the notes; None without --resume or a checkpoint.

    Raises:
        ValueError: the checkpoint is of a run with other settings.
    """
    notes = read_notes(args)
    if notes is None:
        return None
    with safe_open(args.output / CHECKPOINT, framework="pt") as file:
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - not a dict
    modules.load_state_dict({k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")})
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{i}."):
                _, _, j, name = key.split(".")
                state.setdefault(int(j), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], args.device)
    return notes


@torch.no_grad()
def encode(encoder: nn.Module, images: Tensor, where: torch.device) -> Tensor:
    """Features of all images, in eval mode, on the CPU."""
    encoder.eval()
    return torch.cat([encoder(batch.to(where)).float().cpu() for batch in images.split(1000)])


def linear_probe(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Held-out accuracy in percent of a fresh logistic regression on features (n, d)."""
    return _score(LogisticRegression(max_iter=1000), train, labels, test, test_labels)


def neighbour_probe(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Held-out accuracy in percent of the twenty nearest neighbours, by cosine, on features (n, d)."""
    return _score(KNeighborsClassifier(min(20, len(train)), metric="cosine"), train, labels, test, test_labels)


def neural_probe(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Held-out accuracy in percent of a fresh network with one hidden layer of 64, on features (n, d)."""
    return _score(
        MLPClassifier((64,), learning_rate_init=5e-3, max_iter=150, random_state=0), train, labels, test, test_labels
    )


def _score(classifier: object, train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    pipeline = make_pipeline(StandardScaler(), classifier)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the budget of a probe is fixed, so that all have the same
        pipeline.fit(train.numpy(), labels.numpy())
    return 100 * float(pipeline.score(test.numpy(), test_labels.numpy()))


def sweep(
    run: Callable[[argparse.Namespace], dict], args: argparse.Namespace, flag: str, methods: Sequence[object]
) -> list[dict]:
    """Results of all methods over all seeds, each in its folder; what is finished there with these settings is kept."""

    def one(method: object, seed: int) -> dict:
        single = copy.copy(args)
        vars(single).update({flag: method, "seed": seed, "output": args.output / f"{method}-{seed}", "resume": True})
        done = single.output / "result.json"
        if done.exists():
            result = json.loads(done.read_text(encoding="utf-8"))
            if result["config"] == json.loads(json.dumps(settings(single))):
                return result
        return run(single)

    return [one(method, seed) for seed in args.seeds for method in methods]


def table(results: list[dict], flag: str, columns: dict[str, str]) -> str:
    """Markdown: one row a method, mean and standard deviation over its seeds; `columns` maps titles to keys."""
    lines = ["| " + " | ".join([flag, *columns]) + " |", "| --- " * (1 + len(columns)) + "|"]
    for method in dict.fromkeys(result["config"][flag] for result in results):
        rows = [result for result in results if result["config"][flag] == method]
        cells = (_mean_and_deviation([row[key] for row in rows]) for key in columns.values())
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean_and_deviation(values: list[float]) -> str:
    digits = 1 if max(abs(value) for value in values) >= 5 else 3
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def report(text: str, args: argparse.Namespace) -> None:
    """Print a table with the command behind it, and write both into the folder."""
    command = "python " + shlex.join(sys.argv)
    text = f"{text}\n\nSeeds {', '.join(map(str, args.seeds))}: `{command}`"
    write_text(args.output / "table.md", text + "\n")
    print(text)


def small_trunk(channels: int) -> nn.Sequential:
    """Three strided convolutions, pooled to four by four: (b, channels, height, width) -> (b, 1024)."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())

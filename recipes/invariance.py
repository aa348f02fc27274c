"""Invariance: features that say the class and share nothing with an attribute, which is a label.

    python recipes/invariance.py                                  # coloured digits, I(z; colour) minimised by MIST
    python recipes/invariance.py --data fashion-mnist --images 10000 --epochs 15
    python recipes/invariance.py --penalty adversary              # or another of penalties.py
    python recipes/invariance.py --compare --seeds 3 4 5          # all of them, as a table

The attribute enters the estimate as one-hot rows. A decoder gets features and attribute and rebuilds the image, so
that the features need not keep what the attribute says already; the penalty is what makes them drop it. A fresh probe,
trained afterwards on frozen features, says how much of it is left.
"""

import argparse
import json

import torch
import torch.nn.functional as F
from common import (
    add_compare_flags,
    add_flags,
    amp,
    at_least,
    batches,
    load_checkpoint,
    neural_probe,
    report,
    save_checkpoint,
    save_figure,
    save_tensors,
    seconds,
    set_rate,
    settings,
    small_trunk,
    start,
    steps_an_epoch,
    sweep,
    table,
    write,
    write_metrics,
)
from factors import Factors, draw, load_factors
from matplotlib.figure import Figure
from penalties import PENALTIES, Fitted, build_penalty
from torch import Tensor, nn
from tqdm import tqdm

from mist_loss import estimate_mi

WEIGHTS = {
    "none": 0.0,
    "mist": 0.1,
    "mist-sketch": 0.1,
    "club": 0.03,
    "mine": 0.1,
    "hsic": 1.0,
    "adversary": 0.3,
}
COLUMNS = {
    "attribute, above chance": "leak",
    "class": "task",
    "squared error": "reconstruction",
    "ms a step": "step_ms",
}
PROBE_IMAGES = 4000


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "invariance", epochs=60, batch_size=256, lr=3e-3)
    add_compare_flags(parser)
    parser.add_argument("--penalty", choices=PENALTIES, default="mist")
    parser.add_argument("--weight", type=float, default=None, help="of the penalty (default: see WEIGHTS)")
    parser.add_argument("--rebuild", type=float, default=10.0, help="weight of the squared error")
    parser.add_argument("--features", type=at_least(1), default=16, help="dimensions of z")
    args = parser.parse_args(arguments)
    if args.smoke:
        args.epochs, args.images = 2, 1024
    return args


class Invariant(nn.Module):
    """Images (b, 3, h, w) to features (b, d) of zero mean and unit variance; these to a class, and to the image."""

    def __init__(self, shape: tuple[int, int, int], features: int, classes: int, attributes: int):
        super().__init__()
        self.shape = shape
        self.encoder = nn.Sequential(
            small_trunk(3),
            nn.Linear(1024, 128),
            nn.ReLU(),
            nn.Linear(128, features),
            nn.BatchNorm1d(features, affine=False),
        )
        self.head = nn.Linear(features, classes)
        pixels = shape[0] * shape[1] * shape[2]
        self.decoder = nn.Sequential(
            nn.Linear(features + attributes, 256), nn.ReLU(), nn.Linear(256, pixels), nn.Sigmoid()
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features of the images."""
        return self.encoder(images)

    def rebuild(self, features: Tensor, attribute: Tensor) -> Tensor:
        """Images (b, 3, h, w) in [0, 1] from features and the one-hot attribute."""
        return self.decoder(torch.cat([features, attribute], dim=1)).unflatten(1, self.shape)


def train(args: argparse.Namespace, factors: Factors, model: Invariant) -> tuple[list[dict], float]:
    """Train in place, from a checkpoint if asked; returns a row of numbers for each epoch and the seconds a step."""
    weight = WEIGHTS[args.penalty] if args.weight is None else args.weight
    sizes = (args.features, factors.styles, factors.contents, factors.styles)
    penalty = build_penalty(args.penalty, *sizes, discrete=True).to(args.device)
    learned = list(penalty.parameters()) if not isinstance(penalty, Fitted) else []  # Fitted has its own optimiser
    optimizer = torch.optim.AdamW([*model.parameters(), *learned], lr=args.lr, weight_decay=1e-4)
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
            set_rate(optimizer, args.lr, (epoch + i / per_epoch) / args.epochs)
            images, label, attribute = draw(factors.train, index, args.device)
            one_hot = F.one_hot(attribute, factors.styles).float()
            with amp(args):
                features = model(images)
                rebuilt = F.mse_loss(model.rebuild(features, one_hot).float(), images)
                task = F.cross_entropy(model.head(features).float(), label)
            features = features.float()
            penalty.learn(features, one_hot)
            shared = penalty(features, one_hot, label, attribute)
            optimizer.zero_grad()
            (args.rebuild * rebuilt + task + weight * shared).backward()
            optimizer.step()
            rows.append(torch.stack([task, rebuilt, shared]).detach())
        spent += seconds(args.device) - clock
        values = torch.stack(rows).mean(0).tolist()
        history.append({"epoch": epoch + 1} | dict(zip(("task", "rebuilt", "penalty"), values, strict=True)))
        if (epoch + 1) % max(1, args.epochs // 20) == 0 or epoch + 1 == args.epochs:
            save_checkpoint(args, both, optimizers, {"history": history, "seconds": spent})
    return history, spent / (args.epochs * per_epoch)


@torch.no_grad()
def judge(model: Invariant, factors: Factors, device: torch.device) -> dict:
    """What fresh probes read from the features, in percent, the squared error, and the estimate of I(z; attribute)."""
    model.eval()
    drawn = []
    for part in (factors.train, factors.test):
        index = torch.randperm(len(part.images))[:PROBE_IMAGES]
        drawn.append(draw(part, index, device))
    z, fresh_z = (model(part.images).float().cpu() for part in drawn)
    one_hot = F.one_hot(drawn[1].style, factors.styles).float()
    rebuilt = model.rebuild(fresh_z.to(device), one_hot)
    labels, attribute, fresh_labels, fresh_attribute = (
        t.cpu() for t in (drawn[0].content, drawn[0].style, drawn[1].content, drawn[1].style)
    )
    chance = 100 * fresh_attribute.bincount().max().item() / len(fresh_attribute)
    return {
        "leak": neural_probe(z, attribute, fresh_z, fresh_attribute) - chance,
        "task": neural_probe(z, labels, fresh_z, fresh_labels),
        "reconstruction": F.mse_loss(rebuilt.float(), drawn[1].images).item(),
        "shared_nats": [t.item() for t in estimate_mi(fresh_z, one_hot.cpu())],
    }


@torch.no_grad()
def draw_attributes(model: Invariant, factors: Factors, device: torch.device) -> Figure:
    """Features of the images on the left, decoded with every value of the attribute."""
    model.eval()
    part = draw(factors.test, torch.arange(min(200, len(factors.test.images))), device)
    rows = [int((part.content == k).nonzero()[0]) for k in part.content.unique()[:8]]
    values = torch.eye(factors.styles, device=device)
    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.subplots(len(rows), 1 + factors.styles, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, row in enumerate(rows):
        features = model(part.images[row : row + 1]).expand(factors.styles, -1)
        pictures = [part.images[row], *model.rebuild(features, values)]
        for axis, picture in zip(axes[i], pictures, strict=True):
            axis.imshow(picture.float().cpu().permute(1, 2, 0))
    figure.suptitle("the image, then its features decoded with every value of the attribute")
    return figure


def run(args: argparse.Namespace) -> dict:
    """Train, judge and write the run's folder; returns the result."""
    factors = load_factors(args.data, args.images)
    start(args)
    shape = (3, *factors.train.images.shape[2:])
    model = Invariant(shape, args.features, factors.contents, factors.styles).to(args.device)
    history, step = train(args, factors, model)
    torch.manual_seed(args.seed)  # so that a resumed run is judged on the same images
    result = {"config": settings(args), "step_ms": 1000 * step} | judge(model, factors, args.device)
    save_tensors(args.output / "model.safetensors", model.state_dict(), settings(args))
    write_metrics(args.output / "metrics.csv", history)
    save_figure(draw_attributes(model, factors, args.device), args.output / "attributes.png")
    write(args.output / "result.json", json.dumps(result, indent=2))
    return result


def main(arguments: list[str] | None = None) -> None:
    """Run one penalty, or compare all."""
    args = parse(arguments)
    try:
        if args.compare:
            report(table(sweep(run, args, "penalty", PENALTIES), "penalty", COLUMNS), args)
            return
        result = run(args)
    except (ValueError, ModuleNotFoundError) as error:
        raise SystemExit(f"invariance.py: {error}") from error
    value, low, high = result["shared_nats"]
    print(
        f"fresh probes, held-out accuracy: class {result['task']:.1f}%; "
        f"attribute {result['leak']:.1f} points above chance\n"
        f"squared error {result['reconstruction']:.4f}; {value:.2f} nats shared (90% {low:.2f} to {high:.2f}); "
        f"{result['step_ms']:.0f} ms a step; figure and numbers in {args.output}"
    )


if __name__ == "__main__":
    main()

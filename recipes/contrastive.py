"""Contrastive learning of an image encoder: maximise the mutual information between two views of each image.

    python recipes/contrastive.py                       # scikit-learn's digits, MISTCriterion
    python recipes/contrastive.py --objective ntxent    # or vicreg, barlow: the usual ones, same encoder and epochs
    python recipes/contrastive.py --objective mist+ntxent
    python recipes/contrastive.py --objective infomax   # Deep InfoMax: what the image has in one place, and as a whole
    python recipes/contrastive.py --data fashion-mnist --encoder resnet18    # or the path of an ImageFolder
    python recipes/contrastive.py --compare --seeds 3 4 5                    # all objectives, as a table

A linear and a nearest-neighbour probe, fresh each time, on frozen features, judge the encoder beside itself untrained
and raw pixels.
"""

import argparse
import copy
import json
import math

import torch
from einops import rearrange
from lightly.loss import BarlowTwinsLoss, NTXentLoss
from lightly.loss.vicreg_loss import VICRegLoss
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.models import resnet18
from tqdm import tqdm

from common import (
    add_compare_flags,
    add_flags,
    amp,
    at_least,
    batches,
    encode,
    linear_probe,
    load_checkpoint,
    neighbour_probe,
    number,
    parse_flags,
    report,
    save_checkpoint,
    save_figure,
    save_tensors,
    seconds,
    set_rate,
    settings,
    start,
    steps_an_epoch,
    sweep,
    table,
    write_metrics,
)
from data import Images, load_images, random_view
from mist_loss import MISTCriterion, QueuedCriterion, estimate_mi
from mist_loss.files import write_text
from mist_loss.model.frontend import whiten

PROBE_IMAGES = 5000  # of a large set: enough to compare encoders, and quick
TEMPERATURE = 0.2  # of NT-Xent
HEAD = 64  # dimensions of the head that NT-Xent, VICReg and Barlow Twins see
REDUNDANCY = 0.15  # weight of that part of Barlow Twins; the published 0.005 is of a head of 8,192
GROUP = 4  # features in a set that MIST reads
TURNS = 4  # rotations a step: one alone is a noisy choice of directions
PULL = 6.0  # of correlations, see MISTCriterion; chosen on Fashion-MNIST, README.md has the numbers
OBJECTIVES = ("mist", "infomax", "ntxent", "vicreg", "barlow", "mist+ntxent")
COLUMNS = {
    "linear probe": "linear",
    "nearest neighbours": "neighbours",
    "untrained": "linear_untrained",
    "seconds": "seconds",
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "contrastive", epochs=60, batch_size=448, lr=5e-3)
    add_compare_flags(parser)
    parser.add_argument("--objective", choices=OBJECTIVES, default="mist")
    parser.add_argument("--encoder", choices=("convnet", "resnet18"), default="convnet")
    parser.add_argument(
        "--features", type=at_least(1), default=16, help="dimensions of the representation that is probed"
    )
    parser.add_argument("--share", type=number(0), default=0.1, help="weight of MIST beside NT-Xent")
    parser.add_argument(
        "--queue",
        type=at_least(0),
        default=0,
        help="past rows that mist and mist+ntxent read beside those of a small batch",
    )
    args = parse_flags(parser, arguments)
    if args.smoke:
        args.epochs = 3
    return args


def build_encoder(name: str, channels: int, features: int) -> nn.Sequential:
    """A small network, or torchvision's ResNet-18, in two parts: images (b, channels, height, width) to a map of local
    features (b, c, h, w), and the map, averaged, to features (b, features).
    """
    if name == "convnet":
        trunk, width = convolutions(channels), 128
    else:
        network = resnet18()
        # small images: no stride before the first block
        network.conv1, network.maxpool = nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.Identity()
        trunk, width = nn.Sequential(*list(network.children())[:-2]), 512
    return nn.Sequential(trunk, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, features)))


def convolutions(channels: int) -> nn.Sequential:
    """Three convolutions: (b, channels, height, width) -> (b, 128, height / 4, width / 4)."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((channels, 32, 1), (32, 64, 2), (64, 128, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def build_head(inputs: int, outputs: int) -> nn.Sequential:
    """What stands between features and a loss, thrown away afterwards: (b, inputs) -> (b, outputs)."""
    return nn.Sequential(
        nn.Linear(inputs, 128),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        nn.Linear(128, outputs),
        nn.BatchNorm1d(outputs, affine=False),
    )


def turned_groups(x: Tensor, y: Tensor, alike: bool) -> tuple[Tensor, Tensor]:
    """Both sides whitened, turned by a few random rotations, and cut into groups of GROUP features, which are sets.

    Mutual information grows fastest along the pair of directions that share most already, and a few hundred rows say
    little of weak ones among many. A group's directions are mixtures of all: each of them has to be shared.

    Args:
        x, y: (n, d).
        alike: whether both are of one kind, as two views are: twice the rows then whiten both.

    Returns:
        (TURNS d // GROUP, n, GROUP) each, or (TURNS, n, d) if d is less; what is left over changes with the rotation.
    """
    n, d = x.shape
    sides = torch.stack([x, y]).float()
    white = (whiten(sides.reshape(1, 2 * n, d)).reshape(2, n, d) if alike else whiten(sides)).float()
    rotations = torch.linalg.qr(torch.randn(TURNS, 1, d, d, device=x.device))[0]
    width = min(GROUP, d)
    cut = (white @ rotations)[..., : d // width * width]
    first, second = rearrange(cut, "turns side n (groups w) -> side (turns groups) n w", w=width)
    return first, second


def somewhere(maps: Tensor) -> Tensor:
    """The local features of each image in a place of its own, drawn at random: (b, c, h, w) -> (b, c)."""
    places = maps.flatten(2)
    chosen = torch.randint(places.shape[2], (len(places),), device=maps.device)
    return places[torch.arange(len(places), device=maps.device), :, chosen]


class TurnedCriterion(nn.Module):
    """MISTCriterion of `turned_groups`."""

    def __init__(self, alike: bool) -> None:
        super().__init__()
        self.criterion, self.alike = MISTCriterion(pull=PULL), alike

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of features (n, d), in nats."""
        return self.criterion(*turned_groups(x, y, self.alike))


class Objective(nn.Module):
    """The loss of two views, with the heads it needs.

    "mist" raises the mutual information of the features of the two views; "infomax" that of the features of one view
    and the local features of the other in one place, behind a head (Deep InfoMax, Hjelm et al. 2019, arXiv 1808.06670;
    across views as Bachman et al. 2019, arXiv 1906.00910). NT-Xent (Chen et al. 2020, arXiv 2002.05709), VICReg and
    Barlow Twins see the features through a head, as is usual for them; "mist+ntxent" is NT-Xent there and `share` times
    MIST on the features. For "mist" and "mist+ntxent" a queue adds as many rows of past steps to those that MIST reads.
    """

    def __init__(self, name: str, share: float, queue: int, channels: int, features: int):
        super().__init__()
        self.name, self.share = name, share
        self.criterion: nn.Module | None = None
        if name in ("mist", "infomax", "mist+ntxent"):
            self.criterion = TurnedCriterion(name != "infomax")
            if queue and name != "infomax":  # which pairs features with two other things in turn
                self.criterion = QueuedCriterion(self.criterion, queue, features, features)
        others = {"vicreg": VICRegLoss(), "barlow": BarlowTwinsLoss(REDUNDANCY)}
        self.contrast = others.get(name, NTXentLoss(TEMPERATURE))
        scaled = nn.BatchNorm1d(features, affine=False)  # the criterion reads through it, InfoNCE's bound does not
        self.head = scaled if name in ("mist", "infomax") else build_head(features, HEAD)
        self.local = build_head(channels, features) if name == "infomax" else None

    def forward(self, maps: Tensor, features: Tensor) -> Tensor:
        """The loss, 0-d.

        Args:
            maps: (2 b, channels, height, width), one view of all images, then the other.
            features: (2 b, features), likewise.
        """
        f1, f2 = features.chunk(2)
        if self.criterion is None:
            return self.contrast(*self.head(features).chunk(2))
        if self.local is not None:
            l1, l2 = self.local(somewhere(maps)).chunk(2)
            return (self.criterion(l1, f2) + self.criterion(l2, f1)) / 2
        if self.name == "mist":
            return self.criterion(f1, f2)
        return self.contrast(*self.head(features).chunk(2)) + self.share * self.criterion(f1, f2)

    @torch.no_grad()
    def nats(self, features: Tensor) -> dict[str, float]:
        """Nats that two views (2 b, features) share: estimate, its 90% interval, and InfoNCE's bound.

        The bound is log(2 b - 1) minus NT-Xent, of the codes that the loss sees: these share no more than the features.
        """
        f1, f2 = features.chunk(2)
        told = estimate_mi(f1, f2)
        codes = self.head(features).chunk(2)
        bound = math.log(len(features) - 1) - NTXentLoss(TEMPERATURE)(*codes)
        names = ("estimate", "low", "high", "infonce")
        return {key: float(value) for key, value in zip(names, (*told, bound), strict=True)}


def probe(encoder: nn.Module, images: Images, device: torch.device) -> dict[str, float]:
    """Accuracies in percent, on held-out images, of fresh probes of frozen features."""
    train, test = encode(encoder, images.train[:PROBE_IMAGES], device), encode(encoder, images.test, device)
    labels = images.train_labels[:PROBE_IMAGES]
    return {
        name: score(train, labels, test, images.test_labels)
        for name, score in (("linear", linear_probe), ("neighbours", neighbour_probe))
    }


def untrained_copy(encoder: nn.Module, images: Images, device: torch.device) -> nn.Module:
    """The encoder as it is, its batch normalisation fitted to the images: the fair thing to compare with."""
    calibrated = copy.deepcopy(encoder).train()
    with torch.no_grad():
        for _ in range(50):
            calibrated(images.train[torch.randperm(len(images.train))[:256]].to(device))
    return calibrated


def train(args: argparse.Namespace, images: Images, encoder: nn.Sequential) -> tuple[list[dict], float]:
    """Train in place, from a checkpoint if asked; returns a row of numbers for each epoch and the seconds it took."""
    trunk, head = encoder
    channels = next(head.parameters()).shape[1]
    objective = Objective(args.objective, args.share, args.queue, channels, args.features).to(args.device)
    both = nn.ModuleDict({"encoder": encoder, "objective": objective})
    optimizer = torch.optim.AdamW(both.parameters(), lr=args.lr, weight_decay=1e-4)
    notes = load_checkpoint(args, both, [optimizer]) or {"history": [], "seconds": 0.0}
    history, spent = notes["history"], notes["seconds"]
    if args.compile:
        trunk.compile()
    n = len(images.train)
    per_epoch = steps_an_epoch(n, args.batch_size)
    for epoch in tqdm(range(len(history), args.epochs), desc=args.objective, unit="epoch", disable=None):
        encoder.train()
        clock, losses = seconds(args.device), []
        for i, index in enumerate(batches(n, args.batch_size)):
            set_rate(optimizer, args.lr, (epoch + i / per_epoch) / args.epochs)
            batch = images.train[index].to(args.device)
            with amp(args):
                maps = trunk(torch.cat([random_view(batch), random_view(batch)]))
                features = head(maps)
            loss = objective(maps.float(), features.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())  # stays on the device: nothing waits for it
        spent += seconds(args.device) - clock
        history.append({"epoch": epoch + 1, "loss": float(torch.stack(losses).mean())})
        history[-1] |= objective.nats(features.detach().float())
        if (epoch + 1) % max(1, args.epochs // 10) == 0 or epoch + 1 == args.epochs:
            history[-1] |= probe(encoder, images, args.device)
            save_checkpoint(args, both, [optimizer], {"history": history, "seconds": spent})
    return history, spent


def draw(history: list[dict], result: dict) -> Figure:
    """Plot estimate, interval and probes along training."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["estimate"] for row in history], label="MIST's estimate")
    left.fill_between(
        epochs, [r["low"] for r in history], [r["high"] for r in history], alpha=0.25, label="90% interval"
    )
    left.plot(epochs, [row["infonce"] for row in history], "--", label="InfoNCE's bound")
    left.set(xlabel="epoch", ylabel="mutual information of the views (nats)", title=result["config"]["objective"])
    left.axhline(result["infonce_limit"], color="grey", linestyle=":", label="the bound's limit")
    left.legend()
    probed = [row for row in history if "linear" in row]
    for key, style in (("linear", "o-"), ("neighbours", "s--")):
        right.plot([row["epoch"] for row in probed], [row[key] for row in probed], style, label=f"trained, {key}")
    right.axhline(result["linear_untrained"], color="grey", linestyle="--", label="untrained encoder, linear")
    right.axhline(result["linear_pixels"], color="black", linestyle=":", label="raw pixels, linear")
    right.set(xlabel="epoch", ylabel="held-out accuracy of a probe (%)")
    right.legend()
    return figure


def run(args: argparse.Namespace) -> dict:
    """Train, probe and write the run's folder; returns the result."""
    images = load_images(args.data)
    images = images._replace(train=images.train[: args.images], train_labels=images.train_labels[: args.images])
    if len(images.train) < 16:
        raise ValueError(f"expected at least 16 images to train on, got {len(images.train)}")
    start(args)
    encoder = build_encoder(args.encoder, images.train.shape[1], args.features).to(args.device)
    raw, untrained = nn.Flatten(), untrained_copy(encoder, images, args.device)
    result: dict = {
        "config": settings(args),
        "infonce_limit": math.log(2 * min(args.batch_size, len(images.train)) - 1),
    }
    for name, network in (("pixels", raw), ("untrained", untrained)):
        result |= {f"{key}_{name}": value for key, value in probe(network, images, args.device).items()}
    history, spent = train(args, images, encoder)
    result |= history[-1] | {"seconds": round(spent, 1)}
    save_tensors(args.output / "encoder.safetensors", encoder.state_dict(), settings(args))
    write_metrics(args.output / "metrics.csv", history)
    save_figure(draw(history, result), args.output / "curve.png")
    write_text(args.output / "result.json", json.dumps(result, indent=2))
    return result


def main(arguments: list[str] | None = None) -> None:
    """Run one objective, or compare all."""
    args = parse(arguments)
    try:
        if args.compare:
            report(table(sweep(run, args, "objective", OBJECTIVES), "objective", COLUMNS), args)
            return
        result = run(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"contrastive.py: {error}") from error
    print(
        f"linear probe, held-out accuracy: trained encoder {result['linear']:.1f}%, "
        f"untrained {result['linear_untrained']:.1f}%, raw pixels {result['linear_pixels']:.1f}%\n"
        f"nearest neighbours: {result['neighbours']:.1f}%, {result['neighbours_untrained']:.1f}%, "
        f"{result['neighbours_pixels']:.1f}%\n"
        f"{result['estimate']:.2f} nats between the views, of which InfoNCE's bound sees {result['infonce']:.2f}\n"
        f"{result['seconds']:.0f} s; plot, numbers and weights in {args.output}"
    )


if __name__ == "__main__":
    main()

"""Contrastive learning of an image encoder: maximise the mutual information between two views of each image.

    python recipes/contrastive.py                       # scikit-learn's digits, MISTCriterion
    python recipes/contrastive.py --objective ntxent    # or vicreg, barlow: the usual ones, same encoder and epochs
    python recipes/contrastive.py --objective mist+ntxent
    python recipes/contrastive.py --data fashion-mnist --encoder resnet18    # or the path of an ImageFolder
    python recipes/contrastive.py --compare --seeds 3 4 5                    # all objectives, as a table

A linear and a nearest-neighbour probe, fresh each time, on frozen features, judge the encoder beside itself untrained
and raw pixels.
"""

import argparse
import copy
import json
import math
from collections.abc import Callable

import torch
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
    write,
    write_metrics,
)
from data import Images, load_images, random_view
from lightly.loss import BarlowTwinsLoss, NTXentLoss
from lightly.loss.vicreg_loss import VICRegLoss
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.models import resnet18
from tqdm import tqdm

from mist_loss import MISTCriterion

PROBE_IMAGES = 5000  # of a large set: enough to compare encoders, and quick
TEMPERATURE = 0.2  # of NT-Xent
# dimensions of the projection and noise on it: first guesses
PROJECTIONS = {"mist": (8, 0.5), "ntxent": (64, 0.0), "vicreg": (64, 0.0), "barlow": (64, 0.0), "mist+ntxent": (8, 0.5)}
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
    parser.add_argument("--objective", choices=PROJECTIONS, default="mist")
    parser.add_argument("--encoder", choices=("convnet", "resnet18"), default="convnet")
    parser.add_argument(
        "--features", type=at_least(1), default=16, help="dimensions of the representation that is probed"
    )
    parser.add_argument("--dim", type=at_least(1), default=None, help="dimensions of the projection that the loss sees")
    parser.add_argument("--noise", type=float, default=None, help="standard deviation of the noise on the projection")
    parser.add_argument("--share", type=float, default=0.1, help="weight of MIST beside NT-Xent")
    args = parser.parse_args(arguments)
    if args.smoke:
        args.epochs = 3
    return args


def build_encoder(name: str, channels: int, features: int) -> nn.Module:
    """Images (b, channels, height, width) to features (b, features): a small network, or torchvision's ResNet-18."""
    if name == "convnet":
        return convnet(channels, features)
    network = resnet18(num_classes=features)
    # small images: no stride before the first block
    network.conv1, network.maxpool = nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.Identity()
    return network


def convnet(channels: int, features: int, width: int = 32) -> nn.Sequential:
    """Three convolutions, averaged over the image: (b, channels, height, width) -> (b, features)."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((channels, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, features))


def build_projector(features: int, dim: int) -> nn.Sequential:
    """The head that the loss sees, thrown away afterwards: (b, features) -> (b, dim)."""
    return nn.Sequential(
        nn.Linear(features, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, dim), nn.BatchNorm1d(dim, affine=False)
    )


def build_objective(name: str, share: float, device: torch.device) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Projections of two views (b, dim) to the loss, 0-d, and the nats they share: estimate, low and high end.

    NT-Xent (Chen et al. 2020, arXiv 2002.05709) gives a lower bound instead, log(2 b - 1) minus the loss, three times;
    VICReg and Barlow Twins give NaN.
    """
    criterion = MISTCriterion().to(device)
    contrast = NTXentLoss(temperature=TEMPERATURE)
    others = {"vicreg": VICRegLoss(), "barlow": BarlowTwinsLoss()}

    def objective(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
        if name in others:
            return others[name](z1, z2), z1.new_full((3,), math.nan)
        if name == "ntxent":
            loss = contrast(z1, z2)
            return loss, (math.log(2 * len(z1) - 1) - loss.detach()).expand(3)
        loss = criterion(z1, z2)
        assert criterion.last is not None
        if name == "mist+ntxent":
            loss = contrast(z1, z2) + share * loss
        return loss, torch.stack(criterion.last[:3])

    return objective


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


def train(args: argparse.Namespace, images: Images, encoder: nn.Module) -> tuple[list[dict], float]:
    """Train in place, from a checkpoint if asked; returns a row of numbers for each epoch and the seconds it took."""
    dim, noise = PROJECTIONS[args.objective]
    dim, noise = (dim if args.dim is None else args.dim), (noise if args.noise is None else args.noise)
    projector = build_projector(args.features, dim).to(args.device)
    objective = build_objective(args.objective, args.share, args.device)
    both = nn.ModuleDict({"encoder": encoder, "projector": projector})
    optimizer = torch.optim.AdamW(both.parameters(), lr=args.lr, weight_decay=1e-4)
    notes = load_checkpoint(args, both, [optimizer]) or {"history": [], "seconds": 0.0}
    history, spent = notes["history"], notes["seconds"]
    if args.compile:
        encoder.compile()
    n = len(images.train)
    per_epoch = steps_an_epoch(n, args.batch_size)
    for epoch in tqdm(range(len(history), args.epochs), desc=args.objective, unit="epoch", disable=None):
        encoder.train()
        clock, rows = seconds(args.device), []
        for i, index in enumerate(batches(n, args.batch_size)):
            set_rate(optimizer, args.lr, (epoch + i / per_epoch) / args.epochs)
            batch = images.train[index].to(args.device)
            with amp(args):
                codes = projector(encoder(torch.cat([random_view(batch), random_view(batch)])))
            codes = codes.float()
            z1, z2 = (codes + noise * torch.randn_like(codes)).chunk(2)
            loss, nats = objective(z1, z2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rows.append(torch.cat([loss.detach()[None], nats]))  # stays on the device: nothing waits for it
        spent += seconds(args.device) - clock
        values = torch.stack(rows).mean(0).tolist()
        names = ("loss", "estimate", "low", "high")
        history.append({"epoch": epoch + 1} | {k: v for k, v in zip(names, values, strict=True) if not math.isnan(v)})
        if (epoch + 1) % max(1, args.epochs // 10) == 0 or epoch + 1 == args.epochs:
            history[-1] |= probe(encoder, images, args.device)
            save_checkpoint(args, both, [optimizer], {"history": history, "seconds": spent})
    return history, spent


def draw(history: list[dict], result: dict) -> Figure:
    """Plot estimate, interval and probes along training."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    told = [row for row in history if "estimate" in row]
    epochs = [row["epoch"] for row in told]
    left.plot(epochs, [row["estimate"] for row in told], label="estimate")
    left.fill_between(epochs, [r["low"] for r in told], [r["high"] for r in told], alpha=0.25, label="90% interval")
    left.set(xlabel="epoch", ylabel="mutual information of the views (nats)", title=result["config"]["objective"])
    left.axhline(result["infonce_limit"], color="grey", linestyle=":", label="InfoNCE can say no more")
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
    write(args.output / "result.json", json.dumps(result, indent=2))
    return result


def main(arguments: list[str] | None = None) -> None:
    """Run one objective, or compare all."""
    args = parse(arguments)
    try:
        if args.compare:
            report(table(sweep(run, args, "objective", list(PROJECTIONS)), "objective", COLUMNS), args)
            return
        result = run(args)
    except ValueError as error:
        raise SystemExit(f"contrastive.py: {error}") from error
    shared = f"{result['estimate']:.2f} nats between the views in the last epoch; " if "estimate" in result else ""
    print(
        f"linear probe, held-out accuracy: trained encoder {result['linear']:.1f}%, "
        f"untrained {result['linear_untrained']:.1f}%, raw pixels {result['linear_pixels']:.1f}%\n"
        f"nearest neighbours: {result['neighbours']:.1f}%, {result['neighbours_untrained']:.1f}%, "
        f"{result['neighbours_pixels']:.1f}%\n"
        f"{shared}{result['seconds']:.0f} s; plot, numbers and weights in {args.output}"
    )


if __name__ == "__main__":
    main()

"""Contrastive learning of an image encoder: maximise the mutual information between two views of each image.

    python recipes/contrastive.py                       # scikit-learn's digits, MISTCriterion
    python recipes/contrastive.py --loss infonce        # the usual baseline, same encoder and budget
    python recipes/contrastive.py --data fashion-mnist  # or the path of an ImageFolder

A linear probe, trained afresh on frozen features, judges the encoder beside itself untrained and raw pixels.
"""

import argparse
import copy
import csv
import io
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from data import Images, load_images, random_view
from matplotlib.figure import Figure
from pytorch_metric_learning.losses import SelfSupervisedLoss, SupConLoss
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from tqdm import tqdm

from mist_loss import MISTCriterion

PROBE_IMAGES = 5000  # of a large set: enough to compare encoders, and quick


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, fashion-mnist or the path of an ImageFolder")
    parser.add_argument("--loss", choices=("mist", "infonce"), default="mist")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=448, help="images a step: the rows of the estimate")
    parser.add_argument("--features", type=int, default=16, help="dimensions of the representation that is probed")
    parser.add_argument("--dim", type=int, default=8, help="dimensions of the projection that the loss sees")
    parser.add_argument("--noise", type=float, default=0.5, help="standard deviation of the noise on the projection")
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto (cuda or cpu), or any device torch knows")
    parser.add_argument("--output", type=Path, default=Path("runs/contrastive"))
    parser.add_argument("--smoke", action="store_true", help="three epochs, to see that everything works")
    args = parser.parse_args(arguments)
    if args.smoke:
        args.epochs = 3
    for name in ("epochs", "features", "dim"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.batch_size < 16:
        parser.error(f"--batch-size must be at least 16, got {args.batch_size}: an estimate needs rows")
    return args


def choose_device(name: str) -> torch.device:
    """The named device; auto is cuda where there is one, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def build_encoder(channels: int, features: int, width: int = 32) -> nn.Sequential:
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


def build_loss(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss of two views (b, dim): the mutual information, or InfoNCE at temperature 0.2.

    SupCon with one positive each is InfoNCE; that library's own NTXentLoss takes memory cubic in the batch.
    """
    return MISTCriterion() if name == "mist" else SelfSupervisedLoss(SupConLoss(temperature=0.2), symmetric=False)


@torch.no_grad()
def encode(encoder: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """Features of all images, in eval mode, on the CPU."""
    encoder.eval()
    return torch.cat([encoder(batch.to(device)).cpu() for batch in images.split(1000)])


def probe(encoder: nn.Module, images: Images, device: torch.device) -> float:
    """Accuracy in percent, on held-out images, of a fresh logistic regression on frozen features."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    train, labels = images.train[:PROBE_IMAGES], images.train_labels[:PROBE_IMAGES]
    classifier.fit(encode(encoder, train, device).numpy(), labels.numpy())
    return 100 * float(classifier.score(encode(encoder, images.test, device).numpy(), images.test_labels.numpy()))


def untrained_copy(encoder: nn.Module, images: Images, device: torch.device) -> nn.Module:
    """The encoder as it is, its batch normalisation fitted to the images: the fair thing to compare with."""
    calibrated = copy.deepcopy(encoder).train()
    with torch.no_grad():
        for _ in range(50):
            calibrated(images.train[torch.randperm(len(images.train))[:256]].to(device))
    return calibrated


def train(args: argparse.Namespace, images: Images, encoder: nn.Module, device: torch.device) -> list[dict]:
    """Train the encoder in place; returns a row of numbers for each epoch."""
    projector = build_projector(args.features, args.dim).to(device)
    criterion = build_loss(args.loss)
    if isinstance(criterion, nn.Module):
        criterion.to(device)
    parameters = [*encoder.parameters(), *projector.parameters()]
    batch_size = min(args.batch_size, len(images.train))
    steps = args.epochs * (len(images.train) // batch_size)
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, 10 * (step + 1) / steps) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    history = []
    with tqdm(total=steps, unit="step", desc=args.loss) as bar:
        for epoch in range(1, args.epochs + 1):
            encoder.train()
            order = torch.randperm(len(images.train))
            rows = []
            for index in order.split(batch_size)[: len(order) // batch_size]:
                batch = images.train[index].to(device)
                codes = projector(encoder(torch.cat([random_view(batch), random_view(batch)])))
                z1, z2 = (codes + args.noise * torch.randn_like(codes)).chunk(2)
                loss = criterion(z1, z2)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                rows.append(torch.stack(nats(criterion, loss, len(batch))).cpu())
                bar.update()
            estimate, low, high = torch.stack(rows).mean(0).tolist()
            row = {"epoch": epoch, "estimate": estimate, "low": low, "high": high}
            if epoch % max(1, args.epochs // 10) == 0 or epoch == args.epochs:
                row["probe"] = probe(encoder, images, device)
            bar.set_postfix(nats=f"{estimate:.2f}")
            history.append(row)
    return history


def nats(criterion: object, loss: Tensor, rows: int) -> list[Tensor]:
    """Estimate and 90% interval of the step, in nats; InfoNCE is a lower bound, log(rows) - loss, without one."""
    if isinstance(criterion, MISTCriterion):
        assert criterion.last is not None
        return [criterion.last.value, criterion.last.low, criterion.last.high]
    bound = torch.log(torch.tensor(float(rows))) - loss.detach().cpu()
    return [bound, bound, bound]


def draw(history: list[dict], result: dict, path: Path) -> None:
    """Plot estimate, interval and probe along training."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["estimate"] for row in history], label="estimate")
    left.fill_between(
        epochs, [r["low"] for r in history], [r["high"] for r in history], alpha=0.25, label="90% interval"
    )
    left.set(xlabel="epoch", ylabel="mutual information of the views (nats)", title=result["config"]["loss"])
    left.legend()
    probed = [row for row in history if "probe" in row]
    right.plot([row["epoch"] for row in probed], [row["probe"] for row in probed], "o-", label="trained encoder")
    right.axhline(result["probe_untrained"], color="grey", linestyle="--", label="untrained encoder")
    right.axhline(result["probe_pixels"], color="black", linestyle=":", label="raw pixels")
    right.set(xlabel="epoch", ylabel="linear probe, held-out accuracy (%)")
    right.legend()
    temporary = path.with_name("tmp-" + path.name)
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, path)


def write(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def main(arguments: list[str] | None = None) -> dict:
    """Train, probe and write plot, history and result; returns the result."""
    args = parse(arguments)
    device = choose_device(args.device)
    try:
        images = load_images(args.data)
    except ValueError as error:
        raise SystemExit(f"contrastive.py: {error}") from error
    args.output.mkdir(parents=True, exist_ok=True)
    if len(images.train) < 16:
        raise SystemExit(f"contrastive.py: expected at least 16 images to train on, got {len(images.train)}")
    torch.manual_seed(args.seed)
    encoder = build_encoder(images.train.shape[1], args.features).to(device)
    result: dict = {
        "config": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
        "probe_pixels": probe(nn.Flatten(), images, device),
        "probe_untrained": probe(untrained_copy(encoder, images, device), images, device),
    }
    start = time.perf_counter()
    history = train(args, images, encoder, device)
    result |= {
        "probe_trained": history[-1]["probe"],
        "estimate": {key: history[-1][key] for key in ("estimate", "low", "high")},
        "seconds": round(time.perf_counter() - start, 1),
    }
    write(args.output / "result.json", json.dumps(result, indent=2))
    keys = ["epoch", "estimate", "low", "high", "probe"]
    lines = [keys, *([row.get(key, "") for key in keys] for row in history)]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(lines)
    write(args.output / "history.csv", table.getvalue())
    draw(history, result, args.output / "curve.png")
    print(
        f"linear probe, held-out accuracy: trained encoder {result['probe_trained']:.1f}%, "
        f"untrained {result['probe_untrained']:.1f}%, raw pixels {result['probe_pixels']:.1f}%\n"
        f"last epoch: {history[-1]['estimate']:.2f} nats between the views; "
        f"{result['seconds']:.0f} s; plot and numbers in {args.output}"
    )
    return result


if __name__ == "__main__":
    main()

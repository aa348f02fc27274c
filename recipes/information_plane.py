"""Information plane: what the features of a classifier know of the image and of the class, along its training.

    python recipes/information_plane.py                     # digits
    python recipes/information_plane.py --data fashion-mnist --images 10000 --epochs 10
    python recipes/information_plane.py --noise 0.2         # a quieter channel lets more through

The features pass a channel: Gaussian noise of known size is added, or I(x; z) of a deterministic network would be
infinite (Saxe et al. 2018). Beside both estimates, with intervals, stands what can be known otherwise: for the
channel, I(x; z) of the images at hand is a mean of log density ratios, at most the logarithm of their number; for the
class, H(y) minus the cross entropy of a fresh probe is a lower bound of I(z; y), and H(y) an upper one.
"""

import argparse
import json
import math

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor, nn
from tqdm import tqdm

from common import (
    add_flags,
    amp,
    at_least,
    batches,
    load_checkpoint,
    number,
    parse_flags,
    save_checkpoint,
    save_figure,
    save_tensors,
    seconds,
    set_rate,
    settings,
    small_trunk,
    start,
    steps_an_epoch,
    write_metrics,
)
from data import Images, load_images
from mist_loss import estimate_mi
from mist_loss.files import write_text

ROWS = 1000  # of an estimate


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "information_plane", epochs=30, batch_size=128, lr=2e-3)
    parser.add_argument("--features", type=at_least(1), default=8, help="dimensions of z")
    parser.add_argument(
        "--embedding", type=at_least(1), default=32, help="principal components that stand for the image"
    )
    parser.add_argument("--noise", type=number(0), default=0.5, help="standard deviation of the noise on z")
    args = parse_flags(parser, arguments)
    if args.noise <= 0:
        parser.error(f"--noise must be positive, got {args.noise:g}: without it I(x; z) is infinite")
    if args.smoke:
        args.epochs, args.images = 2, min(args.images or 1024, 1024)
    return args


class Classifier(nn.Module):
    """Images (b, channels, h, w) to z (b, d), between -1 and 1, noise on it, and logits from that."""

    def __init__(self, channels: int, features: int, classes: int, noise: float):
        super().__init__()
        self.classes, self.noise = classes, noise
        self.encoder = nn.Sequential(small_trunk(channels), nn.Linear(1024, features), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (b, classes)."""
        z = self.encoder(images)
        return self.head(z + self.noise * torch.randn_like(z))


def principal_components(images: Tensor, dims: int) -> Tensor:
    """The first scores (n, dims) of the images' pixels: the embedding that stands for x."""
    pixels = images.flatten(1)
    left, values, _ = torch.pca_lowrank(pixels, q=min(dims, *pixels.shape), niter=4)
    return left * values


def channel_information(clean: Tensor, noisy: Tensor, noise: float) -> float:
    """I(x; z) in nats of n equally likely images through the Gaussian channel, by Monte Carlo: at most log n.

    The mean of log p(z | x) / p(z), where p(z) is the mixture over the images (Kolchinsky & Tracey 2017, arXiv
    1706.02419).
    """
    exponents = -torch.cdist(noisy.double(), clean.double()).square() / (2 * noise**2)
    return (exponents.diagonal() - exponents.logsumexp(1) + math.log(len(clean))).mean().item()


@torch.no_grad()
def measure(model: Classifier, images: Images, embedding: Tensor, device: torch.device) -> dict:
    """Estimates of I(x; z) and I(z; y) on the held-out images, with intervals, and what they are compared with."""
    model.eval()
    x, y = images.test[: len(embedding)].to(device), images.test_labels[: len(embedding)]
    clean = model.encoder(x).float().cpu()
    z = clean + model.noise * torch.randn_like(clean)
    of_image, of_class = estimate_mi(embedding, z), estimate_mi(z, F.one_hot(y, model.classes).float())
    share = y.bincount() / len(y)
    entropy = torch.special.entr(share).sum().item()
    half = len(z) // 2
    probe = LogisticRegression(max_iter=1000).fit(z[:half].numpy(), y[:half].numpy())
    error = log_loss(y[half:].numpy(), probe.predict_proba(z[half:].numpy()), labels=probe.classes_)
    row = {
        f"{name}_{key}": t.item()
        for name, e in (("image", of_image), ("class", of_class))
        for key, t in e._asdict().items()
    }
    row |= {"image_channel": channel_information(clean, z, model.noise)}
    row |= {"class_probe": entropy - error, "class_entropy": entropy}
    accuracy = (model.head(z.to(device)).argmax(1).cpu() == y).float().mean().item()
    return row | {"accuracy": 100 * accuracy}


def train(args: argparse.Namespace, images: Images, model: Classifier) -> list[dict]:
    """Train in place, from a checkpoint if asked; returns a row of numbers for the start and for each epoch."""
    # the test images come by class where a folder is read: take some of each
    order = torch.randperm(len(images.test), generator=torch.Generator().manual_seed(0))[:ROWS]
    images = images._replace(test=images.test[order], test_labels=images.test_labels[order])
    embedding = principal_components(images.test, args.embedding)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=1e-4)
    notes = load_checkpoint(args, model, [optimizer])
    history = notes["history"] if notes else [{"epoch": 0} | measure(model, images, embedding, args.device)]
    if args.compile:
        model.compile()
    n = len(images.train)
    per_epoch = steps_an_epoch(n, args.batch_size)
    for epoch in tqdm(range(len(history) - 1, args.epochs), unit="epoch", disable=None):
        model.train()
        losses = []
        for i, index in enumerate(batches(n, args.batch_size)):
            set_rate(optimizer, args.lr, (epoch + i / per_epoch) / args.epochs)
            with amp(args):
                logits = model(images.train[index].to(args.device))
            loss = F.cross_entropy(logits.float(), images.train_labels[index].to(args.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        row = {"epoch": epoch + 1, "loss": torch.stack(losses).mean().item()}
        history.append(row | measure(model, images, embedding, args.device))
        save_checkpoint(args, model, [optimizer], {"history": history})
    return history


def draw_plane(history: list[dict]) -> Figure:
    """The plane, coloured by epoch, and both estimates along training with what they are compared with."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    plane, image, label = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in history]
    x, y = ([row[f"{name}_value"] for row in history] for name in ("image", "class"))
    error = {
        name: [
            [max(0.0, sign * (row[f"{name}_{end}"] - row[f"{name}_value"])) for row in history]
            for end, sign in (("low", -1), ("high", 1))
        ]
        for name in ("image", "class")
    }
    plane.errorbar(x, y, xerr=error["image"], yerr=error["class"], fmt="none", ecolor="lightgrey", zorder=1)
    points = plane.scatter(x, y, c=epochs, zorder=2)
    figure.colorbar(points, ax=plane, label="epoch")
    plane.set(xlabel="I(x; z) in nats", ylabel="I(z; y) in nats", title="90% intervals in grey")
    for axis, name, others in (
        (image, "image", {"image_channel": "density ratios of the channel"}),
        (label, "class", {"class_probe": "lower bound of a probe", "class_entropy": "entropy of the class"}),
    ):
        axis.plot(epochs, [row[f"{name}_value"] for row in history], label="estimate")
        ends = ([row[f"{name}_{end}"] for row in history] for end in ("low", "high"))
        axis.fill_between(epochs, *ends, alpha=0.25, label="90% interval")
        for (key, title), style in zip(others.items(), ("--", ":"), strict=False):
            axis.plot(epochs, [row[key] for row in history], style, color="black", label=title)
        axis.set(xlabel="epoch", ylabel="nats", title={"image": "I(x; z)", "class": "I(z; y)"}[name])
        axis.legend()
    return figure


def run(args: argparse.Namespace) -> dict:
    """Train, measure and write the run's folder; returns the last row."""
    images = load_images(args.data)
    classes = int(images.train_labels.max()) + 1  # of all: the first so many may lack some
    images = images._replace(train=images.train[: args.images], train_labels=images.train_labels[: args.images])
    start(args)
    model = Classifier(images.train.shape[1], args.features, classes, args.noise).to(args.device)
    clock = seconds(args.device)
    history = train(args, images, model)
    result = {"config": settings(args), "seconds": round(seconds(args.device) - clock, 1)} | history[-1]
    save_tensors(args.output / "model.safetensors", model.state_dict(), settings(args))
    write_metrics(args.output / "metrics.csv", history)
    save_figure(draw_plane(history), args.output / "plane.png")
    write_text(args.output / "result.json", json.dumps(result, indent=2))
    return result


def main(arguments: list[str] | None = None) -> None:
    """Train a classifier and draw its information plane."""
    args = parse(arguments)
    try:
        result = run(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"information_plane.py: {error}") from error
    print(
        f"accuracy {result['accuracy']:.1f}% through the noise\n"
        f"I(x; z) = {result['image_value']:.2f} nats (90% {result['image_low']:.2f} to {result['image_high']:.2f}); "
        f"the channel's density ratios say {result['image_channel']:.2f}\n"
        f"I(z; y) = {result['class_value']:.2f} nats (90% {result['class_low']:.2f} to {result['class_high']:.2f}); "
        f"at least {result['class_probe']:.2f} by a probe, at most {result['class_entropy']:.2f}\n"
        f"figure and numbers in {args.output}"
    )


if __name__ == "__main__":
    main()

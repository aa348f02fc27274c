"""Invariance: features that say the class and share nothing with an attribute, which is a label.

    python recipes/invariance.py                                  # coloured digits, I(z; colour) minimised by MIST
    python recipes/invariance.py --data fashion-mnist --images 10000 --epochs 15
    python recipes/invariance.py --penalty adversary              # or another of penalties.py
    python recipes/invariance.py --compare --seeds 3 4 5          # all of them, as a table
    python recipes/invariance.py --tune                           # several weights of each, on seeds 0 to 2

The attribute enters the estimate as one-hot rows. A decoder gets features and attribute and rebuilds the image, so
that the features need not keep what the attribute says already; the penalty is what makes them drop it. A fresh probe,
trained afterwards on frozen features, says how much of it is left.
"""

import argparse

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from common import at_least, neural_probe, parse_flags, small_trunk, start
from factors import Factors, Part, draw, load_factors, sample
from mist_loss import estimate_mi
from penalised import Study, add_penalty_flags, carry_out, finish, fit, style_leak
from penalties import build_penalty

WEIGHTS = {
    "none": 0.0,
    "mist": 0.3,
    "club": 1.0,
    "mine": 3.0,
    "hsic": 10.0,
    "adversary": 3.0,
}
COLUMNS = {
    "attribute, above chance": "leak",
    "class": "task",
    "squared error": "reconstruction",
    "ms a step": "step_ms",
}
PROBE_IMAGES = 3000


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_penalty_flags(parser, "invariance", WEIGHTS)
    parser.add_argument("--features", type=at_least(1), default=16, help="dimensions of z")
    args = parse_flags(parser, arguments)
    if args.smoke:
        args.epochs, args.images = 2, min(args.images or 1024, 1024)
    return args


class Invariant(nn.Module):
    """Images (b, 3, h, w) to features (b, d), of unit variance before the noise on them; these to a class and back."""

    def __init__(self, shape: tuple[int, int, int], features: int, classes: int, attributes: int, noise: float):
        super().__init__()
        self.shape, self.attributes, self.noise = shape, attributes, noise
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
        """Features of the images: one draw of their noise, in training and afterwards."""
        features = self.encoder(images)
        return features + self.noise * torch.randn_like(features)

    def rebuild(self, features: Tensor, attribute: Tensor) -> Tensor:
        """Images (b, 3, h, w) in [0, 1] from features and the one-hot attribute."""
        return self.decoder(torch.cat([features, attribute], dim=1)).unflatten(1, self.shape)


def losses(model: Invariant, part: Part) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross entropy of the class, squared error, features and one-hot attribute of a batch."""
    features, attribute = model(part.images), F.one_hot(part.style, model.attributes).float()
    rebuilt = F.mse_loss(model.rebuild(features, attribute).float(), part.images)
    return F.cross_entropy(model.head(features).float(), part.content), rebuilt, features, attribute


@torch.no_grad()
def judge(model: Invariant, factors: Factors, device: torch.device) -> dict:
    """What fresh probes read from the features, in percent, the squared error, and the estimate of I(z; attribute)."""
    model.eval()
    seen, fresh = (sample(part, PROBE_IMAGES, device) for part in (factors.train, factors.test))
    one_hot = F.one_hot(fresh.style, factors.styles).float()
    z, fresh_z = (model(part.images).float() for part in (seen, fresh))
    error = F.mse_loss(model.rebuild(fresh_z, one_hot).float(), fresh.images).item()
    z, fresh_z = z.cpu(), fresh_z.cpu()
    seen, fresh = (Part(*(t.cpu() for t in part)) for part in (seen, fresh))
    return {
        "leak": style_leak(z, seen, fresh_z, fresh, factors.painted),
        "task": neural_probe(z, seen.content, fresh_z, fresh.content),
        "reconstruction": error,
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
    model = Invariant(shape, args.features, factors.contents, factors.styles, args.noise).to(args.device)
    sizes = (args.features, factors.styles, factors.contents, factors.styles)
    penalty = build_penalty(args.penalty, *sizes).to(args.device)
    history, step = fit(args, factors, model, penalty, losses)
    scores = judge(model, factors, args.device)
    return finish(args, model, history, step, scores, draw_attributes(model, factors, args.device), "attributes.png")


def main(arguments: list[str] | None = None) -> None:
    """Run one penalty, or several as a table."""
    args = parse(arguments)
    try:
        result = carry_out(args, Study(run, WEIGHTS, COLUMNS, ("leak",), ("task",)))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise SystemExit(f"invariance.py: {error}") from error
    if result is None:
        return
    value, low, high = result["shared_nats"]
    print(
        f"fresh probes, held-out accuracy: class {result['task']:.1f}%; "
        f"attribute {result['leak']:.1f} points above chance\n"
        f"squared error {result['reconstruction']:.4f}; {value:.2f} nats shared (90% {low:.2f} to {high:.2f}); "
        f"{result['step_ms']:.0f} ms a step; figure and numbers in {args.output}"
    )


if __name__ == "__main__":
    main()

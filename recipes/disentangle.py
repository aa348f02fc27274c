"""Disentanglement: an encoder with two branches, content and style, which should share nothing.

    python recipes/disentangle.py                                  # coloured digits, MIST minimises I(content; style)
    python recipes/disentangle.py --data fashion-mnist --images 10000 --epochs 15
    python recipes/disentangle.py --data path/to/emoji             # see factors.py
    python recipes/disentangle.py --penalty club                   # or another of penalties.py
    python recipes/disentangle.py --compare --seeds 3 4 5          # all of them, as a table
    python recipes/disentangle.py --tune                           # several weights of each, on seeds 0 to 2

Content is trained to say the class and style the colour, both together to rebuild the image. Nothing so far keeps
the colour out of the content, nor the class out of the style: that is the penalty's task. Fresh probes, trained
afterwards on frozen codes, say how much of the one is left in the other.

A code is a draw around what the encoder says, as in a variational autoencoder. Codes without noise share infinitely
many nats in principle, and hide in small variations what no penalty sees and every probe reads.
"""

import argparse

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from common import at_least, neural_probe, parse_flags, small_trunk, start
from factors import Factors, Part, load_factors, sample
from mist_loss import estimate_mi
from penalised import Study, add_penalty_flags, carry_out, chance, finish, fit, style_leak
from penalties import build_penalty

WEIGHTS = {
    "none": 0.0,
    "mist": 0.3,
    "mist-label": 0.3,
    "club": 1.0,
    "mine": 1.0,
    "hsic": 10.0,
    "adversary": 0.3,
}
LIGHTER = {"mist": 0.1, "mist-label": 0.1, "hsic": 5.0}  # on anything but the digits
COLUMNS = {
    "content in style, above chance": "leak_content",
    "style in content, above chance": "leak_style",
    "content in content": "content",
    "style in style": "style",
    "squared error": "reconstruction",
    "ms a step": "step_ms",
}
PROBE_IMAGES = 3000


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_penalty_flags(parser, "disentangle", WEIGHTS)
    parser.add_argument("--content", type=at_least(1), default=16, help="dimensions of the content")
    parser.add_argument("--style", type=at_least(1), default=8, help="dimensions of the style")
    args = parse_flags(parser, arguments)
    if args.smoke:
        args.epochs, args.images = 2, min(args.images or 1024, 1024)
    return args


class TwoBranches(nn.Module):
    """Images (b, 3, h, w) to content (b, c) and style (b, s), of unit variance before the noise on them, and back."""

    def __init__(self, shape: tuple[int, int, int], content: int, style: int, contents: int, styles: int, noise: float):
        super().__init__()
        self.shape, self.noise = shape, noise
        pixels = shape[0] * shape[1] * shape[2]
        self.trunk = small_trunk(3)
        self.to_content, self.to_style = (
            nn.Sequential(nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, d), nn.BatchNorm1d(d, affine=False))
            for d in (content, style)
        )
        self.content_head, self.style_head = nn.Linear(content, contents), nn.Linear(style, styles)
        self.decoder = nn.Sequential(nn.Linear(content + style, 256), nn.ReLU(), nn.Linear(256, pixels), nn.Sigmoid())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Content and style of the images: one draw of their noise, in training and afterwards."""
        hidden = self.trunk(images)
        content, style = self.to_content(hidden), self.to_style(hidden)
        return content + self.noise * torch.randn_like(content), style + self.noise * torch.randn_like(style)

    def rebuild(self, content: Tensor, style: Tensor) -> Tensor:
        """Images (b, 3, h, w) in [0, 1]."""
        return self.decoder(torch.cat([content, style], dim=1)).unflatten(1, self.shape)


def losses(model: TwoBranches, part: Part) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross entropy of both factors, squared error, content and style of a batch."""
    content, style = model(part.images)
    rebuilt = F.mse_loss(model.rebuild(content, style).float(), part.images)
    said = F.cross_entropy(model.content_head(content).float(), part.content)
    return said + F.cross_entropy(model.style_head(style).float(), part.style), rebuilt, content, style


@torch.no_grad()
def codes(model: TwoBranches, part: Part, device: torch.device) -> tuple[Part, Tensor, Tensor]:
    """PROBE_IMAGES images of a part, with their content and style, in eval mode, on the CPU."""
    model.eval()
    drawn = sample(part, PROBE_IMAGES, device)
    content, style = model(drawn.images)
    return Part(*(t.cpu() for t in drawn)), content.float().cpu(), style.float().cpu()


def judge(model: TwoBranches, factors: Factors, device: torch.device) -> dict:
    """What fresh probes read from each code, in percent, the squared error, and the mutual information of the codes."""
    (seen, content, style), (fresh, fresh_content, fresh_style) = (
        codes(model, part, device) for part in (factors.train, factors.test)
    )
    with torch.no_grad():
        rebuilt = model.rebuild(fresh_content.to(device), fresh_style.to(device)).float().cpu()
    shared = estimate_mi(fresh_content, fresh_style)
    return {
        "leak_content": neural_probe(style, seen.content, fresh_style, fresh.content) - chance(fresh.content),
        "leak_style": style_leak(content, seen, fresh_content, fresh, factors.painted),
        "content": neural_probe(content, seen.content, fresh_content, fresh.content),
        "style": neural_probe(style, seen.style, fresh_style, fresh.style),
        "reconstruction": F.mse_loss(rebuilt, fresh.images).item(),
        "shared_nats": [t.item() for t in shared],
    }


@torch.no_grad()
def draw_swaps(model: TwoBranches, factors: Factors, device: torch.device) -> Figure:
    """Content of the images on the left, style of those on the top: what the decoder makes of each pair."""
    part, content, style = codes(model, factors.test, device)
    rows = [int((part.content == k).nonzero()[0]) for k in part.content.unique()[:8]]
    columns = [int((part.style == k).nonzero()[0]) for k in part.style.unique()[:8]]
    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.subplots(len(rows) + 1, len(columns) + 1, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for j, column in enumerate(columns):
        axes[0, j + 1].imshow(part.images[column].permute(1, 2, 0))
        for i, row in enumerate(rows):
            axes[i + 1, 0].imshow(part.images[row].permute(1, 2, 0))
            pair = (content[row : row + 1].to(device), style[column : column + 1].to(device))
            axes[i + 1, j + 1].imshow(model.rebuild(*pair)[0].float().cpu().permute(1, 2, 0))
    figure.suptitle("content of the left, style of the top")
    return figure


def run(args: argparse.Namespace) -> dict:
    """Train, judge and write the run's folder; returns the result."""
    factors = load_factors(args.data, args.images)
    start(args)
    shape = (3, *factors.train.images.shape[2:])
    sizes = (args.content, args.style, factors.contents, factors.styles)
    model = TwoBranches(shape, *sizes, args.noise).to(args.device)
    penalty = build_penalty(args.penalty, *sizes).to(args.device)
    history, step = fit(args, factors, model, penalty, losses)
    scores = judge(model, factors, args.device)
    return finish(args, model, history, step, scores, draw_swaps(model, factors, args.device), "swaps.png")


def main(arguments: list[str] | None = None) -> None:
    """Run one penalty, or several as a table."""
    args = parse(arguments)
    try:
        weights = WEIGHTS if args.data == "digits" else WEIGHTS | LIGHTER
        result = carry_out(args, Study(run, weights, COLUMNS, ("leak_content", "leak_style"), ("content", "style")))
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise SystemExit(f"disentangle.py: {error}") from error
    if result is None:
        return
    value, low, high = result["shared_nats"]
    print(
        f"fresh probes, held-out accuracy: content {result['content']:.1f}%, style {result['style']:.1f}%; "
        f"above chance: content in style {result['leak_content']:.1f}, "
        f"style in content {result['leak_style']:.1f} points\n"
        f"squared error {result['reconstruction']:.4f}; {value:.2f} nats shared (90% {low:.2f} to {high:.2f}); "
        f"{result['step_ms']:.0f} ms a step; figure and numbers in {args.output}"
    )


if __name__ == "__main__":
    main()

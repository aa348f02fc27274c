"""Disentanglement: an encoder with two branches, content and style, which should share nothing.

    python recipes/disentangle.py                                  # coloured digits, MIST minimises I(content; style)
    python recipes/disentangle.py --data fashion-mnist --images 10000 --epochs 15
    python recipes/disentangle.py --data path/to/emoji             # see factors.py
    python recipes/disentangle.py --penalty club                   # or another of penalties.py
    python recipes/disentangle.py --compare --seeds 3 4 5          # all of them, as a table

Content is trained to say the class and style the colour, both together to rebuild the image. Nothing so far keeps
the colour out of the content, nor the class out of the style: that is the penalty's task. Fresh probes, trained
afterwards on frozen codes, say how much of the one is left in the other.
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
from factors import Factors, Part, draw, load_factors
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
    "content in style, above chance": "leak_content",
    "style in content, above chance": "leak_style",
    "content in content": "content",
    "style in style": "style",
    "squared error": "reconstruction",
    "ms a step": "step_ms",
}
PROBE_IMAGES = 4000


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "disentangle", epochs=60, batch_size=256, lr=3e-3)
    add_compare_flags(parser)
    parser.add_argument("--penalty", choices=PENALTIES, default="mist")
    parser.add_argument("--weight", type=float, default=None, help="of the penalty (default: see WEIGHTS)")
    parser.add_argument("--rebuild", type=float, default=10.0, help="weight of the squared error")
    parser.add_argument("--content", type=at_least(1), default=16, help="dimensions of the content")
    parser.add_argument("--style", type=at_least(1), default=8, help="dimensions of the style")
    args = parser.parse_args(arguments)
    if args.smoke:
        args.epochs, args.images = 2, 1024
    return args


class TwoBranches(nn.Module):
    """Images (b, 3, h, w) to content (b, c) and style (b, s), features of zero mean and unit variance, and back."""

    def __init__(self, shape: tuple[int, int, int], content: int, style: int, contents: int, styles: int):
        super().__init__()
        self.shape = shape
        pixels = shape[0] * shape[1] * shape[2]
        self.trunk = small_trunk(3)
        self.to_content, self.to_style = (
            nn.Sequential(nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, d), nn.BatchNorm1d(d, affine=False))
            for d in (content, style)
        )
        self.content_head, self.style_head = nn.Linear(content, contents), nn.Linear(style, styles)
        self.decoder = nn.Sequential(nn.Linear(content + style, 256), nn.ReLU(), nn.Linear(256, pixels), nn.Sigmoid())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Content and style of the images."""
        hidden = self.trunk(images)
        return self.to_content(hidden), self.to_style(hidden)

    def rebuild(self, content: Tensor, style: Tensor) -> Tensor:
        """Images (b, 3, h, w) in [0, 1]."""
        return self.decoder(torch.cat([content, style], dim=1)).unflatten(1, self.shape)


def train(args: argparse.Namespace, factors: Factors, model: TwoBranches) -> tuple[list[dict], float]:
    """Train in place, from a checkpoint if asked; returns a row of numbers for each epoch and the seconds a step."""
    weight = WEIGHTS[args.penalty] if args.weight is None else args.weight
    penalty = build_penalty(args.penalty, args.content, args.style, factors.contents, factors.styles).to(args.device)
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
            images, content_label, style_label = draw(factors.train, index, args.device)
            with amp(args):
                content, style = model(images)
                rebuilt = F.mse_loss(model.rebuild(content, style).float(), images)
                heads = F.cross_entropy(model.content_head(content).float(), content_label)
                heads = heads + F.cross_entropy(model.style_head(style).float(), style_label)
            content, style = content.float(), style.float()
            penalty.learn(content, style)
            shared = penalty(content, style, content_label, style_label)
            optimizer.zero_grad()
            (args.rebuild * rebuilt + heads + weight * shared).backward()
            optimizer.step()
            rows.append(torch.stack([heads, rebuilt, shared]).detach())
        spent += seconds(args.device) - clock
        values = torch.stack(rows).mean(0).tolist()
        history.append({"epoch": epoch + 1} | dict(zip(("heads", "rebuilt", "penalty"), values, strict=True)))
        if (epoch + 1) % max(1, args.epochs // 20) == 0 or epoch + 1 == args.epochs:
            save_checkpoint(args, both, optimizers, {"history": history, "seconds": spent})
    return history, spent / (args.epochs * per_epoch)


@torch.no_grad()
def codes(model: TwoBranches, part: Part, device: torch.device) -> tuple[Part, Tensor, Tensor]:
    """Up to PROBE_IMAGES images of a part, drawn once, with their content and style, in eval mode, on the CPU."""
    model.eval()
    drawn = draw(part, torch.randperm(len(part.images))[:PROBE_IMAGES], device)
    content, style = model(drawn.images)
    return Part(*(t.cpu() for t in drawn)), content.float().cpu(), style.float().cpu()


def judge(model: TwoBranches, factors: Factors, device: torch.device) -> dict:
    """What fresh probes read from each code, in percent, the squared error, and the mutual information of the codes."""
    (seen, *seen_codes), (fresh, *fresh_codes) = (codes(model, part, device) for part in (factors.train, factors.test))
    read = {
        f"{label} in {code}": neural_probe(x, getattr(seen, label), y, getattr(fresh, label))
        for code, x, y in zip(("content", "style"), seen_codes, fresh_codes, strict=True)
        for label in ("content", "style")
    }
    chance = {
        label: 100 * getattr(fresh, label).bincount().max().item() / len(fresh.images) for label in ("content", "style")
    }
    with torch.no_grad():
        rebuilt = model.rebuild(*(code.to(device) for code in fresh_codes)).float().cpu()
    shared = estimate_mi(fresh_codes[0], fresh_codes[1])
    return {
        "leak_content": read["content in style"] - chance["content"],
        "leak_style": read["style in content"] - chance["style"],
        "content": read["content in content"],
        "style": read["style in style"],
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
    model = TwoBranches(shape, args.content, args.style, factors.contents, factors.styles).to(args.device)
    history, step = train(args, factors, model)
    torch.manual_seed(args.seed)  # so that a resumed run is judged on the same images
    result = {"config": settings(args), "step_ms": 1000 * step} | judge(model, factors, args.device)
    save_tensors(args.output / "model.safetensors", model.state_dict(), settings(args))
    write_metrics(args.output / "metrics.csv", history)
    save_figure(draw_swaps(model, factors, args.device), args.output / "swaps.png")
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
        raise SystemExit(f"disentangle.py: {error}") from error
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

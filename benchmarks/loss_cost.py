"""What the criterion costs in a training step, beside one of ResNet-18, all in one run.

    python benchmarks/loss_cost.py --compile

Needs torchvision; --compile, which adds the criterion as torch.compile makes it, a C++ compiler and some minutes.
Forward and backward of the loss at 256 x 64 a side; a step of Adam on 256 x 3 x 32 x 32, with torchvision's stem, which
shrinks such images to 8 x 8 at once, and with the one for small images (3 x 3, no stride), as in
`recipes/contrastive.py`.
"""

import argparse
from collections.abc import Callable

import torch
from timing import seconds
from torch import nn
from torchvision.models import resnet18

from mist_loss import MISTCriterion, provenance


def loss_step(rows: int, dims: int, objective: str, compiled: bool) -> Callable[[], object]:
    """Forward and backward of the criterion on codes that share something."""
    criterion = MISTCriterion(objective=objective)
    if compiled:
        criterion.compile(fullgraph=True)
    x = torch.randn(rows, dims)
    y = (x + torch.randn(rows, dims)).requires_grad_()
    x.requires_grad_()
    return lambda: criterion(x, y).backward()


def network_step(rows: int, small_stem: bool) -> Callable[[], object]:
    """A training step of ResNet-18 on 32 x 32 images."""
    network = resnet18(num_classes=10)
    if small_stem:
        network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    optimizer = torch.optim.Adam(network.parameters())
    images, labels = torch.randn(rows, 3, 32, 32), torch.randint(10, (rows,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--dims", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="compiled as well")
    args = parser.parse_args()
    torch.manual_seed(0)
    losses = {
        f"{name}, compiled" if compiled else name: seconds(
            loss_step(args.rows, args.dims, name, compiled), args.repeats
        )
        for name in ("maximize", "minimize")
        for compiled in (False, True)[: 1 + args.compile]
    }
    stems = {"torchvision's stem": False, "stem for small images": True}
    steps = {name: seconds(network_step(args.rows, small), max(args.repeats // 5, 1)) for name, small in stems.items()}
    print(f"{torch.get_num_threads()} threads; {provenance.machine()}\n")
    print(f"| {args.rows} x {args.dims} | ms | {' | '.join(f'of ResNet-18, {name}' for name in steps)} |")
    print(f"| --- | --- |{' --- |' * len(steps)}")
    for name, time_of_loss in losses.items():
        shares = " | ".join(f"{time_of_loss / step:.1%}" for step in steps.values())
        print(f"| {name} | {1e3 * time_of_loss:.1f} | {shares} |")
    print(f"| a step of ResNet-18 | | {' | '.join(f'{1e3 * step:.0f} ms' for step in steps.values())} |")


if __name__ == "__main__":
    main()

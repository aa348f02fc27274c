"""Images with two labelled factors, content and style, for the recipes that pull them apart.

Coloured images: digits or Fashion-MNIST, painted on the fly; content is the class, style the colour. Emoji: content is
what is shown, style who drew it and in which skin tone.
"""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data import load_images, read_image

COLOURS = (
    torch.tensor(  # red, amber, lime, green, cyan, blue, violet, magenta; all as bright in their strongest channel
        [[1, 0, 0], [1, 0.75, 0], [0.5, 1, 0], [0, 1, 0.25], [0, 1, 1], [0, 0.25, 1], [0.5, 0, 1], [1, 0, 0.75]]
    )
)
TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")  # Unicode's modifiers of the skin tone


class Part(NamedTuple):
    """Images (n, 3, h, w) in [0, 1] with two labels each, (n,) int64 from 0.

    Grey images (n, 1, h, w) have no style yet: `draw` paints them anew each time, and `style` is unused.
    """

    images: Tensor
    content: Tensor
    style: Tensor


class Factors(NamedTuple):
    """A train and a test part, the number of values of each factor, and whether the style is painted at every look.

    Where it is not, every content comes once in each style, and some of these pairs are held out.
    """

    train: Part
    test: Part
    contents: int
    styles: int
    painted: bool


def load_factors(name: str, limit: int | None = None) -> Factors:
    """The set called `name`: "digits" or "fashion-mnist" to be painted, or the path of a folder of emoji.

    Args:
        name: of the set, as in `data.load_images`; a folder that holds others with emoji in them is read by `emoji`,
            any other is a folder of images to be painted.
        limit: keep only the first so many training images.

    Raises:
        ValueError: the images are not there; says how to get them.
    """
    if Path(name).is_dir() and next(Path(name).rglob(f"*-{TONES[0]}.png"), None):
        factors = emoji(Path(name))
    else:
        images = load_images(name)
        grey = (part.mean(1, keepdim=True) for part in (images.train, images.test))
        labels = (images.train_labels, images.test_labels)
        train, test = (Part(i, label, torch.zeros_like(label)) for i, label in zip(grey, labels, strict=True))
        factors = Factors(train, test, int(train.content.max()) + 1, len(COLOURS), painted=True)
    return factors._replace(train=Part(*(t[:limit] for t in factors.train)))


def draw(part: Part, index: Tensor, device: torch.device) -> Part:
    """The images of an index, on the device; grey ones in a random colour each, independent of their content."""
    images, content, style = (t[index].to(device) for t in part)
    if images.shape[1] == 3:
        return Part(images, content, style)
    style = torch.randint(len(COLOURS), style.shape, device=device)
    return Part(paint(images, style), content, style)


def sample(part: Part, size: int, device: torch.device) -> Part:
    """`size` images in random order: grey ones as often as it takes, painted anew each time, others once at most."""
    n = len(part.images)
    rounds = -(-size // n) if part.images.shape[1] == 1 else 1
    return draw(part, torch.cat([torch.randperm(n) for _ in range(rounds)])[:size], device)


def paint(images: Tensor, style: Tensor, jitter: float = 0.15) -> Tensor:
    """Grey images (b, 1, h, w) in the colours (b,), each a little off: (b, 3, h, w)."""
    colour = COLOURS.to(images)[style]
    colour = (colour + jitter * (2 * torch.rand_like(colour) - 1)).clamp(0, 1)
    return images * colour[:, :, None, None]


def emoji(path: Path, size: int = 32) -> Factors:
    """Emoji that every vendor drew in all five skin tones, a fifth of the pairs of content and style held out.

    Args:
        path: one subfolder a vendor, as in the img/ folder of the npm packages emoji-datasource-twitter and -google;
            a file is named by its code points, the skin tone among them (1f44b-1f3fd.png).
        size: height and width in pixels, on a white ground.

    Raises:
        ValueError: fewer than two emoji with all tones of all vendors.
    """
    files: dict[str, dict[tuple[str, str], Path]] = defaultdict(dict)
    for file in sorted(path.rglob("*.png")):
        points = file.stem.split("-")
        tones = [point for point in points if point in TONES]
        if len(tones) == 1 and len(points) > 1:  # one person in one tone, and not the patch of the tone itself
            vendor = file.relative_to(path).parts[0]
            files["-".join(point for point in points if point not in TONES)][vendor, tones[0]] = file
    vendors = sorted({vendor for found in files.values() for vendor, _ in found})
    styles = [(vendor, tone) for vendor in vendors for tone in TONES]
    complete = [found for _, found in sorted(files.items()) if len(found) == len(styles)]
    if len(complete) < 2:  # a probe is asked about contents it has not seen
        raise ValueError(
            f"expected at least two emoji in {len(TONES)} skin tones, one subfolder a vendor, in {path}: put "
            "img/twitter and img/google of the npm packages emoji-datasource-twitter and emoji-datasource-google there"
        )
    images = torch.stack([read_image(found[style], size) for found in complete for style in styles])
    content = torch.arange(len(complete)).repeat_interleave(len(styles))
    style = torch.arange(len(styles)).repeat(len(complete))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out, kept = order.tensor_split([len(order) // 5])
    train, test = (Part(images[index], content[index], style[index]) for index in (kept, held_out))
    return Factors(train, test, len(complete), len(styles), painted=False)

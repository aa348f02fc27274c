"""Images for the recipes: whole sets as tensors in [0, 1], split into train and test, and their random views.

The recipes' images are small, so a set is held in memory and augmented a batch at a time, on the device it is on.
"""

import gzip
import shutil
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision.datasets import FashionMNIST, ImageFolder
from torchvision.transforms import v2

from mist_loss.files import replacing

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


class Images(NamedTuple):
    """A labelled set of images, split once. Images are float32 in [0, 1], labels int64 from 0."""

    train: Tensor  # (n, channels, height, width)
    train_labels: Tensor  # (n,)
    test: Tensor  # (m, channels, height, width)
    test_labels: Tensor  # (m,)


def load_images(name: str, root: Path = Path("data"), size: int = 32) -> Images:
    """The images called `name`: "digits", "fashion-mnist", or the path of a folder of images.

    Args:
        name: "digits" (1,797 of 8x8, part of scikit-learn), "fashion-mnist" (70,000 of 28x28) or a path.
        root: where Fashion-MNIST lies, or is put.
        size: height and width that the images of a folder are cropped and resized to, in pixels.

    Raises:
        ValueError: the images are not there, and could not be had; says how to get them.
    """
    if name == "digits":
        return digits()
    if name == "fashion-mnist":
        return fashion_mnist(root)
    return image_folder(Path(name), size)


def digits() -> Images:
    """scikit-learn's copy of the UCI handwritten digits: 1,438 to train, 359 to test, the same ones every time."""
    bunch = load_digits()
    return _split(torch.tensor(bunch.images).float().div(16).unsqueeze(1), torch.tensor(bunch.target))


def fashion_mnist(root: Path, packaged: Path = DEBIAN_FASHION_MNIST) -> Images:
    """Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): 60,000 to train, 10,000 to test.

    Read from `root`/FashionMNIST/raw, torchvision's own place. What is missing there is unpacked from Debian's
    package (`packaged`) if that is installed, or else downloaded.
    """
    raw = root / "FashionMNIST" / "raw"
    for archive in sorted(packaged.glob("*-ubyte.gz")):
        if not (raw / archive.stem).exists():
            _unpack(archive, raw / archive.stem)
    try:
        train, test = (FashionMNIST(str(root), train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"Fashion-MNIST is not in {raw}, not in {packaged}, and could not be downloaded ({_first_line(error)}). "
            f"Put its four *-ubyte files into {raw}, or install Debian's package dataset-fashion-mnist, "
            "or run where there is internet once."
        ) from error
    return Images(_as_float(train.data), train.targets.long(), _as_float(test.data), test.targets.long())


def image_folder(path: Path, size: int) -> Images:
    """A folder of images, one subfolder a class, as torchvision's ImageFolder reads it.

    With `path`/train and `path`/test (or val) these are the two parts; otherwise a fifth of each class is held out.
    """
    if not path.is_dir():
        raise ValueError(
            f"expected 'digits', 'fashion-mnist' or the path of a folder of images, got '{path}', which is no folder"
        )
    held_out = [path / part for part in ("test", "val") if (path / part).is_dir()]
    if (path / "train").is_dir() and held_out:
        train, test = _read_folder(path / "train", size), _read_folder(held_out[0], size)
        if train[2] != test[2]:
            raise ValueError(
                f"expected the same classes in {path / 'train'} and {held_out[0]}, got {train[2]} and {test[2]}"
            )
        # a folder lists its images by class; whoever takes the first few wants some of each
        order = torch.randperm(len(train[1]), generator=torch.Generator().manual_seed(0))
        return Images(train[0][order], train[1][order], test[0], test[1])
    images, labels, classes = _read_folder(path, size)
    rarest = int(labels.bincount().min())
    if len(classes) < 2 or rarest < 2:
        raise ValueError(
            f"expected at least two classes of at least two images in {path}, got {len(classes)} with {rarest} in the "
            "smallest; there is one subfolder a class, or train/ and test/ with one subfolder a class in each"
        )
    return _split(images, labels)


def read_image(path: Path, size: int) -> Tensor:
    """An image file on a white ground, cropped to a square and resized: (3, size, size) in [0, 1]."""
    image = Image.open(path).convert("RGBA")
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    return _square(size)(ground.convert("RGB")).float().div(255)


def _read_folder(path: Path, size: int) -> tuple[Tensor, Tensor, list[str]]:
    try:
        folder = ImageFolder(str(path), transform=_square(size))
    except FileNotFoundError as error:
        raise ValueError(f"expected one subfolder a class with images in it in {path}: {_first_line(error)}") from error
    images = torch.stack([cast(Tensor, image) for image, _ in folder])
    return images.float().div(255), torch.tensor(folder.targets), folder.classes


def _square(size: int) -> v2.Compose:
    rgb = v2.Lambda(lambda image: image.convert("RGB"))
    return v2.Compose([rgb, v2.PILToTensor(), v2.Resize(size), v2.CenterCrop(size)])


def _split(images: Tensor, labels: Tensor) -> Images:
    """A fifth of each class held out, the same fifth whatever the seed of the training is."""
    held_out = max(len(labels) // 5, len(labels.unique()))
    kept, out = train_test_split(range(len(labels)), test_size=held_out, stratify=labels, random_state=0)
    return Images(images[kept], labels[kept], images[out], labels[out])


def _as_float(images: Tensor) -> Tensor:
    return images.float().div(255).unsqueeze(1)


def _unpack(archive: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as part, part.open("wb") as unpacked, gzip.open(archive) as packed:
        shutil.copyfileobj(packed, unpacked)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def random_view(images: Tensor) -> Tensor:
    """A random view of each image, with its own draw: moved, smeared in contrast, partly erased, noisy.

    Nothing is mirrored: a mirrored digit is another sign. Meant for small images of one thing, on a plain ground.

    Args:
        images: (b, channels, height, width) in [0, 1].

    Returns:
        Tensor of the same shape, dtype, device and range.
    """
    view = random_affine(images)
    view = random_contrast(view)
    view = random_erase(view)
    return (view + 0.1 * torch.rand_like(view[:, :1, :1, :1]) * torch.randn_like(view)).clamp(0, 1)


def random_affine(images: Tensor, degrees: float = 20, scale: float = 0.2, shear: float = 0.2, shift: float = 0.25):
    """Each image turned, scaled, sheared and moved; what comes into view is the edge's colour.

    Args:
        images: (b, channels, height, width).
        degrees: greatest angle, either way.
        scale, shear: greatest relative change of size, and greatest shear.
        shift: greatest move, relative to half the image's side (0.25 is one pixel in eight).
    """
    uniform = torch.rand(6, len(images), device=images.device, dtype=images.dtype) * 2 - 1
    angle = uniform[0] * torch.pi * degrees / 180
    cos, sin, lean = angle.cos(), angle.sin(), uniform[1] * shear
    wide, high = 1 + uniform[2] * scale, 1 + uniform[3] * scale
    rows = [
        torch.stack([wide * cos, wide * (lean * cos - sin), uniform[4] * shift], dim=-1),
        torch.stack([high * sin, high * (lean * sin + cos), uniform[5] * shift], dim=-1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def random_contrast(images: Tensor, contrast: float = 0.4, brightness: float = 0.1) -> Tensor:
    """Each image's contrast about its mean multiplied by 1 +- `contrast`, and +- `brightness` added."""
    uniform = torch.rand(2, len(images), 1, 1, 1, device=images.device, dtype=images.dtype) * 2 - 1
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (1 + uniform[0] * contrast) + uniform[1] * brightness


def random_erase(images: Tensor, largest: float = 0.5) -> Tensor:
    """In each image a box of a random place and size, its sides up to `largest` of the image's, set to the mean."""
    b, _, height, width = images.shape
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    inside = _random_span(b, height, largest, images)[:, :, None] & _random_span(b, width, largest, images)[:, None, :]
    return torch.where(inside[:, None], mean, images)


def _random_span(b: int, length: int, largest: float, like: Tensor) -> Tensor:
    """(b, length) of bool: a run of pixels at most `largest` of the length, anywhere."""
    start, extent = torch.rand(2, b, 1, device=like.device, dtype=like.dtype)
    extent = extent * largest
    place = (torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) / length
    start = start * (1 - extent)
    return (place >= start) & (place < start + extent)

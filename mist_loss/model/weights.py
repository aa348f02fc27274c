"""Weights in and out: safetensors with the configuration and provenance in the header, checked by sha256.

Nothing here executes code from a file, and nothing falls back to random weights.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
import textwrap
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mist_loss.files import replacing, write_text
from mist_loss.model import hub

if TYPE_CHECKING:
    from mist_loss.model.network import MIST

FORMAT = "mist-loss-1"
# sizes that may be 0, and are where a file does not say
OPTIONAL = ("mixed_pairs", "independent_pairs", "near_pairs", "feature_pairs", "source_pairs")
TOLD = ("repeats", "normal", "balls", "intrinsic")  # flags, likewise
LOOK_WIDTH = 64  # where a file does not say
WEIGHTS, CHECKSUM = "model.safetensors", "model.safetensors.sha256"  # of a folder

# name -> (file in the pretrained folder, sha256)
REGISTRY: dict[str, tuple[str, str]] = {
    "mist-base": ("mist-base.safetensors", "8d311d51a94753957331c33546e58d097f01efabaac48c5b6374cc06e18d4c2f"),
    "mist-paper": ("mist-paper.safetensors", "9d1811d307564482d144491298060b98b8fc3b241412d4c5f11ae46fb7a9586d"),
}


def save_weights(model: "MIST", path: str | Path, provenance: dict) -> str:
    """Write a model with its configuration and where it comes from; return the sha256 of the file.

    Args:
        model: the estimator.
        path: of the .safetensors file; written under a temporary name and renamed.
        provenance: JSON-serialisable: command, seed, commit, measured errors.

    Raises:
        ValueError: what no one could load: a provenance that is no dictionary or not JSON, weights that are not finite.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if not isinstance(provenance, dict):
        raise ValueError(f"expected provenance as a dictionary, got {type(provenance).__name__}")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise ValueError(f"expected finite weights, got NaN or infinity in {name}: the training has diverged")
    try:
        told = json.dumps(provenance)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected provenance as JSON can hold it, got something else: {error}") from error
    header = {"format": FORMAT, "config": json.dumps(dataclasses.asdict(model.config)), "provenance": told}
    write(path, model.state_dict(), header)
    return sha256(path)


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write a safetensors file: under a temporary name, then renamed.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        with replacing(path) as temporary:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, header)
    except (OSError, SafetensorError) as error:
        advice = "make room, or give a folder that can be written to"
        raise OSError(f"cannot write {path} ({error}): {advice}") from error


def save_folder(model: "MIST", folder: str | Path, provenance: dict | None = None) -> Path:
    """Write a folder that ``load`` reads and that can be pushed as it is: the weights and their checksum.

    Args:
        model: the estimator.
        folder: made if it does not exist; files of the same names are replaced.
        provenance: as for ``save_weights``.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digest = save_weights(model, folder / WEIGHTS, provenance or {})
    write_text(folder / CHECKSUM, f"{digest}  {WEIGHTS}\n")  # as sha256sum writes it, and checks it with -c
    return folder


def push(model: "MIST", repository: str, private: bool = True, provenance: dict | None = None) -> str:
    """Push a model to the Hugging Face Hub; return the address to load it from, OWNER/NAME@COMMIT.

    Raises:
        ValueError: the repository is not called OWNER/NAME.
        ModuleNotFoundError: the extra ``hub`` is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        return hub.push(save_folder(model, folder, provenance), repository, private)


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pretrained_folder() -> Path:
    """Where the bundled weights lie: inside the installed package, or beside it in a checkout."""
    installed = Path(str(resources.files("mist_loss"))) / "pretrained"
    return installed if installed.is_dir() else installed.parent.parent / "pretrained"


def load(source: str | Path) -> "MIST":
    """Load the weights that ``find`` finds, in eval mode.

    Raises:
        ValueError: an unknown name, or a file that is not what it should be.
        FileNotFoundError: the file is missing.
        ModuleNotFoundError: an address on the Hub without the extra ``hub``, adapted weights without ``flows``.
    """
    return _read(find(source))


def find(source: str | Path) -> Path:
    """The file of some weights, its hash checked where one is known.

    Args:
        source: a registered name; the path of a .safetensors file, and of its checksum too if FILE.sha256 lies beside
            it; a folder that ``save_folder`` wrote; or OWNER/NAME@COMMIT, such a folder on the Hugging Face Hub,
            cached by huggingface_hub.

    Raises:
        ValueError: an unknown name, or a file that is not what it should be.
        FileNotFoundError: the file is missing, or the Hub has no such repository or cannot be reached.
        ModuleNotFoundError: an address on the Hub without the extra ``hub``.
    """
    if not isinstance(source, str | os.PathLike):
        raise ValueError(
            f"expected the name, path or address of weights, or a MIST, got {type(source).__name__}: "
            "of a MISTCriterion give criterion.model"
        )
    name = str(source)
    if name in REGISTRY:
        file_name, digest = REGISTRY[name]
        path = pretrained_folder() / file_name
        if not path.is_file():
            raise FileNotFoundError(f"the weights of {name!r} are missing: expected {path}; install mist-loss again")
        return _checked(path, digest, f"the released {name!r}", "install mist-loss again")
    path = Path(name)
    if path.is_dir():
        return _find_in(path)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise FileNotFoundError(f"no weights at {path}: give an existing file or one of {sorted(REGISTRY)}")
        checksum = path.with_name(f"{path.name}.sha256")
        return _checked_by(checksum, path) if checksum.is_file() else path
    if path.is_file():
        raise ValueError(f"expected a .safetensors file, got {path}: others are not read, since they may hold code")
    if hub.is_address(name):
        return _find_in(hub.fetch(name, (WEIGHTS, CHECKSUM)))
    raise ValueError(
        f"expected one of {sorted(REGISTRY)}, the path of a .safetensors file, an existing folder or OWNER/NAME@COMMIT "
        f"on the Hugging Face Hub, got {name!r}"
    )


def _find_in(folder: Path) -> Path:
    for file_name in (WEIGHTS, CHECKSUM):
        if not (folder / file_name).is_file():
            run = folder / "weights.safetensors"  # the folder of a run of adapt or pretrain
            hint = f"; give {run}" if run.is_file() else ""
            raise FileNotFoundError(f"no {file_name} in {folder}: expected a folder that save_pretrained wrote{hint}")
    return _checked_by(folder / CHECKSUM, folder / WEIGHTS)


def _checked_by(checksum: Path, path: Path) -> Path:
    digest = checksum.read_text(encoding="utf-8", errors="replace")[:64]
    return _checked(path, digest, f"what {checksum.name} beside it stands for", "delete both, copy them again")


def _checked(path: Path, digest: str, what: str, remedy: str) -> Path:
    found = sha256(path)
    if found != digest:
        raise ValueError(f"{path} is not {what}: sha256 {found}, expected {digest}; {remedy}")
    return path


def describe(source: str | Path) -> dict[str, Any]:
    """Name, file, size, hash, number of parameters, configuration and provenance of some weights.

    Raises:
        ValueError, FileNotFoundError, ModuleNotFoundError: as ``load``.
    """
    path = find(source)
    parameters = sum(p.numel() for p in _read(path).parameters())
    facts = {"name": str(source), "file": str(path), "bytes": path.stat().st_size, "sha256": sha256(path)}
    return facts | {"parameters": parameters, "format": FORMAT} | read_header(path)


def read_header(path: str | Path) -> dict:
    """Configuration and provenance of a weight file.

    Raises:
        ValueError: the file is not a safetensors file of this package's format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}); fetch or save it again") from error
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {header.get('format')!r}, this version of mist-loss reads {FORMAT!r}: "
            "install the version that the file was saved with, or save it with this one"
        )
    try:
        parts = {key: json.loads(header[key]) for key in ("config", "provenance")}
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} has a broken header ({error!r}); fetch or save it again") from error
    if not all(isinstance(part, dict) for part in parts.values()):
        raise ValueError(f"{path} has a broken header (no objects); fetch or save it again")
    return parts


def _read(path: Path) -> "MIST":
    from mist_loss.model.network import MIST, MISTConfig

    # networks from before there was a kind of token have never seen one
    unsaid: dict[str, Any] = dict.fromkeys(OPTIONAL, 0) | dict.fromkeys(TOLD, False) | {"look_width": LOOK_WIDTH}
    fields = unsaid | read_header(path)["config"]
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    try:
        config = MISTConfig(**fields)
    except TypeError as error:  # a field of a later version
        raise ValueError(f"{path} does not fit this version of mist-loss: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} has a broken configuration ({error}); fetch or save it again") from error
    try:
        with torch.device("meta"):  # sizes are compared before memory is asked for, and no random number is drawn
            model = MIST(config)
        with safe_open(path, framework="pt") as file:
            # copies: the file may be replaced while the model is in use
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - not a dict
        model.load_state_dict(tensors, strict=True, assign=True)
        model.float()  # before the numbers are looked at: what float64 holds may be infinite in float32
    except (TypeError, ValueError, RuntimeError, ArithmeticError, IndexError, AttributeError, SafetensorError) as error:
        reason = textwrap.shorten(str(error), 240, placeholder=" ...")  # torch has a line for every tensor
        raise ValueError(f"{path} does not fit this version of mist-loss: {reason}") from error
    # the coordinates of an adapted estimator hold positions of features, and have checked them
    state = model.state_dict()
    numbers = {key: t for key, t in state.items() if t.is_floating_point() or key.startswith("coordinates.")}
    bad = [key for key in state if key not in numbers or not numbers[key].isfinite().all()]
    if bad:
        names = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        raise ValueError(f"{path} has values that are no finite numbers in {names}; fetch or save it again")
    return model.eval()

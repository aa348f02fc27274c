"""Weights in and out: safetensors with the configuration and provenance in the header, a registry of names with sha256.

Nothing here executes code from a file, and nothing falls back to random weights.
"""

import dataclasses
import hashlib
import json
import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

if TYPE_CHECKING:
    from mist_loss.model.network import MIST

FORMAT = "mist-loss-1"

# name -> (file in the pretrained folder, sha256)
REGISTRY: dict[str, tuple[str, str]] = {
    "mist-base": ("mist-base.safetensors", "c44abd07194e1051386c6b3118590cb60a1b663d190a7c66c73f32aa6dd6b56c"),
}


def save_weights(model: "MIST", path: str | Path, provenance: dict) -> str:
    """Write a model with its configuration and where it comes from; return the sha256 of the file.

    Args:
        model: the estimator.
        path: of the .safetensors file; written under a temporary name and renamed.
        provenance: JSON-serialisable: command, seed, commit, measured errors.
    """
    path = Path(path)
    header = {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(model.config)),
        "provenance": json.dumps(provenance),
    }
    temporary = path.with_name(path.name + ".tmp")
    save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, temporary, header)
    os.replace(temporary, path)
    return sha256(path)


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pretrained_folder() -> Path:
    """Where the bundled weights lie: inside the installed package, or beside it in a checkout."""
    installed = Path(str(resources.files("mist_loss"))) / "pretrained"
    return installed if installed.is_dir() else installed.parent.parent / "pretrained"


def load(name_or_path: str | Path) -> "MIST":
    """Load a registered name, or a .safetensors file written by ``save_weights``, in eval mode.

    Raises:
        ValueError: an unknown name, or a file that is not what it should be.
        FileNotFoundError: the file is missing.
    """
    return _read(find(name_or_path))


def find(name_or_path: str | Path) -> Path:
    """The file of a registered name, its hash checked, or the given path.

    Raises:
        ValueError: an unknown name, or a file that is not what it should be.
        FileNotFoundError: the file is missing.
    """
    name = str(name_or_path)
    if name in REGISTRY:
        file_name, digest = REGISTRY[name]
        path = pretrained_folder() / file_name
        if not path.is_file():
            raise FileNotFoundError(f"the weights of {name!r} are missing: expected {path}; install mist-loss again")
        found = sha256(path)
        if found != digest:
            raise ValueError(
                f"{path} is not the released {name!r}: sha256 {found}, expected {digest}; install mist-loss again"
            )
    else:
        path = Path(name)
        if path.suffix != ".safetensors":
            raise ValueError(f"expected one of {sorted(REGISTRY)} or the path of a .safetensors file, got {name!r}")
        if not path.is_file():
            raise FileNotFoundError(f"no weights at {path}: give an existing file or one of {sorted(REGISTRY)}")
    return path


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
        raise ValueError(f"{path} has format {header.get('format')!r}, expected {FORMAT!r}: save it with this version")
    return {"config": json.loads(header["config"]), "provenance": json.loads(header["provenance"])}


def _read(path: Path) -> "MIST":
    from mist_loss.model.network import MIST, MISTConfig

    fields: dict[str, Any] = read_header(path)["config"]
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    try:
        with torch.random.fork_rng(devices=[]):  # building the network must not move the user's random numbers
            model = MIST(MISTConfig(**fields)).float()  # whatever the default dtype is
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        model.load_state_dict(tensors, strict=True)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit this version of mist-loss: {error}") from error
    return model.eval()

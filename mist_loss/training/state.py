"""The state of a run in one safetensors file: written under a temporary name and renamed, read without running code."""

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mist_loss.model import weights


def save(
    path: Path,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    header: dict,
    more: dict[str, Tensor],
) -> None:
    """Write weights, averaged weights, AdamW moments, more tensors under their names, and a JSON header.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = more | {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for name, parameter in _trained(model):
        moments = optimizer.state[parameter]
        tensors |= {f"{key}.{name}": value for key, value in moments.items()}
    weights.write(path, tensors, {"header": json.dumps(header)})


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """A saved state, to read from.

    Raises:
        ValueError: the file is damaged, or no such state.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = textwrap.shorten(str(error), 240, placeholder=" ...")
        raise ValueError(f"{path} is not the state of a run that can go on ({reason}): move it away") from error


def read_header(path: Path) -> dict:
    """The JSON header of a saved state.

    Raises:
        ValueError: as ``opened``.
    """
    with opened(path) as file:
        return json.loads(file.metadata()["header"])


def read(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, without it.

    Raises:
        ValueError: as ``opened``.
    """
    with opened(path) as file:
        return {key[len(prefix) :]: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118


def load(path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Restore what ``save`` wrote, strictly, and return the header.

    Raises:
        ValueError: as ``opened``.
    """
    with opened(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        header = json.loads(file.metadata()["header"])
        names = [name for name, _ in _trained(model)]
        moments = {name: {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")} for name in names}
        for prefix, module in (("model.", model), ("average.", average)):
            module.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    for name, parameter in _trained(model):  # out of the above, since a full GPU is not the file's fault
        optimizer.state[parameter] = {
            # AdamW keeps its step counter on the CPU
            key: value.to("cpu" if key == "step" else parameter.device)
            for key, value in moments[name].items()
        }
    return header

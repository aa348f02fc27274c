"""Weights that no optimiser finds."""

from torch import nn


def freeze_own(module: nn.Module) -> list[str]:
    """Turn the parameters of a module, not those of its children, into buffers of the same names; returns the names."""
    names = []
    for name, weight in list(module.named_parameters(recurse=False)):
        delattr(module, name)
        module.register_buffer(name, weight.detach())
        names.append(name)
    return names


def freeze(module: nn.Module) -> None:
    """Turn the parameters of a module and all below it into buffers: they are saved, moved and copied as before."""
    for part in module.modules():
        freeze_own(part)

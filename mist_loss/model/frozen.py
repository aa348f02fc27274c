"""Weights that no optimiser finds."""

from collections.abc import Iterable

from torch import nn


def freeze(module: nn.Module) -> None:
    """Turn the parameters of a module and all below it into buffers: they are saved, moved and copied as before."""
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, weight.detach())
            # the part itself remembers, so that copies can be thawed as well
            part.__dict__.setdefault("_frozen_names", []).append(name)


def thaw(module: nn.Module, kept: Iterable[nn.Module] = ()) -> None:
    """Turn what ``freeze`` made buffers into parameters again, but for what is kept and all below it."""
    left = {part for root in kept for part in root.modules()}
    for part in module.modules():
        for name in () if part in left else part.__dict__.pop("_frozen_names", []):
            weight = getattr(part, name)
            delattr(part, name)
            part.register_parameter(name, nn.Parameter(weight))

"""What compilers and other devices ask of eager code."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def constant_result(function: F) -> F:
    """Let ``torch.compile`` call a function while it traces, and take what it returned for a constant.

    What ``torch.compiler.assume_constant_result`` does, which imports torch._dynamo, and with it would more than double
    the time of ``import mist_loss``. The mark is what it leaves; tests of compiled criteria fail without it.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def may_look(x: Tensor) -> bool:
    """Whether code may branch on values of x, which would stall any device but the CPU, and break a compiled graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()

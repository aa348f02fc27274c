"""Checks of what the user passes in, shared by all that takes samples or options; what lies below trusts its input."""

import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

MIN_ROWS = 4  # fewer rows, centred and scaled, leave nothing to estimate from
LARGEST_WEIGHT = 1e6  # of what is added to a gradient: far beyond any use, and within single precision
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def as_tensor(sample: Tensor | np.ndarray) -> Tensor:
    """An array, or what becomes one (a data frame, JAX), as a tensor; anything else is left to later checks.

    Raises:
        ValueError: an array that is masked or whose numbers torch does not know.
    """
    if hasattr(sample, "__array__") and not isinstance(sample, (Tensor, np.ndarray)):
        sample = np.asarray(sample)
    if not isinstance(sample, np.ndarray):
        return sample
    refuse_masked("an array", sample)
    if sample.dtype.kind not in "biufc" or sample.dtype.itemsize > 8:
        raise ValueError(
            f"expected an array of floating-point numbers, got dtype {sample.dtype}: use .astype(float), for labels "
            "indicators (pandas.get_dummies)"
        )
    # a native, positive-stride, writable copy: torch shares memory with no other kind
    return torch.from_numpy(sample.astype(sample.dtype.newbyteorder("="), order="C"))


def as_floats(name: str, sample: Any) -> np.ndarray:
    """An array-like of numbers as float64; nothing that NumPy would turn into numbers without a word.

    Raises:
        ValueError: masked, sparse or complex, times, text, cells that are missing or no numbers.
    """
    refuse_masked(name, sample)
    if hasattr(sample, "toarray"):
        raise ValueError(f"expected {name} as a dense array, got a sparse one: give .toarray()")
    try:
        array = np.asarray(sample.detach().cpu().double() if isinstance(sample, Tensor) else sample)
        columns = getattr(sample, "dtypes", ()) if array.ndim == 2 else ()  # of a data frame; of a series it is one
        kinds = {array.dtype.kind, *(dtype.kind for dtype in columns if hasattr(dtype, "kind"))}
        for kind, what in (("m", "time spans"), ("M", "times"), ("S", "bytes"), ("U", "text")):
            if kind in kinds:
                raise TypeError(what)
        if array.dtype.kind == "O" and any(isinstance(cell, str | bytes) for cell in array.flat):
            raise TypeError("text")
        return np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"expected {name} of numbers, got something else ({error}): drop rows with missing values, give times as "
            "numbers and labels as indicators, move tensors to a real device and make them dense"
        ) from error


def refuse_masked(name: str, sample: Any) -> None:
    """Arrays whose mask or imaginary part a conversion would drop without a word.

    Raises:
        ValueError: it is one.
    """
    if isinstance(sample, np.ma.MaskedArray):
        raise ValueError(f"expected {name} without a mask: leave out rows with missing values, then give .data")
    if sample.is_complex() if isinstance(sample, Tensor) else np.iscomplexobj(sample):
        raise ValueError(f"expected {name} of floats, got complex numbers: give real and imaginary parts as columns")


def paired_sets(x: Tensor, y: Tensor, min_rows: int = MIN_ROWS) -> tuple[Tensor, Tensor, bool]:
    """Check two paired samples, and give both the form (b, n, d) and one dtype, float32 or float64.

    Args:
        x: (n, dx) or (b, n, dx), floating point.
        y: (n, dy) or (b, n, dy) on the same device; its dtype may differ.
        min_rows: fewest rows to accept.

    Returns:
        x, y, and whether they came as one set.

    Raises:
        ValueError: no dense tensor, an integer, boolean or complex dtype, wrong rank, an empty sample, different
            numbers of rows or of sets, fewer than min_rows rows, different devices, no values (device "meta").
    """
    for name, sample in (("x", x), ("y", y)):
        _check_sample(name, sample)
    if x.ndim != y.ndim:
        raise ValueError(
            f"expected x and y both of shape (n, d) or both (b, n, d), got {tuple(x.shape)} and {tuple(y.shape)}: "
            "give the one set a leading dimension of 1, or pass as many sets on the other side"
        )
    if x.shape[:-1] != y.shape[:-1]:
        what = "rows" if x.shape[-2] != y.shape[-2] else "sets"
        raise ValueError(
            f"expected as many {what} in x as in y, got shapes {tuple(x.shape)} and {tuple(y.shape)}: "
            "row i of x and row i of y must be one joint observation"
        )
    check_rows(x.shape[-2], min_rows)
    if x.device != y.device:
        raise ValueError(f"expected x and y on one device, got {x.device} and {y.device}: move one with .to()")
    if x.is_meta:
        raise ValueError("expected x and y with values, got tensors on 'meta': move what makes them to a real device")
    # at least single precision: in half of it gradients of several terms overflow where they are added up
    common = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = x.to(common), y.to(common)
    return (x, y, False) if x.ndim == 3 else (x[None], y[None], True)


def check_rows(rows: int, least: int = MIN_ROWS) -> None:
    """Enough rows to estimate from.

    Raises:
        ValueError: there are fewer.
    """
    if rows < least:
        raise ValueError(
            f"expected at least {least} rows, got {rows}: give more of them, in training by a larger batch or by rows "
            "from several steps or processes"
        )


def _check_sample(name: str, sample: Tensor) -> None:
    if not isinstance(sample, Tensor):
        raise ValueError(
            f"expected {name} to be a tensor, got {type(sample).__name__}: convert it with torch.as_tensor"
        )
    if sample.dtype not in DTYPES:
        raise ValueError(
            f"expected {name} in float16, bfloat16, float32 or float64, got {sample.dtype}: make labels indicators "
            f"with torch.nn.functional.one_hot({name}[:, 0].long()).float() or pandas.get_dummies, counts and booleans "
            f"floats with {name}.float(), of an array or a data frame {name}.astype(float), split complex numbers with "
            "torch.view_as_real"
        )
    if sample.layout != torch.strided or sample.is_nested:
        if sample.is_nested:
            raise ValueError(f"expected {name} as a dense tensor, got a nested one: give the parts of {name}.unbind()")
        raise ValueError(f"expected {name} as a dense tensor, got {sample.layout}: convert it with {name}.to_dense()")
    if sample.ndim not in (2, 3):
        raise ValueError(
            f"expected {name} of shape (n, d), or (b, n, d) for b sets, got {tuple(sample.shape)}: "
            f"a single feature is {name}[:, None], a feature map {name}.flatten(1)"
        )
    if sample.numel() == 0:
        raise ValueError(f"expected {name} with at least one value, got shape {tuple(sample.shape)}: it is empty")


def finite_sets(x: Tensor, y: Tensor) -> Tensor:
    """(b,) True where both samples (b, n, d) of a set are finite; waits for nothing."""
    return torch.isfinite(x).all(2).all(1) & torch.isfinite(y).all(2).all(1)


def require_finite(x: Tensor, y: Tensor) -> None:
    """Wait for the values and refuse NaN and infinity.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    for name, sample in (("x", x), ("y", y)):
        bad = int((~torch.isfinite(sample)).sum())
        if bad:
            raise ValueError(
                f"expected finite values, got {bad} of {sample.numel()} NaN or infinite in {name}: drop those rows "
                "from x and y, or look for the overflow upstream (half precision, learning rate)"
            )


def is_number(value: Any) -> bool:
    """Whether it is a real number, NumPy's among them, and no truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_level(name: str, level: float) -> float:
    """A level strictly between 0 and 1.

    Raises:
        ValueError: it is not.
    """
    if not is_number(level) or not 0 < level < 1:
        raise ValueError(f"expected {name} as a number strictly between 0 and 1, got {level!r}: 0.9 stands for 90%")
    return float(level)


def check_weight(name: str, weight: float) -> float:
    """A number from 0 to LARGEST_WEIGHT.

    Raises:
        ValueError: it is not.
    """
    if not is_number(weight) or not 0 <= weight <= LARGEST_WEIGHT:
        raise ValueError(
            f"expected {name} as a number between 0 and {LARGEST_WEIGHT:g}, got {weight!r}: 0 leaves it out"
        )
    return float(weight)


def check_flag(name: str, flag: bool) -> bool:
    """True or False.

    Raises:
        ValueError: it is neither; a word such as "False" would count as true.
    """
    if not isinstance(flag, bool):
        raise ValueError(f"expected {name} to be True or False, got {flag!r}")
    return flag


def check_count(name: str, count: int, most: int | None = None) -> int:
    """A whole number from 1 to most, what the model reads; None is no limit.

    Raises:
        ValueError: it is not.
    """
    whole = isinstance(count, numbers.Integral) and not isinstance(count, bool)
    if not whole or count < 1 or (most is not None and count > most):
        limit = "of at least 1" if most is None else f"between 1 and {most}, which the model reads"
        raise ValueError(f"expected {name} as a whole number {limit}, got {count!r}")
    return int(count)


def check_choice(name: str, value: str, choices: Iterable[str]) -> str:
    """One of several words.

    Raises:
        ValueError: it is none of them.
    """
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"expected {name} to be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value

"""How weights are fitted, whatever the problems: AdamW, a warm-up and half a cosine, averaged weights."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mist_loss.training.stream import GROUPS, STEPS
from mist_loss.validation import is_number


@dataclass(frozen=True)
class OptimisationConfig:
    """Settings that pretraining and fine-tuning share.

    steps: of the optimiser. groups: of problems a step, for each process. lr: the largest step size. warmup: steps
    until it is reached. weight_decay: of AdamW. clip: norm that gradients are cut to. average: decay of the exponential
    average of the weights. precision: "no" for float32, "bf16" for autocast. seed: of the stream of problems.
    """

    steps: int
    lr: float
    warmup: int
    average: float
    groups: int = 4
    weight_decay: float = 1e-3
    clip: float = 1.0
    precision: str = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        require_within("steps", self.steps, STEPS - 1)
        require_within("groups", self.groups, GROUPS)
        require_within("warmup", self.warmup, STEPS - 1)
        for name in ("lr", "weight_decay", "clip", "average"):
            if not is_number(getattr(self, name)):
                raise ValueError(f"{name} must be a number, got {getattr(self, name)!r}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite and not negative, got {self.weight_decay}")
        if not self.clip > 0:
            raise ValueError(f"clip must be positive, got {self.clip}: inf does not clip")
        if not 0 <= self.average < 1:
            raise ValueError(f"average must be at least 0 and below 1, got {self.average}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in 0 to 2^63 - 1, got {self.seed}: negative ones are of validation")
        if self.precision not in ("no", "bf16"):
            raise ValueError(f"precision must be 'no' or 'bf16', got {self.precision!r}")


def require_within(name: str, value: int, limit: int) -> None:
    """Refuse a number that is not in 1 to limit, the room that the stream's numbering has.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, int) or not 1 <= value <= limit:
        raise ValueError(f"{name} must be a whole number in 1 to {limit}, got {value!r}")


def require_finite(norm: Tensor, step: int) -> None:
    """Stop a run that diverges before a step spoils its weights, and then the state that was saved of them.

    Raises:
        ValueError: the norm of the gradient, which all processes share, is not finite.
    """
    if not norm.isfinite():
        raise ValueError(
            f"expected a finite gradient at step {step}, got the norm {norm.item()}: lower lr, in another folder; "
            "a state that was saved before is kept"
        )


def learning_rate(config: OptimisationConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to a thousandth."""
    warm = min(1.0, (step + 1) / config.warmup)
    return config.lr * warm * (0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


def exponential_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Exponential moving average that is a plain one at first, so that the random start is soon forgotten."""
    return lambda average, current, count: torch.lerp(average, current, max(1 - decay, 9 / (9 + int(count))))

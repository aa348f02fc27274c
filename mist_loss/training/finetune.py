"""Fine-tuning a copy of an estimator on problems of any source: resumable at any step."""

import copy
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.optim.swa_utils import AveragedModel

from mist_loss.meta.families import Problem
from mist_loss.model.network import MIST
from mist_loss.seeding import seeded
from mist_loss.training import state
from mist_loss.training.losses import departure, relative_loss
from mist_loss.training.optimisation import OptimisationConfig, exponential_average, learning_rate, require_finite
from mist_loss.training.stream import draw_seed

if TYPE_CHECKING:
    from mist_loss.flows.pushed import PushedProblem


@dataclass(frozen=True)
class FinetuneConfig(OptimisationConfig):
    """What determines the weights, besides the problems."""

    steps: int = 130
    lr: float = 2e-4
    warmup: int = 10
    average: float = 0.97


def finetune(
    model: MIST,
    draw: Callable[[int, int], "Problem | PushedProblem"],
    config: FinetuneConfig,
    state_path: Path | None = None,
    header: dict | None = None,
    checkpoint_minutes: float = 1.0,
    progress: bool = False,
    parent: MIST | None = None,
    kept: int = 0,
) -> None:
    """Train ``model`` in place, or go on where an interrupted run stopped, and leave it averaged and in eval mode.

    Args:
        model: whose parameters are trained.
        draw: step and index to a group of problems, from torch's global generator, which is seeded by both.
        config: how it is trained.
        state_path: of the state to resume from, a safetensors file; None keeps no state.
        header: what makes the run, JSON: a state with another header is not gone on with.
        checkpoint_minutes: between two saves of the state.
        progress: show a bar.
        parent: where the model comes from; not changed. None: the model as it is at the start.
        kept: the first so many groups of a step also hold the model to what its parent says, see ``departure``.

    Raises:
        ValueError: the state is that of another run, or the run diverges.
    """
    device = model.vector_mean.device
    header = (header or {}) | {"finetune": dataclasses.asdict(config), "kept": kept}
    parent = copy.deepcopy(model if parent is None else parent).eval().requires_grad_(False)
    average = AveragedModel(model, avg_fn=exponential_average(config.average))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.98))
    start = 0
    if state_path is not None and state_path.exists():
        saved = state.read_header(state_path)
        differing = sorted(key for key in header if saved.get(key) != header[key])
        if differing:
            raise ValueError(
                f"{state_path.parent} holds another run (its {', '.join(differing)} differ): "
                "use the same data and settings to go on, or another folder to start afresh"
            )
        state.load(state_path, model, average, optimizer)
        start = saved["step"]

    saved_at = time.monotonic()
    with _bar(config.steps, start, progress) as bar, torch.enable_grad():
        for step in range(start, config.steps):
            for settings in optimizer.param_groups:
                settings["lr"] = learning_rate(config, step)
            model.train()
            total = 0.0
            for index in range(config.groups):
                with seeded(draw_seed(config.seed, step, 0, index), device), torch.no_grad():
                    x, y, mi, *normal = draw(step, index)
                with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                    knots = model(x, y, *normal)
                loss = relative_loss(knots.float(), mi).mean()
                if index < kept:
                    loss = loss + departure(knots.float(), parent(x, y)).mean()
                (loss / config.groups).backward()
                total += loss.item() / config.groups
            require_finite(torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip), step + 1)
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
            done = step + 1
            bar.update()
            bar.set_postfix(loss=f"{total:.4f}", refresh=False)
            due = done == config.steps or time.monotonic() - saved_at > 60 * checkpoint_minutes
            if state_path is not None and due:
                state.save(state_path, model, average, optimizer, header | {"step": done}, {})
                saved_at = time.monotonic()
    model.load_state_dict(average.module.state_dict())
    model.eval()


def _bar(steps: int, start: int, progress: bool):
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('fine-tuning needs tqdm: pip install "mist-loss[flows]"') from error
    return tqdm(total=steps, initial=start, disable=not progress, unit="step", mininterval=5)

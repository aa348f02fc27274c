"""Pretraining: streamed problems, AdamW with a cosine schedule, averaged weights, resumable at any step.

The first reading is what is trained. Together with a second look it learns to make up for what the look moves, and
measures nothing any more, while its gradient is what a criterion follows. ``mist-loss look`` fits the look afterwards.

One process or several: ``torchrun`` and ``accelerate launch`` work as they do for any accelerate program.
"""

import argparse
import csv
import dataclasses
import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mist_loss import provenance
from mist_loss.criterion import PULL, PUSH
from mist_loss.files import replacing, write_text
from mist_loss.meta.families import Problem
from mist_loss.meta.mixtures import MIXTURES
from mist_loss.model import quantiles
from mist_loss.model.network import MIST, MISTConfig
from mist_loss.model.weights import find, save_weights, sha256
from mist_loss.parting import parting
from mist_loss.pulling import pulling
from mist_loss.training import state
from mist_loss.training.adversaries import INDEX, VISITS, WEIGHT, Adversaries
from mist_loss.training.losses import pinball, relative_loss
from mist_loss.training.optimisation import (
    OptimisationConfig,
    exponential_average,
    learning_rate,
    require_finite,
    require_within,
)
from mist_loss.training.pools import Codes, Pool
from mist_loss.training.stream import GROUPS, SHARED, STEPS, VERSION, group

VALIDATION_SEED = -1  # of the stream of fixed problems; no run may use it
NORMALIZATION_STEP = STEPS - 1  # of the stream; its groups fix the normalisation constants


@dataclass(frozen=True)
class PretrainConfig(OptimisationConfig):
    """What determines the weights: with the number of processes, the same configuration gives the same run."""

    steps: int = 6000
    lr: float = 1e-3
    warmup: int = 200
    average: float = 0.999
    mixture: str = "broader"
    normalization_groups: int = 96
    adversaries: bool = False
    parent: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixture not in MIXTURES:
            raise ValueError(f"mixture must be one of {sorted(MIXTURES)}, got {self.mixture!r}")
        require_within("normalization_groups", self.normalization_groups, GROUPS * SHARED)
        if self.adversaries:  # visits are numbered as steps are, and draw beside the groups
            require_within("steps", self.steps, (STEPS - 1) // VISITS)
            require_within("groups", self.groups, INDEX)


class FirstReading(nn.Module):
    """A network that is not adapted, less its second look."""

    def __init__(self, network: MIST):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Quantiles (b, KNOTS) for x (b, n, dx) and y (b, n, dy)."""
        return self.network.first_reading(x, y)


def validation_problems(config: PretrainConfig, device: torch.device, count: int) -> list[Problem]:
    """Fixed groups of problems that no run trains on."""
    mixture = MIXTURES[config.mixture]
    return [group(mixture, VALIDATION_SEED, i, 0, 0, device) for i in range(count)]


@torch.no_grad()
def validate(model: nn.Module, problems: list[Problem]) -> dict[str, float]:
    """Squared error by rows, pinball loss and coverage of the 90% interval of the fixed problems."""
    rows, errors, losses, inside = [], [], [], []
    for x, y, mi in problems:
        knots = model(x, y)
        rows.append(torch.full_like(mi, x.shape[1]))
        errors.append((quantiles.mean(knots) - mi).square())
        losses.append(pinball(knots, mi))
        inside.append((quantiles.quantile(knots, 0.05) <= mi) & (mi <= quantiles.quantile(knots, 0.95)))
    n, squares = torch.cat(rows), torch.cat(errors)
    result = {"pinball": torch.cat(losses).mean().item(), "coverage90": torch.cat(inside).float().mean().item()}
    for low, high in ((10, 100), (100, 300), (300, 1000), (1000, 4097)):
        chosen = squares[(n >= low) & (n < high)]
        result[f"mse_{low}_{high}"] = chosen.mean().item() if len(chosen) else math.nan
    return result


def resist(model: nn.Module, pool: Pool, codes: Codes) -> Tensor:
    """Predictions (b, KNOTS) for the codes of adversaries, which take their own step up or down the estimate."""
    x, y = (side.detach().requires_grad_() for side in codes[:2])
    knots = model(x, y).float()
    climbed = quantiles.mean(knots).sum()
    if pool.trial.guided:
        climbed = climbed + guidance(pool, x, y)
    dx, dy = torch.autograd.grad(climbed, (x, y), retain_graph=True)
    pool.step(codes[:2], (dx, dy))
    return knots


def guidance(pool: Pool, x: Tensor, y: Tensor) -> Tensor:
    """Zero, with the gradient that a criterion adds to that of the estimates: its pull upwards, its push downwards."""
    up, down = pool.sign > 0, pool.sign < 0
    total = x.new_zeros(())
    if up.any():
        total = total - up.sum() * pulling(x[up], y[up], PULL)
    if down.any():
        total = total + down.sum() * parting(x[down], y[down], PUSH)
    return total


def pretrain(
    config: PretrainConfig,
    output: Path,
    checkpoint_minutes: float = 4.0,
    validate_every: int = 250,
    validation_groups: int = 48,
    architecture: Callable[[MISTConfig], MIST] = MIST,
) -> Path:
    """Train, or go on training where an interrupted run in ``output`` stopped, and return the path of the weights.

    Files in ``output``: state.safetensors (to resume), log.csv, curve.png, weights.safetensors (averaged weights).

    Args:
        config: what is trained.
        output: folder of the run.
        checkpoint_minutes: between two saves of the state.
        validate_every: steps between validations.
        validation_groups: groups of fixed problems to validate on.
        architecture: makes the network that is trained where there is no parent.

    Raises:
        ValueError: the folder holds a run with another configuration, nothing is validated, or the run diverges.
        ModuleNotFoundError: the ``train`` extra is not installed.
    """
    require_within("validate_every", validate_every, STEPS)
    require_within("validation_groups", validation_groups, STEPS)
    try:
        import matplotlib  # noqa: F401 - a long run must not end in a missing library
        from accelerate import Accelerator
        from accelerate.utils import broadcast
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'pretraining needs {error.name}: pip install "mist-loss[train]"') from error
    accelerator = Accelerator(mixed_precision=config.precision)
    device, rank, main = accelerator.device, accelerator.process_index, accelerator.is_main_process
    output.mkdir(parents=True, exist_ok=True)
    state_path, log_path = output / "state.safetensors", output / "log.csv"

    mixture = MIXTURES[config.mixture]
    torch.manual_seed(config.seed)
    if config.parent is None:
        network = architecture(MISTConfig(rows=mixture.rows, dims=mixture.dims)).to(device)
        fixed = [
            group(mixture, config.seed, NORMALIZATION_STEP, i // GROUPS, i % GROUPS, device)
            for i in range(config.normalization_groups)
        ]
        network.fit_normalization([network.summarize(x, y) for x, y, _ in fixed])
    else:
        parent = MIST.from_pretrained(config.parent)
        more = MISTConfig(rows=mixture.rows, dims=mixture.dims)
        sizes = {name: getattr(parent.config, name) for name in ("width", "set_width", "row_pairs", "pair_width")}
        if parent.second_look is not None:
            sizes["look_width"] = parent.config.look_width
        network = parent.widened(dataclasses.replace(more, **sizes)).to(device).train()
    if network.second_look is not None:  # that of a parent belongs to another first reading
        network.second_look.requires_grad_(False).begin()
    average = AveragedModel(network, avg_fn=exponential_average(config.average))
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.98))
    header: dict[str, Any] = {
        "config": dataclasses.asdict(config),
        "processes": accelerator.num_processes,
        "stream": VERSION,
    }
    if config.parent is not None:
        header["parent_sha256"] = sha256(find(config.parent))
    start, sets_seen, seconds, cpu_seconds, running = 0, 0, 0.0, 0.0, math.nan
    if state_path.exists():
        saved = state.read_header(state_path)
        found = {key: saved.get(key) for key in header}
        if found != header:
            raise ValueError(
                f"{output} holds a run with {found}, asked for {header}: "
                "use the same settings to go on, or another folder to start afresh"
            )
        state.load(state_path, network, average, optimizer)
        start, sets_seen = saved["step"], saved["sets"]
        seconds, cpu_seconds = saved["seconds"], saved["cpu_seconds"]
        running = saved["loss"]
    if main:
        _drop_rows_after(log_path, start)
    adversaries = Adversaries(config.seed, rank, device, VISITS * start) if config.adversaries else None
    if adversaries and start:
        shards = state.read(state_path, "adversaries.")
        adversaries.load({name: shard[rank] for name, shard in shards.items()})
    model, optimizer = accelerator.prepare(FirstReading(network), optimizer)
    problems = validation_problems(config, device, validation_groups) if main else []
    averaged = FirstReading(cast(MIST, average.module))

    def save(step: int) -> None:
        progress = {
            "step": step,
            "sets": sets_seen,
            "seconds": round(seconds + time.monotonic() - began),
            "cpu_seconds": round(cpu_seconds + time.process_time()),  # of this process
            "loss": running,
        }
        encoders = adversaries.state() if adversaries else {}
        # Adam counts its steps on the CPU, which nccl does not gather from
        shards = {f"adversaries.{name}": accelerator.gather(t[None].to(device)) for name, t in encoders.items()}
        if main:
            state.save(state_path, network, average, optimizer.optimizer, header | progress, shards)

    began = saved_at = time.monotonic()
    with tqdm(total=config.steps, initial=start, disable=not main, unit="step", mininterval=5) as bar:
        for step in range(start, config.steps):
            for settings in optimizer.param_groups:
                settings["lr"] = learning_rate(config, step)
            losses = []
            # every group counts the same, or problems with many rows, drawn in small groups, would hardly count
            share = 1 / (config.groups + VISITS * WEIGHT * config.adversaries)
            visits = range(VISITS * step, VISITS * (step + 1))
            for pool, codes in map(adversaries.codes, visits) if adversaries else ():
                with accelerator.no_sync(model):
                    knots = resist(model, pool, codes)
                    loss = relative_loss(knots, codes.low, codes.high).mean() * WEIGHT * share
                    # the codes need no gradient of the loss, and it would be the dearest part
                    accelerator.backward(loss, inputs=trained)
                losses.append(loss.detach())
                sets_seen += len(codes.low) * accelerator.num_processes
            for index in range(config.groups):
                x, y, mi = group(mixture, config.seed, step, rank, index, device)
                last = index == config.groups - 1
                with nullcontext() if last else accelerator.no_sync(model):
                    loss = relative_loss(model(x, y).float(), mi).mean() * share
                    accelerator.backward(loss)
                losses.append(loss.detach())
                sets_seen += len(mi) * accelerator.num_processes
            require_finite(accelerator.clip_grad_norm_(model.parameters(), config.clip), step + 1)
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(network)
            total = torch.stack(losses).sum().item()
            running = total if math.isnan(running) else 0.98 * running + 0.02 * total
            bar.update()
            bar.set_postfix(loss=f"{running:.4f}", refresh=False)
            done = step + 1
            if main and (done % validate_every == 0 or done == config.steps):
                elapsed = round(seconds + time.monotonic() - began)
                _log(
                    log_path,
                    {"step": done, "sets": sets_seen, "seconds": elapsed, "loss": running}
                    | validate(averaged, problems),
                )
            due = torch.tensor([time.monotonic() - saved_at > 60 * checkpoint_minutes or done == config.steps])
            if adversaries:  # every process has encoders to save, so all ask the main one's clock
                due = broadcast(due.to(device))
            if due and (main or adversaries):
                save(done)
                saved_at = time.monotonic()
    weights = output / "weights.safetensors"
    if main:
        finished = state.read_header(state_path)
        origin = finished | {"commit": provenance.commit(), "torch": torch.__version__}
        network.load_state_dict(average.module.state_dict())
        save_weights(network, weights, origin)
        if log_path.exists():
            plot_curve(log_path, output / "curve.png")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return weights


def _log(path: Path, row: dict[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def _drop_rows_after(path: Path, step: int) -> None:
    """Forget what an interrupted run logged after its last checkpoint, since those steps are taken again.

    And a line that a kill tore; a log of no rows is removed.
    """
    if not path.exists():
        return
    text = path.read_text()
    head, *rows = text[: text.rfind("\n") + 1].splitlines() or [""]
    kept = [row for row in rows if row.count(",") == head.count(",") and int(row.split(",")[0]) <= step]
    if not kept:
        path.unlink()
        return
    write_text(path, "\n".join([head, *kept]) + "\n")


def plot_curve(log_path: Path, figure_path: Path) -> None:
    """Draw the training loss and the validation errors of a log."""
    from matplotlib.figure import Figure

    with log_path.open() as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    sets = [float(row["sets"]) for row in rows]
    for name in rows[0]:
        if name in ("loss", "pinball") or name.startswith("mse"):
            axes.plot(sets, [float(row[name]) for row in rows], label=name)
    axes.set(xlabel="sets seen", yscale="log", title="loss and errors (nats, nats²) on fixed validation sets")
    axes.legend()
    with replacing(figure_path) as temporary:
        figure.savefig(temporary, dpi=120)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mist-loss pretrain``: one for each field of PretrainConfig."""
    for field in dataclasses.fields(PretrainConfig):
        kind = str if field.default is None else type(field.default)
        option = f"--{field.name.replace('_', '-')}"
        if kind is bool:
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=kind, default=field.default)
    parser.add_argument("--output", type=Path, required=True, help="folder of the run; an interrupted run goes on")
    parser.add_argument("--checkpoint-minutes", type=float, default=4.0)
    parser.add_argument("--validate-every", type=int, default=250)
    parser.add_argument("--validation-groups", type=int, default=48)


def main(args: argparse.Namespace) -> int:
    """Run ``mist-loss pretrain``."""
    config = PretrainConfig(**{f.name: getattr(args, f.name) for f in dataclasses.fields(PretrainConfig)})
    path = pretrain(config, args.output, args.checkpoint_minutes, args.validate_every, args.validation_groups)
    print(json.dumps({"weights": str(path)}))
    return 0

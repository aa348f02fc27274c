"""Fit the second look alone (``mist_loss.model.second_look``), on first readings of weights that stay as they are.

What it looks at is small. So problems are drawn and read once, in parts that are kept, and fitted to many times over.
"""

import argparse
import csv
import dataclasses
import io
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from mist_loss import provenance
from mist_loss.estimate import LEVEL, interval
from mist_loss.files import write_text
from mist_loss.meta.mixtures import MIXTURES
from mist_loss.model import quantiles
from mist_loss.model.network import MIST, MISTConfig
from mist_loss.model.weights import TOLD, find, save_weights, sha256, write
from mist_loss.seeding import seeded
from mist_loss.training import state
from mist_loss.training.losses import relative_loss
from mist_loss.training.optimisation import require_within
from mist_loss.training.stream import GROUPS, STEPS, VERSION, group
from mist_loss.validation import is_number

MOST_PARTS = 4096  # torch.multinomial draws from no more than 2^24 sets
HELD_OUT = 16  # of so many parts, one is not fitted to
REPORTS = 10  # rows of the log
NOTHING = 1e-6  # nats; sets that share less count as independent
EVEN = 0.25  # power of the rows by which dependent sets are drawn


@dataclass(frozen=True)
class LookConfig:
    """What determines the weights.

    parent: name or file of the weights. mixture, seed: of the problems. parts: of 32 groups of problems each.
    independent: share of a batch that is of independent sets; 0: as rows alone have it. width: of the second look,
    if the weights have none. steps, batch, lr, weight_decay: of AdamW, with half a cosine.

    Raises:
        ValueError: a value out of its range, or an unknown mixture.
    """

    parent: str
    mixture: str = "broader"
    seed: int = 0
    parts: int = 64
    independent: float = 0.2
    width: int = 256
    steps: int = 30000
    batch: int = 512
    lr: float = 2e-3
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        if self.mixture not in MIXTURES:
            raise ValueError(f"mixture must be one of {sorted(MIXTURES)}, got {self.mixture!r}")
        ranges = {"seed": (0, 2**63), "parts": (2, MOST_PARTS), "steps": (1, STEPS), "batch": (1, STEPS)}
        for name, (low, high) in (ranges | {"width": (1, 2**31)}).items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value < high:
                raise ValueError(f"{name} must be a whole number from {low} and below {high}, got {value!r}")
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number, not negative, got {value!r}")
        if not is_number(self.independent) or not 0 <= self.independent < 1:
            raise ValueError(f"independent must be a share from 0 and below 1, got {self.independent!r}")


def fit_second_look(config: LookConfig, output: Path, workers: int = 1, also: Sequence[Path] = ()) -> Path:
    """Read the problems, or what an interrupted run in ``output`` has not read yet, fit, and return the path.

    Files in ``output``: part-N.safetensors (what was read), log.csv, weights.safetensors.

    Args:
        config: what is fitted.
        output: folder of the run.
        workers: processes that read, of one thread each if there are more than one; they change nothing but the time.
        also: folders of other runs on the same weights, of another mixture or seed, whose parts are fitted to as well.

    Raises:
        ValueError: the folder holds parts of another configuration, the weights are adapted, no worker is left, or one
            of the other folders has no parts, or parts of other weights or of the same problems.
        ModuleNotFoundError: the ``train`` extra is not installed.
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'fitting needs {error.name}: pip install "mist-loss[train]"') from error
    require_within("workers", workers, 64)
    network = _beginning(config)
    output.mkdir(parents=True, exist_ok=True)
    drawn = {"mixture": config.mixture, "seed": config.seed, "stream": VERSION}
    header = drawn | {"parent_sha256": sha256(find(config.parent))}
    paths = [output / f"part-{part}.safetensors" for part in range(config.parts)]
    for path in filter(Path.exists, paths):
        if (found := state.read_header(path)) != header:
            raise ValueError(f"{path} was read with {found}, asked for {header}: use another folder")
    others = {str(folder): _parts_of(folder, header) for folder in also}
    jobs = [(config, part, path, header) for part, path in enumerate(paths) if not path.exists()]
    with tqdm(total=len(jobs), unit="part") as bar:
        for _ in _in_processes(workers, jobs):
            bar.update()
    read = [state.read(path, "") for path in paths]
    more = [state.read(path, "") for parts in others.values() for path in parts]
    held_out, fitted = (
        {key: torch.cat([part[key] for part in chosen]) for key in read[0]}
        for chosen in (read[::HELD_OUT], [part for number, part in enumerate(read) if number % HELD_OUT] + more)
    )
    look = network.second_look
    assert look is not None
    optimizer = torch.optim.AdamW(look.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    rows = [{"step": 0, "loss": math.nan} | _validate(network, held_out)]
    chances = _chances(fitted["mi"], fitted["rows"], config.independent)
    running, every = math.nan, max(1, config.steps // REPORTS)
    with seeded(config.seed, torch.device("cpu")):
        for step in range(config.steps):
            chosen = torch.multinomial(chances, config.batch, replacement=True)
            batch = {key: values[chosen] for key, values in fitted.items()}
            loss = relative_loss(_knots(network, batch), batch["mi"]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            running = loss.item() if math.isnan(running) else 0.99 * running + 0.01 * loss.item()
            if (step + 1) % every == 0 or step + 1 == config.steps:
                rows.append({"step": step + 1, "loss": running} | _validate(network, held_out))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(output / "log.csv", text.getvalue())
    settings = dataclasses.asdict(config) | {"width": network.config.look_width}  # of one that was there already
    told = [state.read_header(parts[0]) | {"parts": len(parts)} for parts in others.values()]
    origin = header | {"config": settings, "sets": len(fitted["mi"]), "also": told}
    weights = output / "weights.safetensors"
    save_weights(network, weights, origin | {"commit": provenance.commit(), "torch": torch.__version__})
    return weights


def _parts_of(folder: Path, header: dict) -> list[Path]:
    """What another run has read, if it is of the same weights and by the same code."""
    paths = sorted(folder.glob("part-*.safetensors"), key=lambda path: int(path.stem[len("part-") :]))
    if not paths:
        raise ValueError(f"expected the folder of a run of mist-loss look, got {folder}, which has no parts")
    for path in paths:
        found = state.read_header(path)
        for name in ("parent_sha256", "stream"):
            if found[name] != header[name]:
                raise ValueError(f"{path} was read with {name} {found[name]}, expected {header[name]}: read it again")
        if found == header:  # the sets that are held out would be fitted to
            raise ValueError(f"{path} is of the mixture and seed of the run itself: expected another seed or mixture")
    return paths


def _in_processes(workers: int, jobs: list[tuple]) -> Iterator[None]:
    """Read the parts, as many at a time as there are workers; one of them is this process."""
    if workers == 1:
        yield from itertools.starmap(_read_part, jobs)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield from pool.map(_read_part, *zip(*jobs, strict=True)) if jobs else ()


def _beginning(config: LookConfig) -> MIST:
    """The weights with a second look: a new one, its first layer drawn by the seed, if theirs is told less."""
    parent = MIST.from_pretrained(config.parent)
    if parent.coordinates is not None:
        raise ValueError(f"expected weights that are not adapted, got {config.parent}: adapt what this gives")
    more = dataclasses.asdict(parent.config) | dict.fromkeys(TOLD[1:], True)
    if parent.second_look is None:
        more["look_width"] = config.width
    if (wider := MISTConfig(**more)) == parent.config:
        return parent
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return parent.widened(wider).eval()


def _read_part(config: LookConfig, part: int, path: Path, header: dict) -> None:
    """What the second look sees of the problems of a part, their mutual information and how many rows they have."""
    network = _beginning(config)
    assert network.second_look is not None
    seen: list[tuple[Tensor, ...]] = []
    network.second_look.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    truths, rows = [], []
    with torch.no_grad():
        for index in range(GROUPS):
            x, y, mi = group(MIXTURES[config.mixture], config.seed, part, 0, index, torch.device("cpu"))
            network(x, y)
            truths.append(mi)
            rows.append(torch.full_like(mi, x.shape[1]))
    inputs = dict(zip(("reading", "summary", "vector", "hidden"), map(torch.cat, zip(*seen, strict=True)), strict=True))
    inputs |= {"mi": torch.cat(truths), "rows": torch.cat(rows)}
    write(path, inputs, {"header": json.dumps(header)})


def _chances(mi: Tensor, rows: Tensor, independent: float) -> Tensor:
    """How likely each set (m,) is drawn: independent ones as often as that share, one like the other, if there are any.

    Of a mixture that has few of them, an estimator that is right on average over it sees dependence in too many. The
    others by a power of their rows: a group has the more sets the fewer rows they have (``stream.ROW_BUDGET``),
    and hardly one in ten sets has the rows that tell one kind of strong dependence from another.
    """
    nothing = mi < NOTHING
    if not independent or not nothing.any() or nothing.all():
        return rows**EVEN
    dependent = (1 - independent) * rows**EVEN / (rows[~nothing] ** EVEN).sum()
    return torch.where(nothing, independent / nothing.sum(), dependent)


def _knots(network: MIST, seen: dict[str, Tensor]) -> Tensor:
    """What the second look makes of first readings: (b, KNOTS) nats."""
    assert network.second_look is not None
    return quantiles.not_negative(network.second_look(seen["reading"], seen["summary"], seen["vector"], seen["hidden"]))


@torch.no_grad()
def _validate(network: MIST, held_out: dict[str, Tensor]) -> dict[str, float]:
    knots, mi = _knots(network, held_out), held_out["mi"]
    value, low, high = interval(knots, LEVEL)
    inside, nothing = (low <= mi) & (mi <= high), mi < NOTHING
    return {
        "held_out_loss": relative_loss(knots, mi).mean().item(),
        "held_out_error": (value - mi).abs().mean().item(),
        "coverage90": inside.float().mean().item(),
        "independent_above_zero": (low[nothing] > 0).float().mean().item(),  # should be 0.05; nan: no such set
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``mist-loss look``: one for each field of LookConfig."""
    parser.add_argument("parent", metavar="WEIGHTS", help="name, file or folder; they stay as they are")
    for field in dataclasses.fields(LookConfig)[1:]:
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    parser.add_argument("--output", type=Path, required=True, help="folder of the run; an interrupted run goes on")
    parser.add_argument("--workers", type=int, default=1, help="processes that read (default: 1)")
    parser.add_argument(
        "--also",
        type=Path,
        nargs="*",
        default=[],
        metavar="FOLDER",
        help="of other runs, whose parts are fitted to too",
    )


def main(args: argparse.Namespace) -> int:
    """Run ``mist-loss look``."""
    config = LookConfig(**{field.name: getattr(args, field.name) for field in dataclasses.fields(LookConfig)})
    print(json.dumps({"weights": str(fit_second_look(config, args.output, args.workers, args.also))}))
    return 0

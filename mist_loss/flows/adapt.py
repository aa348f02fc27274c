"""An estimator adapted to a modality: fine-tuned on problems whose sides look like the user's rows.

MIST (arXiv 2511.18945) suggests it: mutual information does not change under invertible maps, so a normalizing flow
carries the training problems into any modality. Part of every step replays the original mixture and holds the copy to
what its parent says there, which steadies it; what does not look like the modality is left to the parent, which the
copy keeps. The weights hold the flows too, through which the copy reads once more, see ``mist_loss.flows.coordinates``;
no row is in them, but the flows draw rows that look alike.
"""

import argparse
import dataclasses
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from mist_loss import provenance
from mist_loss.estimate import LEVEL, interval
from mist_loss.files import write_text
from mist_loss.flows.card import card
from mist_loss.flows.coordinates import NormalCoordinates
from mist_loss.flows.marginals import WIDEST, FlowReport, Marginal, PoorFit, fit_marginal
from mist_loss.flows.pushed import Pushed, PushedProblem
from mist_loss.meta.families import Problem
from mist_loss.meta.mixtures import MIXTURES
from mist_loss.model.network import MIST
from mist_loss.model.weights import find, save_weights, sha256, write
from mist_loss.seeding import seeded
from mist_loss.training import state
from mist_loss.training.finetune import FinetuneConfig, finetune
from mist_loss.training.stream import VERSION, draw_seed, group
from mist_loss.validation import as_tensor, check_count, is_number

HELD_OUT_SEED = -1  # of the problems that the gain is measured on; no run may use it
HELD_OUT_GROUPS = 12
# plain, in the coordinates of the flows, and by way of the principal directions of wide data; a state of fewer cannot
# be gone on with
READINGS = 3


class Accuracy(NamedTuple):
    """On problems of known mutual information: mean absolute error in nats, and coverage of the 90% interval."""

    error: float
    coverage: float


class Adaptation(NamedTuple):
    """An adapted estimator.

    model: a copy, in eval mode; flows: of x and of y, the same one twice where y was None; reports: side to how its
    flow fits; before, after: accuracy of the parent and of the model on held-out problems; path: of the weights.
    """

    model: MIST
    flows: tuple[Marginal, Marginal]
    reports: dict[str, FlowReport]
    before: Accuracy
    after: Accuracy
    path: Path | None


@torch.inference_mode(False)  # as in a hook of a validation, where nothing could be trained
def adapt(
    model: str | Path | MIST,
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray | None = None,
    output: str | Path | None = None,
    width: int | None = None,
    rows: tuple[int, int] = (64, 1024),
    mixture: str = "broader",
    replay: float = 0.25,
    config: FinetuneConfig | None = None,
    checkpoint_minutes: float = 1.0,
    progress: bool = False,
) -> Adaptation:
    """Adapt a copy of an estimator to the kind of rows that x and y hold.

    Rows need not be paired: only the marginal of each side is learned. The flow assumes that it is continuous. Warns
    where the copy ends worse than its parent on held-out problems, as too few steps can make it.

    Args:
        model: what ``MIST.from_pretrained`` takes (a bundled name, a file, a folder, OWNER/NAME@COMMIT), or a ``MIST``;
            it is not changed.
        x: (n, dx) rows of the modality, best some thousands.
        y: (m, dy) rows of the other side, or None where both sides show the same kind.
        output: folder for state, flows, weights and card; an interrupted run goes on. None keeps nothing.
        width: principal directions of the flows, see ``fit_marginal``.
        rows: inclusive range of the rows of the problems.
        mixture: what the parent was trained on, and is replayed.
        replay: share of the groups of a step that replay it, 0 to 1, see ``replayed_groups``.
        config: of the fine-tuning.
        checkpoint_minutes: between two saves of the state.
        progress: show bars.

    Raises:
        ValueError: data, model or settings that cannot be used, or an output folder that holds another run.
        PoorFit: a flow does not fit; says what to do.
        ModuleNotFoundError: the ``flows`` extra is not installed.
    """
    config = config or FinetuneConfig()
    if not isinstance(config, FinetuneConfig):
        raise ValueError(f"expected config as a FinetuneConfig, got {type(config).__name__}: FinetuneConfig(steps=...)")
    output = None if output is None else Path(output)
    if output is not None and output.exists() and not output.is_dir():
        raise ValueError(f"expected output to be a folder, got the file {output}: name another")
    if mixture not in MIXTURES:
        raise ValueError(f"expected mixture to be one of {sorted(MIXTURES)}, got {mixture!r}")
    if not is_number(replay) or not 0 <= replay <= 1:
        raise ValueError(f"expected replay in 0 to 1, got {replay!r}")
    if width is not None:
        check_count("width", width)
    if not isinstance(rows, tuple) or len(rows) != 2 or not 10 <= rows[0] <= rows[1]:
        raise ValueError(f"expected rows as (low, high) with 10 <= low <= high, got {rows}")
    parent = model if isinstance(model, MIST) else MIST.from_pretrained(model)
    adapted = unfrozen_copy(parent)  # reads plainly; its own coordinates come below
    device = adapted.vector_mean.device
    sides = {"x": _rows("x", x, device)} | ({} if y is None else {"y": _rows("y", y, device)})
    header: dict[str, Any] = {
        "parent": parent_hash(model),
        "width": width,
        "rows": list(rows),
        "mixture": mixture,
        "replay": replay,
        "readings": READINGS,
    }
    # of this run's folder only: a digest of rows does not go into the weights
    fingerprint = header | {"stream": VERSION, "data": {name: _digest(side) for name, side in sides.items()}}
    marginals, reports = _flows(sides, width, config.seed, output, fingerprint)
    flows = (marginals["x"], marginals.get("y", marginals["x"]))
    source = Source(*flows, rows, adapted.config.dims[1], mixture, replayed_groups(replay, config.groups), config.seed)
    held_out = source.held_out()
    before = accuracy(parent, held_out)
    adapted.coordinates = NormalCoordinates(*flows)
    finetune(
        adapted,
        source.draw,
        config,
        output and output / "state.safetensors",
        fingerprint,
        checkpoint_minutes,
        progress=progress,
        parent=parent,
        kept=source.replayed,
    )
    adapted.keep(parent)
    after = accuracy(adapted, held_out)
    path = None
    if output is not None:
        origin = header | {
            "method": "flow adaptation",
            "finetune": dataclasses.asdict(config),
            "data": {name: {"rows": len(side), "dims": side.shape[1]} for name, side in sides.items()},
            "flows": {name: report._asdict() for name, report in reports.items()},
            "held_out_problems": {"before": before._asdict(), "after": after._asdict()},
            "commit": provenance.commit(),
            "torch": torch.__version__,
        }
        path = output / "weights.safetensors"
        save_weights(adapted, path, origin)
        write_text(output / "card.md", card(origin))
    if after.error > before.error:  # said last, so that nothing is lost where warnings are errors
        warnings.warn(
            f"the adapted estimator reads held-out problems worse than its parent, {after.error:.3f} nats off in place "
            f"of {before.error:.3f}: take more steps than {config.steps}, or stay with the parent",
            stacklevel=3,  # the decorator is a frame of its own
        )
    return Adaptation(adapted, flows, reports, before, after, path)


class Source:
    """The problems of a run, as ``finetune`` draws them: the first groups of a step are replayed, the others pushed.

    Args:
        x: flow of the one side.
        y: flow of the other side.
        rows: inclusive range of the rows of pushed problems.
        widest: most dimensions of a side.
        mixture: name of what is replayed.
        replayed: how many groups of a step.
        seed: of the run.
    """

    def __init__(
        self, x: Marginal, y: Marginal, rows: tuple[int, int], widest: int, mixture: str, replayed: int, seed: int
    ):
        self.device = x.center.device
        with seeded(draw_seed(seed, 0, 1, 0), self.device):
            self.pushed = Pushed(x, y, rows, widest)
        self.mixture, self.replayed, self.seed = MIXTURES[mixture], replayed, seed

    def draw(self, step: int, index: int) -> Problem | PushedProblem:
        """One group of problems, from torch's global generator or the stream of the mixture."""
        if index < self.replayed:
            return group(self.mixture, self.seed, step, 0, index, self.device)
        return self.pushed.group()

    def held_out(self, groups: int = HELD_OUT_GROUPS) -> list[PushedProblem]:
        """Pushed problems that no run trains on."""
        found = []
        for i in range(groups):
            with seeded(draw_seed(HELD_OUT_SEED, i, 0, 0), self.device), torch.no_grad():
                found.append(self.pushed.group())
        return found


@torch.no_grad()
def accuracy(model: MIST, problems: list[PushedProblem]) -> Accuracy:
    """Error and coverage over all sets of some groups of problems."""
    errors, inside = [], []
    for x, y, mi, _ in problems:  # as a user would read them
        value, low, high = interval(model(x, y), LEVEL)
        errors.append((value - mi).abs())
        inside.append((low <= mi) & (mi <= high))
    return Accuracy(torch.cat(errors).mean().item(), torch.cat(inside).float().mean().item())


def replayed_groups(share: float, groups: int) -> int:
    """How many groups of a step replay the mixture: at least one where a share is asked for, and there are two."""
    return max(min(1, groups - 1), round(share * groups)) if share else 0


def unfrozen_copy(model: MIST) -> MIST:
    """A trainable copy, also of the frozen model of a criterion, whose weights are buffers of the same names.

    Without the ``coordinates`` of the parent, which are of other rows, and without what it keeps.
    """
    with torch.random.fork_rng(devices=[]):  # building a network must not move the user's random numbers
        copy = MIST(model.config)
    copy.load_state_dict(model.plain_state())
    return copy.to(model.vector_mean.device).eval()


def parent_hash(model: str | Path | MIST) -> str:
    """sha256 of the parent's file, or of the safetensors bytes of a model that came from none."""
    if isinstance(model, MIST):
        tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        return hashlib.sha256(save(tensors)).hexdigest()
    return sha256(find(model))


@torch.inference_mode(False)
def refresh(model: MIST, x: Tensor, y: Tensor, seconds: float = 30.0, seed: int = 0) -> dict[str, FlowReport]:
    """Give an estimator the flows of present codes, in place, in a bounded time; what ``MISTCriterion.refresh`` runs.

    It reads codes like these in the coordinates of the flows too from then on. Its weights stay as they are: the steps
    of fine-tuning that fit into such a time make it worse. Where a flow does not fit, the model is left alone.

    Args:
        model: that gets the coordinates, frozen or not.
        x: (n, dx) codes, at least 100; detached here.
        y: (n, dy).
        seconds: about how long it may take, half for each flow.
        seed: of the flows.

    Raises:
        ValueError: codes that no flow can be fitted to, or no time.
        PoorFit: a flow does not fit, or leaves directions out.
    """
    if not is_number(seconds) or not seconds > 0:
        raise ValueError(f"expected seconds above zero, got {seconds!r}")
    device = model.vector_mean.device
    marginals, reports = {}, {}
    for name, side in (("x", x), ("y", y)):
        rows = _rows(name, side, device)
        marginals[name], report = fit_marginal(rows, name=name, layers=4, seconds=seconds / 2, seed=seed)
        reports[name] = report
        if not marginals[name].exact:
            raise PoorFit(
                f"expected a flow of all directions of {name}, got one of {report.width} of {report.dims}: "
                f"give more rows (50 for each direction, {WIDEST} at most), or leave features out",
                report,
            )
    adapted = unfrozen_copy(model)
    adapted.coordinates = NormalCoordinates(marginals["x"], marginals["y"])
    adapted.keep(model)
    model.load_state_dict(adapted.state_dict())
    return reports


def _rows(name: str, side: Tensor | np.ndarray, device: torch.device) -> Tensor:
    rows = torch.as_tensor(as_tensor(side)).detach()
    if rows.ndim != 2 or not rows.is_floating_point():
        raise ValueError(f"expected {name} of shape (n, d), floating point, got {tuple(rows.shape)}, {rows.dtype}")
    return rows.to(device, torch.float64)


def _digest(rows: Tensor) -> str:
    shape = str(tuple(rows.shape)).encode()
    return hashlib.sha256(shape + rows.cpu().contiguous().numpy().tobytes()).hexdigest()


def _flows(
    sides: dict[str, Tensor], width: int | None, seed: int, output: Path | None, fingerprint: dict
) -> tuple[dict[str, Marginal], dict[str, FlowReport]]:
    """Fit the flow of each side, or read what an interrupted run fitted."""
    path = output and output / "flows.safetensors"
    header = {"run": json.dumps(fingerprint | {"seed": seed})}
    if path and path.exists():
        with state.opened(path) as file:
            saved = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        if saved.get("run") != header["run"]:
            raise ValueError(
                f"{output} holds another run: use the same data and settings to go on, or another folder to start anew"
            )
        marginals, reports = {}, {}
        for name, rows in sides.items():
            marginal = Marginal(**json.loads(saved[f"{name}.settings"])).double()
            prefix = f"{name}."
            marginal.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
            marginals[name] = marginal.to(rows.device).requires_grad_(False).eval()
            reports[name] = FlowReport(**json.loads(saved[f"{name}.report"]))
        return marginals, reports
    fitted = {name: fit_marginal(rows, width, name, seed=seed) for name, rows in sides.items()}
    if path:
        tensors = {}
        for name, (marginal, report) in fitted.items():
            tensors |= {f"{name}.{key}": value for key, value in marginal.state_dict().items()}
            header |= {
                f"{name}.settings": json.dumps(marginal.settings),
                f"{name}.report": json.dumps(report._asdict()),
            }
        path.parent.mkdir(parents=True, exist_ok=True)  # of what is refused nothing is left
        write(path, tensors, header)
    return {name: pair[0] for name, pair in fitted.items()}, {name: pair[1] for name, pair in fitted.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mist-loss adapt``."""
    defaults = FinetuneConfig()
    parser.add_argument("file", type=Path, metavar="FILE", help=".csv with a header, .npy, .npz or .parquet; rows of x")
    columns = "columns, by comma: names, array names (NPZ), positions (NPY), or a range FIRST:END"
    parser.add_argument("--x", required=True, metavar="COLS", help=columns)
    parser.add_argument("--y", metavar="COLS", help="likewise; left out where both sides show the same kind")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run; an interrupted run goes on")
    parser.add_argument(
        "--model",
        default="mist-base",
        help="parent, as of estimate (default mist-base)",
    )
    parser.add_argument("--width", type=int, help="principal directions (default: as many as the rows allow)")
    parser.add_argument(
        "--rows", type=int, nargs=2, default=(64, 1024), metavar=("LOW", "HIGH"), help="of the problems"
    )
    parser.add_argument("--mixture", default="broader", help="what the parent was trained on (default broader)")
    parser.add_argument("--replay", type=float, default=0.25, help="share of it in every step (default 0.25)")
    for name in ("steps", "groups", "lr", "seed"):
        value = getattr(defaults, name)
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"default {value}")


def main(args: argparse.Namespace) -> int:
    """Run ``mist-loss adapt``."""
    from mist_loss.tables import read_columns

    x, *rest = read_columns(args.file, args.x, *([args.y] if args.y else []))
    config = FinetuneConfig(steps=args.steps, groups=args.groups, lr=args.lr, seed=args.seed)
    result = adapt(
        args.model,
        x,
        rest[0] if rest else None,
        args.output,
        args.width,
        tuple(args.rows),
        args.mixture,
        args.replay,
        config,
        progress=True,
    )
    for name, report in result.reports.items():
        gain = report.log_likelihood - report.gaussian
        print(
            f"flow of {name}: {report.width} of {report.dims} dimensions, {gain:+.2f} nats a row against a Gaussian, "
            f"AUC {report.auc:.2f} (0.5: alike)"
        )
    print(
        f"held-out problems: error {result.before.error:.3f} -> {result.after.error:.3f} nats, "
        f"90% intervals cover {result.before.coverage:.0%} -> {result.after.coverage:.0%}"
    )
    print(json.dumps({"weights": str(result.path)}))
    return 0

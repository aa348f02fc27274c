"""An independent look at what a criterion says: a pretrained estimator can be fooled, a fresh one less easily.

Every so many steps the criterion's number for held-out rows is compared with what a critic fitted to these rows alone
certifies, and with the number for shuffled rows, whose mutual information is zero whatever the codes are.
"""

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mist_loss.criterion import MISTCriterion
from mist_loss.seeding import seeded
from mist_loss.validation import check_count, finite_sets, is_number, paired_sets

if TYPE_CHECKING:
    from lightning.pytorch import Callback

FIT, SELECT = 0.4, 0.2  # shares of the rows that fit the critic and choose when to stop; the rest judges
MIN_ROWS = 64
DIMS = 64  # principal coordinates a side that the critic reads
HIDDEN, CRITIC_STEPS, CHECK_EVERY, LR = 64, 120, 20, 2e-3
GAINS = (1.0, 0.5, 0.25)  # of the Gaussian part: few rows overstate correlations
SHUFFLES = 8
NEARLY_NOTHING = 0.05  # nats; a shuffled set whose interval lies above is called dependent


class AuditWarning(UserWarning):
    """The criterion and an independent estimate have parted."""


class Audit(NamedTuple):
    """What an audit found; nats.

    step: of the auditor; rows: held out; value, low, high: the criterion's estimate and interval; certified: the lower
    bound of a fresh critic, and error: its standard error; shortfall: what the same critic misses on Gaussian rows of
    the same number and dimensions that share exactly ``value``, and as good as ``value`` itself where so few rows say
    nothing; shuffled: share of shuffled sets called dependent; reasons: why the two have parted, empty if they have
    not.
    """

    step: int
    rows: int
    value: float
    low: float
    high: float
    certified: float
    error: float
    shortfall: float
    shuffled: float
    reasons: tuple[str, ...]


class MIAuditor:
    """Warns when a criterion and an independent estimate part; what audits found is in ``history``.

    In a loop::

        auditor = MIAuditor(criterion, lambda: (encoder(held_x), encoder(held_y)), every=500)
        for batch in loader:
            ...
            auditor.step()

    With Lightning: ``Trainer(callbacks=[auditor.callback()])``.

    The critic scores pairs by the log density ratio of a Gaussian with the correlations of the held-out rows, plus that
    of a small network; it is fitted to some rows, and InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) on the rest
    bounds the mutual information from below. Such bounds are loose where rows are few, so the same critic is run on
    Gaussian rows that share exactly what the criterion claims: only what it misses beyond that counts against the
    criterion. Three findings warn: the criterion claims more than is certified (exploited, when maximising), it claims
    less than is certified (blind, when minimising), and it finds dependence in shuffled rows.

    An audit costs about as much as 250 steps of a small network on the held-out rows, on the CPU. It draws random
    numbers from its own generators and changes neither the criterion (``last`` and the mode included) nor torch's
    generator.

    Args:
        criterion: the one that is optimised.
        codes: gives the held-out codes (n, dx), (n, dy), 64 rows or more, best 512 to 2,048; called without gradients.
            Put the encoder in eval mode inside it where that matters (dropout, batch norm).
        every: steps between audits.
        tolerance: nats of disagreement that are borne, beside the interval and the noise.

    Raises:
        ValueError: every is no whole number of at least 1, tolerance is negative or no number, or codes no function.
    """

    def __init__(
        self,
        criterion: MISTCriterion,
        codes: Callable[[], tuple[Tensor, Tensor]],
        every: int = 500,
        tolerance: float = 0.25,
    ):
        every = check_count("every", every)
        if not is_number(tolerance) or not tolerance >= 0:
            raise ValueError(f"expected tolerance in nats, zero or more, got {tolerance!r}")
        if not hasattr(criterion, "last"):  # what torch.compile makes has it
            raise ValueError(
                f"expected a MISTCriterion, got {type(criterion).__name__}: of a wrapper give the criterion in it"
            )
        if not callable(codes):
            raise ValueError(f"expected codes as a function that returns held-out codes, got {type(codes).__name__}")
        self.criterion, self.codes, self.every, self.tolerance = criterion, codes, every, tolerance
        self.steps = 0
        self.history: list[Audit] = []

    def step(self) -> Audit | None:
        """Count a step of training; every ``every`` of them audit and return what was found."""
        self.steps += 1
        return self._audit() if self.steps % self.every == 0 else None

    def audit(self) -> Audit:
        """Audit now.

        Raises:
            ValueError: codes that cannot be used: fewer than 64 rows, several sets, NaN, or what the criterion refuses.
        """
        return self._audit()

    def state_dict(self) -> dict[str, Any]:
        """Steps and findings, in plain types that ``torch.load(weights_only=True)`` reads."""
        return {"steps": self.steps, "history": [audit._asdict() for audit in self.history]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned: the next audit comes when it would have come.

        Raises:
            ValueError: it is something else; the auditor is left as it was.
        """
        try:
            steps = check_count("steps + 1", state["steps"] + 1) - 1  # none yet is a state, too
            history = [Audit(**{**found, "reasons": tuple(found["reasons"])}) for found in state["history"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"expected the state_dict of a MIAuditor, got another object ({error!r})") from error
        self.steps, self.history = steps, history

    def _audit(self) -> Audit:
        with torch.no_grad():
            codes = self.codes()
            if not isinstance(codes, tuple | list) or len(codes) != 2:
                got = f"{len(codes)} things" if isinstance(codes, tuple | list) else type(codes).__name__
                raise ValueError(f"expected codes() to return the two held-out codes (x, y), got {got}")
            x, y, single = paired_sets(*codes, min_rows=MIN_ROWS)
        x, y = x.detach(), y.detach()
        if not single:
            raise ValueError(f"expected held-out codes of shape (n, d), got {tuple(x.shape)}: audit one set at a time")
        if not finite_sets(x, y).all():
            raise ValueError("expected finite held-out codes, got NaN or infinity: the encoder has diverged")
        result = self._compare(x[0], y[0])
        self.history.append(result)
        if result.reasons:
            warnings.warn(
                f"step {result.step}: the criterion says {result.value:.2f} nats ({result.low:.2f} to "
                f"{result.high:.2f}) on {result.rows} held-out rows, but {'; '.join(result.reasons)}",
                AuditWarning,
                stacklevel=3,
            )
        return result

    def _compare(self, x: Tensor, y: Tensor) -> Audit:
        generator = torch.Generator().manual_seed(self.steps)
        value, low, high = (float(t) for t in self._read(x[None], y[None]))
        orders = [torch.randperm(len(y), generator=generator, device="cpu") for _ in range(SHUFFLES)]
        _, lows, _ = self._read(x.expand(SHUFFLES, -1, -1), y[torch.stack(orders).to(y.device)])
        shuffled = float((lows > NEARLY_NOTHING).float().mean())
        u, v = (principal_scores(t.cpu()) for t in (x, y))
        with torch.device("cpu"):  # whatever the default device is
            certified, error = certify(u, v, generator)
            expected, noise = certify(*gaussian_rows(u, v, value, generator), generator)
        shortfall = value - expected
        slack = self.tolerance + 2 * math.hypot(error, noise)
        reasons = []
        if low - certified - max(shortfall, 0.0) > slack:
            reasons.append(
                f"a fresh critic certifies {certified:.2f} where Gaussian rows with that much let it certify "
                f"{expected:.2f}: the encoder may exploit the estimator"
            )
        if certified - high > slack:
            reasons.append(f"a fresh critic certifies {certified:.2f}: the estimator does not see what is shared")
        if shuffled > 0.5:
            reasons.append(f"it calls {100 * shuffled:.0f}% of shuffled sets dependent")
        return Audit(self.steps, len(x), value, low, high, certified, error, shortfall, shuffled, tuple(reasons))

    @torch.no_grad()
    def _read(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value and interval of sets (b, n, d), leaving the criterion as it was."""
        kept, gather, training = self.criterion.last, self.criterion.gather, self.criterion.training
        noted, self.criterion.gather = self.criterion._noted, False
        try:
            with seeded(self.steps, x.device):  # sliced projections draw
                self.criterion.eval()(x, y)
            assert self.criterion.last is not None
            return self.criterion.last[:3]
        finally:
            self.criterion.last, self.criterion.gather = kept, gather
            self.criterion._noted = noted
            self.criterion.train(training)

    def callback(self) -> "Callback":
        """The auditor as a Lightning callback: a step after every training batch.

        The findings of the last audit are logged as audit/value and audit/certified.

        Raises:
            ModuleNotFoundError: Lightning is not installed.
        """
        try:
            from lightning.pytorch import Callback
        except ImportError:
            try:
                from pytorch_lightning import Callback
            except ImportError as error:
                raise ModuleNotFoundError("a Lightning callback needs Lightning: pip install lightning") from error
        auditor = self

        class AuditorCallback(Callback):
            def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
                found = auditor.step()
                if found is not None:
                    pl_module.log_dict({"audit/value": found.value, "audit/certified": found.certified})

            def state_dict(self) -> dict[str, Any]:
                return auditor.state_dict()

            def load_state_dict(self, state_dict: dict[str, Any]) -> None:
                auditor.load_state_dict(state_dict)

        return AuditorCallback()


def principal_scores(x: Tensor) -> Tensor:
    """Normal scores of the ranks of every feature, then at most DIMS principal coordinates: (n, d) -> (n, k).

    A monotone map of a feature leaves the mutual information alone, dropping coordinates lowers it.
    """
    n, d = x.shape
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # no narrower than it came: rows far from zero would tie
    # ties share the middle of their ranks: in the order of the rows they would tie both sides to it
    columns = x.T.contiguous()
    ordered = columns.sort(1).values
    below, above = (torch.searchsorted(ordered, columns, right=right) for right in (False, True))
    ranks = (below + above).T / (2 * n)
    z = torch.special.ndtri(ranks.double())
    z = torch.where(x.amax(0) > x.amin(0), z, 0.0)
    if d > DIMS:
        z = z @ torch.linalg.svd(z, full_matrices=False).Vh[:DIMS].T
    return z.float()


def canonical(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps (dx, m), (dy, m) to canonical coordinates and their correlations (m,), fitted to rows with a ridge."""
    n = len(u)

    def whitener(z: Tensor) -> Tensor:
        d = z.shape[1]
        covariance = z.T @ z / n
        values, vectors = torch.linalg.eigh(covariance + (0.1 * d / n + 1e-4) * torch.eye(d, dtype=z.dtype))
        return vectors * values.rsqrt()

    u, v = u.double(), v.double()
    wx, wy = whitener(u), whitener(v)
    left, rho, right = torch.linalg.svd((u @ wx).T @ (v @ wy) / n, full_matrices=False)
    return (wx @ left).float(), (wy @ right.T).float(), rho.clamp(max=0.999).float()


class Critic(nn.Module):
    """Scores all pairs of rows: log density ratio of a canonical Gaussian, plus products of two small networks."""

    def __init__(self, u: Tensor, v: Tensor):
        super().__init__()
        self.map_u, self.map_v, rho = canonical(u, v)
        # independent rows reach this (Marchenko and Pastur 1967): keep what stands out
        noise = (u.shape[1] ** 0.5 + v.shape[1] ** 0.5) / len(u) ** 0.5
        self.rho = torch.where(rho > min(noise, 0.9), rho, 0.0)
        self.gain = 1.0
        self.left, self.right = (
            nn.Sequential(nn.Linear(t.shape[1], HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN)) for t in (u, v)
        )
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        """(n, n) scores of row i of u with row j of v."""
        a, b, r = u @ self.map_u, v @ self.map_v, self.rho
        rest = 1 / (1 - r**2)
        gauss = (a * r * rest) @ b.T - ((a * r) ** 2 * rest).sum(1)[:, None] / 2 - ((b * r) ** 2 * rest).sum(1) / 2
        return self.gain * gauss + self.scale * self.left(u) @ self.right(v).T / HIDDEN**0.5


def infonce(scores: Tensor) -> Tensor:
    """(n,) terms whose mean bounds the mutual information from below, at most log n."""
    return scores.diagonal() - scores.logsumexp(1) + math.log(len(scores))


def certify(u: Tensor, v: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """Lower bound of I(u; v) in nats by a fresh critic, and its standard error; not below zero.

    Args:
        u: (n, dx) of about unit variance.
        v: (n, dy).
        generator: of the split and of the critic's start.
    """
    n = len(u)
    order = torch.randperm(n, generator=generator)
    fit, select, judge = order.split([int(FIT * n), int(SELECT * n), n - int(FIT * n) - int(SELECT * n)])
    start = int(torch.randint(2**31, (), generator=generator))
    with torch.enable_grad(), torch.inference_mode(False), seeded(start, u.device):
        critic = Critic(u[fit], v[fit]).float()
        optimizer = torch.optim.AdamW(critic.parameters(), lr=LR, weight_decay=1e-2)

        def quality(gain: float) -> float:
            critic.gain = gain
            with torch.no_grad():
                return float(infonce(critic(u[select], v[select])).mean())

        critic.gain = max(GAINS, key=quality)
        best, terms = 0.0, torch.zeros(len(judge))  # a critic that says nothing certifies nothing
        for step in range(CRITIC_STEPS + 1):
            if step % CHECK_EVERY == 0 and (score := quality(critic.gain)) > best:
                with torch.no_grad():
                    best, terms = score, infonce(critic(u[judge], v[judge]))
            scores = critic(u[fit], v[fit])
            optimizer.zero_grad()
            F.cross_entropy(scores, torch.arange(len(fit))).backward()
            optimizer.step()
    return max(0.0, float(terms.mean())), float(terms.std() / len(judge) ** 0.5)


def gaussian_rows(u: Tensor, v: Tensor, nats: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gaussian rows as many and as wide as (u, v) that share ``nats``, spread over pairs as (u, v) spread theirs."""
    rho = canonical(u, v)[2].double()
    terms = -0.5 * torch.log1p(-(rho**2))
    terms = terms * (max(nats, 0.0) / terms.sum().clamp_min(1e-9))
    rho = (1 - torch.exp(-2 * terms)).sqrt()
    a, b = (torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (u, v))
    m = len(rho)
    b[:, :m] = rho * a[:, :m] + (1 - rho**2).sqrt() * b[:, :m]
    return a.float(), b.float()

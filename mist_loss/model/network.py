"""MIST: from a set of paired rows to the predictive distribution of their mutual information (arXiv 2511.18945)."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mist_loss.model import quantiles, weights
from mist_loss.model.attention import HEADS, ISAB, MAB, PMA, SEEDS
from mist_loss.model.frozen import freeze
from mist_loss.model.quantiles import KNOTS
from mist_loss.model.second_look import SecondLook
from mist_loss.model.statistics import Summary, gaussian_terms, summarize
from mist_loss.model.tracing import may_look
from mist_loss.validation import check_flag

if TYPE_CHECKING:
    from mist_loss.flows.coordinates import NormalCoordinates

NEVER = 1e9  # standard deviation of what did not vary
ADDED = ("coordinates.", "parent.")  # names of what an adapted estimator has beside its own weights


@dataclass(frozen=True)
class MISTConfig:
    """Sizes of the network and the range it was trained on.

    rows, dims: inclusive ranges of the training problems; row_pairs: canonical pairs a row is described by;
    width: of the residual head; set_width: of the attention blocks; mixed_pairs: pairs of a product of one side and a
    direction of the other that become tokens, each way; independent_pairs: leading canonical pairs that become tokens
    once more, as independent components; near_pairs: leading canonical pairs in which near rows are compared;
    feature_pairs: pairs of features with levels that become tokens as they are; source_pairs: pairs of a source of one
    side and a direction of the other. Each of these five may be 0: there are no such tokens then; look_width: of the
    second look; repeats: whether the network is told how often values repeat; normal: what the sample would share if it
    were normal; balls: whether it takes a second look, told how many rows lie near a row; intrinsic: whether it is
    told so of features that are not whitened too, and of how many dimensions they are.

    Raises:
        ValueError: a size is no whole number or too small, a range is no pair in order, or the heads of the attention
            do not divide set_width.
    """

    rows: tuple[int, int] = (10, 4096)
    dims: tuple[int, int] = (1, 64)
    width: int = 256
    set_width: int = 64
    row_pairs: int = 8
    pair_width: int = 24
    mixed_pairs: int = 6
    independent_pairs: int = 8
    near_pairs: int = 16
    feature_pairs: int = 8
    source_pairs: int = 16
    look_width: int = 256
    repeats: bool = True
    normal: bool = True
    balls: bool = True
    intrinsic: bool = True

    def __post_init__(self) -> None:
        for name in ("rows", "dims"):
            span = getattr(self, name)
            if not isinstance(span, tuple) or len(span) != 2 or not all(map(_is_size, span)) or span[0] > span[1]:
                raise ValueError(f"expected {name} as a pair of whole numbers (low, high) from 1 on, got {span!r}")
        for name in weights.TOLD:
            check_flag(name, getattr(self, name))
        for field in dataclasses.fields(self)[2 : -len(weights.TOLD)]:
            size, least = getattr(self, field.name), 0 if field.name in weights.OPTIONAL else 1
            if not _is_size(size, least):
                raise ValueError(f"expected {field.name} as a whole number from {least} on, got {size!r}")
        if self.set_width % HEADS:
            raise ValueError(f"expected set_width as a multiple of {HEADS}, the heads, got {self.set_width}")

    @property
    def seen(self) -> tuple[int, int, int, int, int, int, bool, bool, bool, bool]:
        """What ``mist_loss.model.statistics.summarize`` is asked for."""
        pairs = self.mixed_pairs, self.independent_pairs, self.near_pairs, self.feature_pairs, self.source_pairs
        return self.rows[1], *pairs, *(getattr(self, name) for name in weights.TOLD)


def _is_size(value: object, least: int = 1) -> bool:
    return type(value) is int and least <= value < 1 << 31


class RowEmbedding(nn.Module):
    """One row: attention along its canonical pairs with learned pooling.

    A pair enters through its sum, the size of its difference, and what its token says, all unchanged when x and y are
    exchanged; heads of learned attention pool the pairs, so that their number may vary.
    """

    def __init__(self, config: MISTConfig):
        super().__init__()
        self.limit = config.row_pairs
        self.point = nn.Linear(4, config.pair_width)
        self.context = nn.Linear(config.set_width, config.pair_width)
        self.attend = nn.Linear(config.pair_width, HEADS)
        self.pool = nn.Linear(HEADS * config.pair_width, config.set_width)
        self.radial = nn.Linear(2, config.set_width)

    def forward(self, summary: Summary, tokens: Tensor) -> Tensor:
        """(b, n, set_width) from the canonical coordinates and the embedded tokens (b, t, set_width)."""
        pairs = min(self.limit, summary.u.shape[2])
        u, v = (t[..., :pairs].clamp(-5, 5) for t in (summary.u, summary.v))
        total, apart = (u + v) / 2, (u - v).abs()
        points = torch.stack([total, apart, total**2 / 2, torch.log(apart + 0.05)], dim=-1)
        hidden = F.relu(self.point(points) + self.context(tokens[:, None, :pairs]))
        share = self.attend(hidden).softmax(dim=2)
        pooled = rearrange(torch.einsum("bnpc,bnpa->bnac", hidden, share), "b n a c -> b n (a c)")
        rx, ry = summary.radii.unbind(-1)
        return self.pool(pooled) + self.radial(torch.stack([rx + ry, (rx - ry).abs()], dim=-1))


def steady(summary: Summary) -> Summary:
    """Let gradients reach the input through the correlations and the set's vector alone.

    Correlations of canonical pairs, of products and of radii have exact gradients although the rotation is a constant;
    those of products with directions nearly, since which coordinates are multiplied is a constant as well.
    What else the rows say, and the tokens (``mist_loss.model.statistics.pair_tokens``), depends on the frame of this
    sample; ascending it raises the estimate rather than the mutual information (recipes/README.md has the measurement).
    """
    vector, tokens, u, v, radii = summary  # by position: the compiler of torch 2.4 cannot follow _replace
    return Summary(vector, tokens, u.detach(), v.detach(), radii.detach())


class Residual(nn.Module):
    """A pre-normalised residual block: (b, h) -> (b, h)."""

    def __init__(self, width: int):
        super().__init__()
        self.block = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        """Add what the block says."""
        return hidden + self.block(hidden)


class MIST(nn.Module):
    """The estimator.

    ``model(x, y)`` with x (b, n, dx) and y (b, n, dy) gives (b, KNOTS): quantiles of I(x; y) in nats at fixed levels,
    see ``mist_loss.model.quantiles``. No layer looks across sets. The buffers hold the fixed normalisation of the
    summaries; ``fit_normalization`` computes them once, before training.

    An adapted estimator has ``coordinates``: sides of its modality are read in those too, and the two readings become
    one by ``mist_loss.model.quantiles.combine``. Sides of other widths, sets of no more rows than features, and sets
    that do not look like the modality are read by its ``parent``, the estimator before any adaptation, which it keeps
    as it was, so that little is forgotten. Without coordinates: one reading, its own.
    """

    vector_mean: Tensor
    vector_std: Tensor
    token_mean: Tensor
    token_std: Tensor

    def __init__(self, config: MISTConfig | None = None):
        super().__init__()
        self.config = config = config or MISTConfig()
        probe = summarize(torch.randn(1, 16, 2), torch.randn(1, 16, 2), *config.seen)
        s, f = probe.vector.shape[1], probe.tokens.shape[2]
        for name, size in (("vector", s), ("token", f)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        h = config.set_width
        self.embed_vector, self.skip = nn.Linear(s, config.width), nn.Linear(s, 1)
        self.embed_token, self.token_context = nn.Linear(f, h), nn.Linear(config.width, h)
        self.token_blocks = nn.ModuleList([MAB(h), MAB(h)])
        self.token_pool, self.token_out = PMA(h), nn.Linear(SEEDS * h, config.width)
        self.embed_row, self.row_context = RowEmbedding(config), nn.Linear(config.width, h)
        self.row_blocks = nn.ModuleList([ISAB(h), ISAB(h)])
        self.row_pool, self.row_out = PMA(h), nn.Linear(SEEDS * h, config.width)
        self.pair_term = nn.Linear(h, 2)
        with torch.no_grad():  # start from the Gaussian estimate
            self.pair_term.weight.zero_()
            self.pair_term.bias.copy_(torch.tensor([1.0, 0.0]))
        self.head = nn.Sequential(*(Residual(config.width) for _ in range(3)), nn.LayerNorm(config.width))
        self.quantiles = nn.Linear(config.width, KNOTS)
        told = config.normal, config.intrinsic
        self.second_look = SecondLook(s, config.width, config.look_width, *told) if config.balls else None
        self.coordinates: NormalCoordinates | None = None
        self.parent: MIST | None = None

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "MIST":
        """Load weights, in eval mode.

        Args:
            source: a bundled name ("mist-base"); a .safetensors file or a folder written by this package; or
                OWNER/NAME@COMMIT on the Hugging Face Hub (extra ``hub``), cached, from then on without network.

        Raises:
            ValueError: an unknown name, or an altered or foreign file.
            FileNotFoundError: the file is missing, or the Hub has no such repository or cannot be reached.
            ModuleNotFoundError: an address on the Hub without the extra ``hub``, adapted weights without ``flows``.
        """
        return weights.load(source)

    def save_pretrained(self, folder: str | Path, provenance: dict | None = None) -> Path:
        """Write weights and checksum into a folder for ``from_pretrained``; see ``weights.save_folder``."""
        return weights.save_folder(self, folder, provenance)

    def push_to_hub(self, repository: str, private: bool = True, provenance: dict | None = None) -> str:
        """Push to OWNER/NAME on the Hugging Face Hub; return the address for ``from_pretrained``, with the commit.

        Raises:
            ValueError: the repository is not called OWNER/NAME.
            ModuleNotFoundError: the extra ``hub`` is not installed.
        """
        return weights.push(self, repository, private, provenance)

    def summarize(self, x: Tensor, y: Tensor) -> Summary:
        """The part without parameters: front end and summaries, in at least float32, also under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            return summarize(x, y, *self.config.seen)

    def fit_normalization(self, summaries: list[Summary]) -> None:
        """Set the normalisation constants from summaries of a few training batches."""
        vector = torch.cat([s.vector for s in summaries])
        tokens = torch.cat([s.tokens.flatten(0, 1) for s in summaries])
        for name, values in (("vector", vector), ("token", tokens)):
            getattr(self, f"{name}_mean").copy_(values.mean(0))
            # what never varied, as repeats where all are numbers, is kept from weights that were never trained on it
            std = torch.where(values.amax(0) > values.amin(0), values.std(0) + 1e-3, NEVER)
            getattr(self, f"{name}_std").copy_(std)

    def read(self, summary: Summary) -> Tensor:
        """Predict from a summary: (b, KNOTS)."""
        reading, vector, hidden = self._first(summary)
        if self.second_look is not None:
            reading = self.second_look(reading, summary.vector, vector.clamp(-6, 6), hidden)
        return quantiles.not_negative(reading)

    def first_reading(self, x: Tensor, y: Tensor) -> Tensor:
        """What is said of x (b, n, dx) and y (b, n, dy) before the second look, and not through a flow: (b, KNOTS)."""
        return quantiles.not_negative(self._first(self._summary(x, y))[0])

    def _first(self, summary: Summary) -> tuple[Tensor, Tensor, Tensor]:
        """The first reading (b, KNOTS), any real numbers; the normalised vector; and what it was made from."""
        vector = (summary.vector - self.vector_mean) / self.vector_std
        hidden = self.embed_vector(vector.clamp(-6, 6))
        tokens = ((summary.tokens - self.token_mean) / self.token_std).clamp(-6, 6)
        tokens = self.embed_token(tokens) + self.token_context(hidden)[:, None]
        for block in self.token_blocks:
            tokens = block(tokens, tokens)
        rows = self.embed_row(summary, tokens) + self.row_context(hidden)[:, None]
        for block in self.row_blocks:
            rows = block(rows)
        hidden = hidden + self.token_out(self.token_pool(tokens)) + self.row_out(self.row_pool(rows))
        hidden = self.head(hidden)
        raw = self.quantiles(hidden)
        middle = KNOTS // 2
        # mutual information adds up over independent pairs: each token scales its Gaussian term and adds its own
        gain, own = self.pair_term(tokens).unbind(-1)
        pairs = (gain * gaussian_terms(summary.tokens[..., 0], (0.9999,))[..., 0] + own).sum(1, keepdim=True)
        centre = raw[:, middle : middle + 1] + self.skip(vector.clamp(-20, 20)) + pairs
        up = F.softplus(raw[:, middle + 1 :] - 2).cumsum(1)
        down = F.softplus(raw[:, :middle] - 2).flip(1).cumsum(1).flip(1)
        return torch.cat([centre - down, centre, centre + up], dim=1), vector, hidden

    def forward(self, x: Tensor, y: Tensor, normal: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Quantiles (b, KNOTS) of I(x; y) for x (b, n, dx) and y (b, n, dy).

        ``normal``: the same rows in the coordinates, where they are known already, as those of pushed problems are.
        """
        if self.coordinates is None:
            return self._read_rows(x, y)
        if not self.coordinates.maps(x, y):
            return self._read_rows(x, y) if self.parent is None else self.parent(x, y)
        u, v = normal or self.coordinates(x, y)
        if self.parent is None:
            return self._read_twice(x, y, u, v)
        alike = self.coordinates.alike(u, v)
        if may_look(x):  # otherwise everything is read
            if alike.all():
                return self._read_twice(x, y, u, v)
            if not alike.any():
                return self.parent(x, y)
        return torch.where(alike[:, None], self._read_twice(x, y, u, v), self.parent(x, y))

    def _read_twice(self, x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return quantiles.combine(self._read_rows(x, y), self._read_rows(u, v))

    def keep(self, parent: "MIST") -> None:
        """Have what is not of the coordinates' modality read by a copy of an estimator of the same sizes.

        Of its plain reading; or by what it keeps itself, if it is adapted.
        """
        source = parent if parent.parent is None else parent.parent
        self.parent = frozen_twin(self)
        self.parent.load_state_dict(source.plain_state())

    def widened(self, config: MISTConfig) -> "MIST":
        """One with these weights that reads more, as far as the configuration says.

        What the vector says more begins at weights of zero, and a second look with little trust in balls, so that
        hardly anything is said differently until it is trained. Tokens of another kind need no weights of another
        shape, and are read from the start as the others are.

        Raises:
            ValueError: the configuration leaves out what these weights are told, or tells more before it.
            RuntimeError: it has other sizes.
        """
        for name in weights.TOLD:
            if getattr(self.config, name) and not getattr(config, name):
                raise ValueError(f"expected a configuration with {name}, which these weights read, got one without")
        read = [name for name in weights.TOLD if getattr(self.config, name)]
        for i, name in enumerate(weights.TOLD):  # in the order of the vector, of which only the end can be added to
            after = [later for later in weights.TOLD[i:] if later in read]
            if getattr(config, name) and name not in read and after:
                raise ValueError(
                    f"expected a configuration without {name}, which cannot be added to weights with {after[0]}"
                )
        with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and replaced
            wider = MIST(config)
        state, more = self.plain_state(), wider.vector_mean.numel() - self.vector_mean.numel()
        if more:  # a second look that is told more, or is new, is as it begins
            state |= {key: tensor for key, tensor in wider.state_dict().items() if key.startswith("second_look.")}
        for name in ("vector_mean", "vector_std", "embed_vector.weight", "skip.weight"):
            state[name] = F.pad(state[name], (0, more), value=float(name == "vector_std"))
        wider.load_state_dict(state)
        return wider.to(self.vector_mean)

    def plain_state(self) -> dict[str, Tensor]:
        """The state of the plain reading: the estimator's own weights."""
        return {key: tensor for key, tensor in self.state_dict().items() if not key.startswith(ADDED)}

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        """Have the coordinates and the parent that the state has, or none, before it is loaded into them."""
        start = f"{prefix}parent."
        kept = [key[len(start) :] for key in state_dict if key.startswith(start)]
        if any(key.startswith(ADDED) for key in kept):
            raise ValueError("expected a parent that reads plainly, got one that is adapted itself")
        if kept and (missing := sorted(self.plain_state().keys() - kept)):
            raise ValueError(f"expected a whole parent, got one without {missing[0]} ({len(missing)} tensors in all)")
        start = f"{prefix}coordinates."
        state = {key[len(start) :]: tensor for key, tensor in state_dict.items() if key.startswith(start)}
        if state:
            from mist_loss.flows.coordinates import NormalCoordinates

            self.coordinates = NormalCoordinates.like(state).to(self.vector_mean)
        else:
            self.coordinates = None
        self.parent = frozen_twin(self) if kept else None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _read_rows(self, x: Tensor, y: Tensor) -> Tensor:
        return self.read(self._summary(x, y))

    def _summary(self, x: Tensor, y: Tensor) -> Summary:
        dtype = self.vector_mean.dtype
        return Summary(*(t.to(dtype) for t in steady(self.summarize(x, y))))


def frozen_twin(model: MIST) -> MIST:
    """Another of the same sizes, on the same device, in eval mode, whose weights are buffers."""
    # building a network must not move the user's random numbers, nor ask for memory before sizes are compared
    device = "meta" if model.vector_mean.is_meta else "cpu"
    with torch.random.fork_rng(devices=[]), torch.device(device):
        twin = MIST(model.config)
    freeze(twin)
    return twin.to(model.vector_mean).eval()

"""The normal coordinates of a modality, in which an adapted estimator reads its sides once more.

A flow is invertible, so rows share as much in its coordinates as before, whether or not it fits. What a dependence of
a few directions looks like once embeddings have bent it, hundreds of rows cannot show to anybody; the flow, fitted to
thousands, unbends it. What embeddings show plainly, as classes do, a flow may hide: hence both readings.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mist_loss.flows.layers import coupling_layers
from mist_loss.flows.marginals import WIDEST, Marginal
from mist_loss.model.frozen import freeze

UNLIKE = 4.0  # mean square of a normal direction, or its inverse, from which on rows are not of the modality
NARROW = 8  # directions; of fewer, clusters alone move a mean square as far: the square of UNLIKE is allowed
FARTHEST = 1e4  # standard deviations; so far out single precision would not follow the networks of a flow
MOST = {"width": WIDEST, "layers": 16, "hidden": 256, "bins": 32}  # that a file may ask memory for


class NormalCoordinates(nn.Module):
    """Both sides in the coordinates of their flows, as ``MIST.coordinates`` wants them.

    The weights of the flows are buffers: fine-tuning the estimator leaves them alone.

    Args:
        x: flow of x.
        y: flow of y; may be the same.
    """

    def __init__(self, x: Marginal, y: Marginal):
        super().__init__()
        self.sides = nn.ModuleList([_Side.of(flow) for flow in ([x] if y is x else [x, y])])

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> "NormalCoordinates":
        """Coordinates that the state of others can be loaded into; draws no random number.

        Raises:
            ValueError: it is the state of no coordinates.
            ModuleNotFoundError: the ``flows`` extra is not installed.
        """
        found = cls.__new__(cls)
        nn.Module.__init__(found)
        number = 2 if any(name.startswith("sides.1.") for name in state) else 1
        prefixes = [f"sides.{i}." for i in range(number)]
        found.sides = nn.ModuleList(
            [_Side.like({k[len(p) :]: v for k, v in state.items() if k.startswith(p)}) for p in prefixes]
        )
        return found

    def maps(self, x: Tensor, y: Tensor) -> bool:
        """Whether sets (b, n, dx) and (b, n, dy) can be mapped, and have more rows than features.

        A side can if it is as wide as the rows that the flow generates, or, from two features on, a multiple of that:
        several embeddings side by side, each of which is mapped alone. Fewer rows show hardly anything in any
        coordinates.
        """
        few = x.shape[1] <= max(x.shape[2], y.shape[2])
        of_x, of_y = self._both()
        return not few and of_x.fits(x) and of_y.fits(y)

    def narrows(self, x: Tensor, y: Tensor) -> bool:
        """Whether a side is as wide as the data of its flow, more than any estimator reads, and ``narrowed`` is mapped.

        Sides that can be read whole are not narrowed: what they hold beyond the flow's directions would be lost.
        """
        of_x, of_y = self._both()
        if not of_x.wider(x) and not of_y.wider(y):
            return False
        return self.maps(*(t[..., : len(s.center)] if s.wider(t) else t for s, t in ((of_x, x), (of_y, y))))

    def narrowed(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Sets that it ``narrows``, such sides in the principal coordinates that their flows map."""
        of_x, of_y = self._both()
        return of_x.principal(x), of_y.principal(y)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Sets that it ``maps``, in normal coordinates."""
        with torch.autocast(x.device.type, enabled=False):
            of_x, of_y = self._both()
            return of_x(x), of_y(y)

    def alike(self, u: Tensor, v: Tensor) -> Tensor:
        """Which sets (b,), in normal coordinates, are of the modality: no direction's mean square is far from one.

        At 16 and 32 directions, sets of 80 rows and more of two classes of embeddings stay within a factor of three of
        one; problems of the meta-distributions, as wide, and however they are scaled, nearly always have a direction
        more than a factor of four away.
        """
        found = torch.ones(len(u), dtype=torch.bool, device=u.device)
        for side, rows in zip(self._both(), (u, v), strict=True):
            most = UNLIKE if side.matrix.shape[1] >= NARROW else UNLIKE**2
            square = rows.detach().float().square().mean(1)
            found = found & ((square < most) & (square > 1 / most)).all(1)
        return found

    def _both(self) -> tuple["_Side", "_Side"]:
        return self.sides[0], self.sides[-1]  # type: ignore[return-value]


class _Side(nn.Module):
    """Rows to normal rows: centred, whitened by a matrix (dims, width), and through the layers of a flow.

    A flow of fewer directions than its data has maps rows in principal coordinates. Of data that is more than WIDEST
    wide, ``data``, ``mean`` and ``directions`` are kept, which lead there.
    """

    center: Tensor
    matrix: Tensor
    mean: Tensor | None
    directions: Tensor | None

    def __init__(self, dims: int, width: int, layers: int, hidden: int, bins: int, data: int | None = None):
        super().__init__()
        self.register_buffer("center", torch.zeros(dims))
        self.register_buffer("matrix", torch.zeros(dims, width))
        self.register_buffer("mean", None if data is None else torch.zeros(data))
        self.register_buffer("directions", None if data is None else torch.zeros(data, dims))
        with torch.random.fork_rng(devices=[]):  # layers draw weights that are then overwritten
            self.layers = nn.ModuleList(coupling_layers(width, layers, hidden, bins))
        freeze(self.layers)

    @classmethod
    def of(cls, flow: Marginal) -> "_Side":
        sizes = {name: flow.settings[name] for name in ("layers", "hidden", "bins")}
        data = None if flow.exact or len(flow.center) <= WIDEST else len(flow.center)
        side = cls(flow.dims, flow.width, **sizes, data=data).to(flow.center.device)
        if flow.exact:
            side.center.copy_(flow.center)
            side.matrix.copy_(flow.directions / flow.spread[:, None] / flow.scale)
        else:  # principal coordinates, which are centred
            side.matrix.copy_(torch.diag(1 / flow.scale))
        if side.mean is not None and side.directions is not None:
            side.mean.copy_(flow.center)
            side.directions.copy_(flow.directions / flow.spread[:, None])
        side.layers.load_state_dict(flow.layers.state_dict())
        return side.eval()

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> "_Side":
        try:
            dims, width = state["matrix"].shape
            if width == 1:
                layers, hidden, bins = 1, 1, state["layers.0.layer.unnormalized_widths"].shape[1] // 4
            else:
                last = max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
                layers = last // 2 + 1
                hidden = state["layers.0.prqct.transform_net.initial_layer.weight"].shape[0]
                bins = state["layers.0.prqct.unconditional_transform.unnormalized_widths"].shape[1]
        except (KeyError, ValueError, IndexError) as error:
            raise ValueError(f"expected the tensors of a flow in the coordinates of an estimator ({error})") from error
        sizes = {"width": width, "layers": layers, "hidden": hidden, "bins": bins}
        if not all(1 <= size <= MOST[name] for name, size in sizes.items()) or not width <= dims <= WIDEST:
            raise ValueError(f"expected a flow of dims up to {WIDEST} and {MOST} at most, got dims {dims}, {sizes}")
        mean = state.get("mean")
        if mean is not None and (mean.ndim != 1 or len(mean) <= WIDEST):
            raise ValueError(f"expected the mean of more than {WIDEST} features in a flow, got {tuple(mean.shape)}")
        with torch.device("cpu"):  # as what is compared with it
            side = cls(dims, **sizes, data=None if mean is None else len(mean))
        for name, own in side.named_buffers():
            given = state.get(name, own)
            good = given.is_floating_point() if own.is_floating_point() else given.dtype == own.dtype
            if good and name.endswith("_permutation"):  # any; other positions follow from the sizes
                good = torch.equal(given.cpu().flatten().sort().values, own.sort().values)
            elif good and not own.is_floating_point():
                good = torch.equal(given.cpu(), own)
            if not good:
                raise ValueError(
                    f"expected what a flow has in {name}, got {given.dtype} {given.flatten()[:8].tolist()}"
                )
        return side

    def fits(self, side: Tensor) -> bool:
        dims = len(self.center)
        return side.shape[2] == dims or (dims > 1 and side.shape[2] % dims == 0)

    def wider(self, side: Tensor) -> bool:
        """Whether rows are as wide as the data of a flow of fewer directions."""
        return self.mean is not None and side.shape[2] == len(self.mean)

    def principal(self, side: Tensor) -> Tensor:
        """Such rows in the principal coordinates, others as they are."""
        if self.mean is None or self.directions is None or not self.wider(side):
            return side
        return (_centred(side, self.mean) @ self.directions).to(side.dtype)

    def forward(self, side: Tensor) -> Tensor:
        b, n, _ = side.shape
        rows = side.reshape(b * n, -1, len(self.center)).flatten(0, 1)
        normal = (_centred(rows, self.center) @ self.matrix).clamp(-FARTHEST, FARTHEST)
        for layer in self.layers:
            normal, _ = layer.inverse(normal)  # type: ignore[operator]
        return normal.reshape(b, n, -1)


def _centred(rows: Tensor, mean: Tensor) -> Tensor:
    """Rows less their mean, in its precision; far offsets are taken away in the precision of the rows."""
    return (rows.to(torch.promote_types(rows.dtype, mean.dtype)) - mean).to(mean.dtype)

"""The normal coordinates of a modality, in which an adapted estimator reads its sides once more.

A flow is invertible, so rows share as much in its coordinates as before, whether or not it fits them. What a dependence
of a few directions looks like once embeddings have bent it, hundreds of rows cannot show to anybody; the flow, fitted
to thousands, unbends it. What embeddings show plainly, as classes do, a flow may hide: hence both readings.
"""

import torch
from torch import Tensor, nn

from mist_loss.flows.marginals import WIDEST, Marginal

FARTHEST = 1e4  # standard deviations; so far out float32 would not follow the networks of a flow


class NormalCoordinates(nn.Module):
    """Both sides in the coordinates of their flows, as ``MIST.coordinates`` wants them.

    The weights of the flows are buffers: fine-tuning the estimator leaves them alone.

    Args:
        x: flow of x.
        y: flow of y; may be the same.
    """

    def __init__(self, x: Marginal, y: Marginal):
        super().__init__()
        self.flows = nn.ModuleList([_constant(x)] if y is x else [_constant(x), _constant(y)])

    @property
    def sides(self) -> tuple[Marginal, Marginal]:
        """The flows of x and of y."""
        return self.flows[0], self.flows[-1]  # type: ignore[return-value]

    @property
    def settings(self) -> list[dict]:
        """What ``from_settings`` builds the same coordinates from, but for their weights; JSON."""
        return [flow.settings for flow in self.flows]  # type: ignore[misc]

    @classmethod
    def from_settings(cls, settings: object) -> "NormalCoordinates":
        """Coordinates whose weights are to be loaded; draws no random number.

        Raises:
            ValueError: settings of no flow.
            ModuleNotFoundError: the ``flows`` extra is not installed.
        """
        if not isinstance(settings, list) or len(settings) not in (1, 2) or not all(map(_is_flow, settings)):
            raise ValueError(f"expected settings of one or two flows, got {settings!r}")
        with torch.random.fork_rng(devices=[]):
            flows = [Marginal(**each) for each in settings]
        return cls(flows[0], flows[-1])

    def require_positions(self) -> None:
        """Check what was loaded: features are picked by their positions.

        Raises:
            ValueError: some are none, or come twice.
        """
        for name, tensor in self.named_buffers():
            if tensor.is_floating_point():
                continue
            width = self.sides[int(name.split(".")[1])].width
            if tensor.ndim != 1 or sorted(set(tensor.tolist()) & set(range(width))) != sorted(tensor.tolist()):
                raise ValueError(f"expected distinct positions below {width} in {name}, got {tensor.tolist()}")

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """(b, n, dx) and (b, n, dy) in normal coordinates, float32; None where a side does not fit its flow.

        A side fits if its width is that of the modality, or a multiple: several embeddings side by side, each of
        which is mapped alone.
        """
        flow_x, flow_y = self.sides
        if x.shape[2] % flow_x.dims or y.shape[2] % flow_y.dims:
            return None
        with torch.autocast(x.device.type, enabled=False):
            return _mapped(flow_x, x), _mapped(flow_y, y)


def _mapped(flow: Marginal, side: Tensor) -> Tensor:
    b, n, _ = side.shape
    parts = side.reshape(-1, flow.dims).to(flow.center.dtype)
    white = flow.whiten(parts) if flow.exact else parts / flow.scale
    normal, _ = flow.flow(white.clamp(-FARTHEST, FARTHEST))
    return normal.reshape(b, n, -1)


def _constant(flow: Marginal) -> Marginal:
    """A copy in single precision whose weights are buffers."""
    with torch.random.fork_rng(devices=[]):  # building a flow draws what is then overwritten
        copy = Marginal(**flow.settings)  # type: ignore[arg-type]
    copy.load_state_dict(flow.state_dict())
    for module in copy.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, weight.detach())
    return copy.to(flow.center.device).float().eval()


def _is_flow(settings: object) -> bool:
    sizes = {"dims": 65536, "width": WIDEST, "layers": 64, "hidden": 4096, "bins": 1024}
    return (
        isinstance(settings, dict)
        and settings.keys() == {*sizes, "exact"}
        and type(settings["exact"]) is bool
        and all(type(settings[name]) is int and 1 <= settings[name] <= most for name, most in sizes.items())
    )

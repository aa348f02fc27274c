"""Layers of a flow: rational-quadratic splines of normflows, each the identity at first."""

import math

from torch import Tensor, nn

BOUND = 5.0  # beyond so many standard deviations a spline is the identity


def coupling_layers(width: int, layers: int, hidden: int, bins: int) -> list[nn.Module]:
    """Layers from the data outwards, each the identity (or a permutation) at first: a flow starts as a Gaussian."""
    try:
        from normflows import flows
        from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCDF
        from normflows.utils.splines import DEFAULT_MIN_DERIVATIVE
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'flows need {error.name}: pip install "mist-loss[flows]"') from error
    if width == 1:
        # its forward is the direction without a square root; here that one is called inverse, as in coupling layers
        return [_Swapped(PiecewiseRationalQuadraticCDF([1], num_bins=4 * bins, tails="linear", tail_bound=BOUND))]
    found: list[nn.Module] = []
    for i in range(layers):
        coupling = flows.CoupledRationalQuadraticSpline(
            width, 1, hidden, num_bins=bins, tail_bound=BOUND, reverse_mask=bool(i % 2)
        )
        last = coupling.prqct.transform_net.final_layer
        nn.init.zeros_(last.weight)
        # derivatives of one; the equal widths and heights this also gives are those of the identity
        nn.init.constant_(last.bias, math.log(math.expm1(1 - DEFAULT_MIN_DERIVATIVE)))
        found += [coupling, flows.LULinearPermute(width)] if i < layers - 1 else [coupling]
    return found


class _Swapped(nn.Module):
    layer: nn.Module

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer.inverse(rows)  # type: ignore[operator]

    def inverse(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(rows)

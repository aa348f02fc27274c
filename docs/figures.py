"""Draw the figure of the start page: ``python docs/figures.py``."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from mist_loss import estimate_mi
from mist_loss.files import replacing


def main() -> None:
    """Estimates of Gaussian pairs, two dimensions a side, correlation rho in both: truth -log(1 - rho^2) nats."""
    torch.manual_seed(2026)
    rho = torch.linspace(0, 0.97, 16)[:, None, None]
    truth = -torch.log(1 - rho.flatten() ** 2)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, n in zip(figure.subplots(1, 3, sharey=True), (50, 200, 1000), strict=True):
        x, noise = torch.randn(2, 16, n, 2)
        value, low, high = estimate_mi(x, rho * x + (1 - rho**2).sqrt() * noise)
        axes.plot(truth, truth, color="grey", linewidth=1, label="truth")
        axes.fill_between(truth, low, high, alpha=0.25, label="90% interval")
        axes.plot(truth, value, "o", markersize=4, label="estimate")
        axes.set(title=f"{n} rows", xlabel="true mutual information (nats)")
    figure.axes[0].set_ylabel("estimate (nats)")
    figure.axes[0].legend(frameon=False)
    path = Path(__file__).parent / "figures" / "estimates.png"
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()

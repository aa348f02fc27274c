"""What the shipped weights said when they were shipped: a change of torch or of the code that moves it is seen here.

After new weights, or a change that is meant to move estimates: ``python tests/test_consistency.py`` writes it anew.
"""

import json
from pathlib import Path

import pytest
import torch

from mist_loss import MIST, estimate_mi
from mist_loss.files import write_text
from mist_loss.model import weights

STORED = Path(__file__).parent / "data" / "predictions.json"
RENEW = "if the change is meant, run `python tests/test_consistency.py` and commit tests/data/predictions.json"
# nats; float64 tells a change of method from rounding, float32 is what users run
TOLERANCE = {"float64": 1e-5, "float32": 2e-3}


def points(n: int, d: int) -> torch.Tensor:
    """(n, d) normal scores of Weyl's fractional parts k^2 sqrt(p): no generator's stream to depend on, and no lattice.

    Near rows of a lattice differ by a few vectors, which an estimator that compares near rows takes for dependence.
    """
    primes = torch.tensor([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53], dtype=torch.float64)
    steps = torch.arange(1, n + 1, dtype=torch.float64)[:, None] ** 2 * primes[:d].sqrt()
    return torch.special.ndtri(steps % 1)


def cases() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of samples, float64."""
    z = points(400, 16)
    return {
        "one and one, correlated": (z[:, :1], z[:, :1] + z[:, 1:2]),
        "independent": (z[:, :3], z[:, 3:8]),
        "few rows": (z[:30, :4], z[:30, :4] + 0.5 * z[:30, 4:8]),
        "two thousand rows": (points(2000, 4)[:, :2], points(2000, 4)[:, :2] ** 3 + points(2000, 4)[:, 2:]),
        "eight and eight": (z[:, :8], z[:, :8] + z[:, 8:]),
        "no correlation": (z[:, :1], z[:, :1] ** 2 + 0.3 * z[:, 1:2]),
        "heavy tails": (torch.tan(1.5 * torch.special.ndtr(z[:, :2])), z[:, :2] + z[:, 2:4]),
        "labels": (z[:, :2], (z[:, :1] + 0.3 * z[:, 2:3] > 0).double()),
    }


def predictions() -> dict[str, dict[str, list[float]]]:
    """Value, low and high in nats of every case, with network and input in either precision."""
    model = MIST.from_pretrained("mist-base")
    found = {}
    for dtype in (torch.float64, torch.float32):
        network = model.to(dtype)
        found[str(dtype).removeprefix("torch.")] = {
            name: [float(t) for t in estimate_mi(x.to(dtype), y.to(dtype), model=network)]
            for name, (x, y) in cases().items()
        }
    return found


def test_estimates_are_what_they_were():
    stored = json.loads(STORED.read_text())
    shipped = weights.REGISTRY["mist-base"][1]
    if stored["sha256"] != shipped:
        pytest.fail(
            f"{STORED.name} belongs to weights {stored['sha256'][:12]}, mist-base is now {shipped[:12]}: {RENEW}"
        )
    for precision, found in predictions().items():
        for name, values in found.items():
            assert values == pytest.approx(stored[precision][name], abs=TOLERANCE[precision]), (
                f"{name!r} in {precision}, stored with torch {stored['torch']}: {RENEW}"
            )


def test_the_file_has_every_case():
    stored = json.loads(STORED.read_text())
    assert all(stored[precision].keys() == cases().keys() for precision in TOLERANCE)


if __name__ == "__main__":
    STORED.parent.mkdir(exist_ok=True)
    content = {"sha256": weights.REGISTRY["mist-base"][1], "torch": torch.__version__} | predictions()
    write_text(STORED, json.dumps(content, indent=1) + "\n")
    print(f"wrote {STORED}")

"""Pairs of views and encoders whose mutual information stays known while the encoders are trained.

A scenario is a problem for an objective: it draws views, makes a pair of fresh encoders, and says what the codes of any
such pair share. It imports nothing of what trains the estimator. Stored results name a scenario by a digest of its
fields, so that a change of a class's name, fields or defaults makes them those of another problem.
"""

from mist_loss.evaluation.scenarios.hidden import Hidden
from mist_loss.evaluation.scenarios.linear import Linear, spectrum
from mist_loss.evaluation.scenarios.nonlinear import Nonlinear
from mist_loss.evaluation.scenarios.problem import Scenario, Truth
from mist_loss.evaluation.scenarios.samples import Samples

__all__ = ["FULL", "QUICK", "Hidden", "Linear", "Nonlinear", "Samples", "Scenario", "Truth", "spectrum"]

QUICK: tuple[Scenario, ...] = (
    Linear("Gaussian, decaying", spectrum("decaying", 24, 8), dims=8),
    Linear("Gaussian, removed", spectrum("decaying", 24, 8), dims=8, direction="minimize"),
    Hidden("signs, removed", "signs", dims=2, view_dims=6),
)
FULL: tuple[Scenario, ...] = (
    *QUICK,
    Linear("Gaussian, decaying, small", spectrum("decaying", 12, 4), dims=4, rows=64),
    Linear("Gaussian, level", spectrum("level", 32, 16), dims=16, rows=512),
    Linear("Gaussian, few strong", spectrum("few", 24, 8), dims=8),
    Linear("Gaussian, wide", spectrum("decaying", 64, 32), dims=32, rows=1024),
    Linear("Student-t, 3 dof", spectrum("decaying", 12, 4), dims=4, dof=3.0),
    Linear("Student-t, 6 dof", spectrum("decaying", 24, 8), dims=8, rows=512, dof=6.0),
    Nonlinear("bent", (0.95, 0.9, 0.8, 0.6), view_dims=8, dims=4),
    Nonlinear("bent, wide", spectrum("decaying", 16, 8)[:8], view_dims=16, dims=8, rows=512),
    Nonlinear("bent additive noise", (0.15, 0.3, 0.6), view_dims=6, dims=3, additive=True),
    Linear("Gaussian, removed, small", spectrum("decaying", 8, 4), dims=4, rows=128, direction="minimize"),
    Hidden("radii, removed", "radii", dims=2, view_dims=6),
    Samples("free samples", dims=4),
)

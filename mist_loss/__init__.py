"""Mutual information as a PyTorch loss: a pretrained, differentiable estimator with intervals."""

from importlib.metadata import version

from mist_loss.criterion import MISTCriterion
from mist_loss.estimate import Estimate, estimate_mi
from mist_loss.model.network import MIST

__version__ = version("mist-loss")
__all__ = ["MIST", "Estimate", "MISTCriterion", "__version__", "estimate_mi"]

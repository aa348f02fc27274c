"""Mutual information as a PyTorch loss: a pretrained, differentiable estimator with intervals."""

from importlib.metadata import version

from mist_loss.auditor import AuditWarning, MIAuditor
from mist_loss.criterion import MISTCriterion
from mist_loss.estimate import Estimate, estimate_mi
from mist_loss.model.network import MIST
from mist_loss.queue import QueuedCriterion

__version__ = version("mist-loss")
__all__ = [
    "MIST",
    "AuditWarning",
    "Estimate",
    "MIAuditor",
    "MISTCriterion",
    "QueuedCriterion",
    "__version__",
    "estimate_mi",
]

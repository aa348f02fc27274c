import subprocess
import sys

import mist_loss

HEAVY = ("torchvision", "normflows", "jax", "sklearn", "matplotlib", "accelerate", "pandas", "scipy", "torch._dynamo")


def test_import_is_light_and_silent():
    code = f"import sys, mist_loss; print([name for name in {HEAVY} if name in sys.modules])"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_public_names():
    promised = {"MIST", "AuditWarning", "Estimate", "MIAuditor", "MISTCriterion", "QueuedCriterion", "estimate_mi"}
    assert set(mist_loss.__all__) == promised | {"__version__"}
    assert all(hasattr(mist_loss, name) for name in mist_loss.__all__)
    assert mist_loss.__version__

"""What a stranger tries first, on the installed package, without checkout or network; warnings are errors."""

import contextlib
import io
import json
import os
import socket
import sys
import tempfile
import warnings
from pathlib import Path


def refuse(*args: object) -> None:
    """In place of every connection."""
    raise AssertionError(f"the network was asked for: {args[1:]}")


def main() -> None:
    """Import, estimate, one gradient, one command on a file, a folder of weights out and in."""
    socket.socket.connect = refuse  # type: ignore[method-assign]
    warnings.simplefilter("error")
    import mist_loss

    package = Path(mist_loss.__file__).parent
    assert "site-packages" in package.parts, f"{package} is not an installed package"
    assert (package / "py.typed").is_file()

    import torch

    from mist_loss import cli

    torch.manual_seed(0)
    x = torch.randn(400, 2, requires_grad=True)
    y = (x + torch.randn(400, 2)).detach()  # log 2 = 0.69 nats
    estimate = mist_loss.estimate_mi(x, y)
    assert abs(estimate.value.item() - 0.69) < 0.25, estimate
    mist_loss.MISTCriterion()(x, y).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        lines = ["a,b", *(f"{a},{b}" for a, b in zip(x[:, 0].tolist(), y[:, 0].tolist(), strict=True))]
        Path("rows.csv").write_text("\n".join(lines))
        mist_loss.MIST.from_pretrained("mist-base").save_pretrained("mine")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert cli.main(["estimate", "rows.csv", "--x", "a", "--y", "b", "--model", "mine", "--json"]) == 0
        answer = json.loads(out.getvalue())
        assert answer["low"] < answer["value"] < answer["high"], answer
        os.chdir("/")
    print(f"smoke test passed: mist-loss {mist_loss.__version__}, torch {torch.__version__}, Python {sys.version[:6]}")


if __name__ == "__main__":
    main()

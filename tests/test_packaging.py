"""What the installed package contains."""

from importlib import metadata
from pathlib import Path

import pytest

import mist_loss

CHECKOUT = Path(__file__).parents[1]


def test_every_package_is_listed():
    tomllib = pytest.importorskip("tomllib")
    listed = set(tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(path.parent.relative_to(CHECKOUT).parts) for path in CHECKOUT.glob("mist_loss/**/__init__.py")}
    assert listed == found | {"mist_loss.pretrained"}


def test_types_are_announced():
    assert (Path(mist_loss.__file__).parent / "py.typed").is_file()


def test_one_version():
    assert mist_loss.__version__ == metadata.version("mist-loss")
    assert f"version: {mist_loss.__version__}\n" in (CHECKOUT / "CITATION.cff").read_text()
    assert f"## {mist_loss.__version__}" in (CHECKOUT / "CHANGELOG.md").read_text()

"""The recipe runs as a user would run it, on images that need no download."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("normflows")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
RECIPE = Path(__file__).parents[2] / "recipes" / "new_modality.py"


@pytest.mark.slow
def test_digits(tmp_path):
    command = [sys.executable, str(RECIPE), "--smoke", "--width", "4", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["flows"]["x"]["width"] == 4
    assert result["real"]["before"]["error"] > 0
    assert (tmp_path / "true-against-estimated.png").stat().st_size > 0
    assert (tmp_path / "weights.safetensors").exists()


def test_missing_emoji_are_asked_for(tmp_path):
    command = [sys.executable, str(RECIPE), "--data", "emoji", "--emoji", str(tmp_path), "--cache", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 1
    assert "npm pack emoji-datasource-twitter@16.0.0" in done.stderr

"""The command line as its users run it: another process, its output, its errors, its exit code."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import mist_loss
from mist_loss import cli
from mist_loss.model import weights


def run(*argv, **environment):
    command = [sys.executable, "-m", "mist_loss.cli", *map(str, argv)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment, timeout=300
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """400 rows where b follows a, and c nothing."""
    rng = np.random.default_rng(0)
    a, c = rng.normal(size=(2, 400))
    b = 0.9 * a + np.sqrt(1 - 0.81) * rng.normal(size=400)  # -log(1 - 0.81) / 2 = 0.83 nats
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    path.write_text("a,b,c\n" + "\n".join(f"{x},{y},{z}" for x, y, z in zip(a, b, c, strict=True)))
    return path


def test_an_estimate(rows):
    done = run("estimate", rows, "--x", "a,c", "--y", "b", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert answer["low"] < answer["value"] < answer["high"]
    assert abs(answer["value"] - 0.83) < 0.15
    assert (answer["rows"], answer["dims"], answer["unit"]) == (400, [2, 1], "nats")


def test_a_matrix_with_its_heat_map(rows, tmp_path):
    pytest.importorskip("matplotlib")
    done = run("estimate", rows, "--matrix", "--output", tmp_path / "mi.csv", MPLBACKEND="agg")
    assert (done.returncode, done.stdout) == (0, "")
    assert str(tmp_path / "mi.png") in done.stderr
    table = list(csv.reader(io.StringIO((tmp_path / "mi.csv").read_text())))
    assert table[0] == ["", "a", "b", "c"]
    assert table[1][1] == ""
    assert table[1][2] == table[2][1]
    assert abs(float(table[1][2]) - 0.83) < 0.15
    assert float(table[1][3]) < 0.1


def test_a_mistake_is_one_line_on_stderr(rows):
    done = run("estimate", rows, "--x", "a", "--y", "weight")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mist-loss estimate: expected a column")
    assert "there are: a, b, c" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def call(capsys, *argv):
    code = cli.main(list(map(str, argv)))
    return code, *capsys.readouterr()


def test_matrices_to_stdout(rows, capsys):
    code, out, _ = call(capsys, "estimate", rows, "--matrix", "--x", "a,c", "--y", "b")
    assert code == 0
    assert [line.split(",")[0] for line in out.splitlines()] == ["", "a", "c"]
    code, out, _ = call(capsys, "estimate", rows, "--matrix", "--json")
    answer = json.loads(out)
    assert (code, answer["x"], answer["value"][0][0]) == (0, ["a", "b", "c"], None)
    assert answer["low"][0][1] < answer["value"][0][1] < answer["high"][0][1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--x", "a"], "expected --x COLS and --y COLS"),
        (["--x", "a", "--y", "b", "--output", "mi.csv"], "--output belongs to --matrix"),
        (["--matrix", "--projection", "random"], "--projection is for many dimensions"),
        (["--matrix", "--output", "mi.txt"], "expected --output to be a .csv file"),
        (["--matrix", "--output", "nowhere/mi.csv"], "in an existing folder"),
        (["--x", "a", "--y", "b", "--level", "90"], "strictly between 0 and 1"),
        (["--x", "a", "--y", "b", "--model", "mist-huge"], "expected one of ['mist-base'"),
        (["--x", "a", "--y", "b", "--model", "someone/name"], "40 hexadecimal digits"),
    ],
)
def test_mistakes(rows, capsys, argv, message):
    code, out, err = call(capsys, "estimate", rows, *argv)
    assert (code, out) == (2, "")
    assert message in err


def test_models(capsys):
    code, out, _ = call(capsys, "models")
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == list(weights.REGISTRY)
    code, out, _ = call(capsys, "models", "--json")
    assert [model["name"] for model in json.loads(out)] == list(weights.REGISTRY)


def test_info(capsys, tmp_path, model):
    code, out, _ = call(capsys, "info", "mist-base", "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["sha256"] == weights.REGISTRY["mist-base"][1]
    assert answer["config"]["dims"] == [1, 64]
    folder = model.save_pretrained(tmp_path / "mine", {"command": "test"})
    code, out, _ = call(capsys, "info", folder)
    assert code == 0
    assert '  command: "test"' in out
    assert f"parameters: {sum(p.numel() for p in model.parameters())}" in out
    code, out, err = call(capsys, "info", "mist-huge")
    assert (code, out) == (2, "")
    assert err.startswith("mist-loss info: expected one of")


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.strip() == f"mist-loss {mist_loss.__version__}"


def test_a_column_is_not_compared_with_itself(rows, capsys):
    tables = [
        call(capsys, "estimate", rows, "--matrix", "--x", x, "--y", y)[1] for x, y in ((":", "a,b,c"), ("a,b", "b"))
    ]
    whole, part = (list(csv.reader(io.StringIO(table))) for table in tables)
    assert [whole[i][i] for i in (1, 2, 3)] == ["", "", ""]
    assert (part[1][1], part[2][1]) == (whole[1][2], "")
    assert float(part[1][1]) > 0


def test_a_matrix_does_not_overwrite_what_it_is_made_of(rows, capsys):
    before = rows.read_bytes()
    code, _, err = call(capsys, "estimate", rows, "--matrix", "--output", rows.parent / "." / rows.name)
    assert (code, rows.read_bytes()) == (2, before)
    assert "another file than the one that is read" in err


def test_a_heat_map_without_matplotlib_is_refused_before_anything_is_computed(rows, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("mist_loss.matrix.mi_matrix", None)
    code, _, err = call(capsys, "estimate", rows, "--matrix", "--output", tmp_path / "mi.csv")
    assert code == 2
    assert "a heat map needs matplotlib" in err


def test_an_interrupted_command_says_so_in_a_line(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("mist_loss.commands.models.main", interrupted)
    assert cli.main(["models"]) == 130
    assert capsys.readouterr().err == "mist-loss models: interrupted; what was saved is kept\n"

"""Every recipe trains, writes its folder, and, killed and resumed, ends where it would have ended."""

import csv
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("torchvision")
pytest.importorskip("lightly")
sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
import contrastive
import disentangle
import information_plane
import invariance
import penalised
from factors import Part

SMALL = ("--images", "256", "--epochs", "2", "--batch-size", "64")
RECIPES = [
    (contrastive, contrastive, ("--objective", "mist+ntxent"), "encoder.safetensors", "curve.png"),
    (disentangle, penalised, ("--penalty", "mist"), "model.safetensors", "swaps.png"),
    (invariance, penalised, ("--penalty", "adversary"), "model.safetensors", "attributes.png"),
    (information_plane, information_plane, (), "model.safetensors", "plane.png"),
]


@pytest.fixture(autouse=True)
def short_probes(monkeypatch):
    for recipe in (disentangle, invariance):
        monkeypatch.setattr(recipe, "PROBE_IMAGES", 600)


@pytest.mark.parametrize("recipe", [disentangle, invariance, information_plane])
def test_a_smoke_test_takes_no_more_images_than_were_asked_for(recipe):
    assert recipe.parse(["--smoke", "--images", "64"]).images == 64
    assert recipe.parse(["--smoke"]).images == 1024


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("recipe", "trainer", "flags", "weights", "figure"), RECIPES, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_run_that_was_killed_ends_where_it_would_have(tmp_path, monkeypatch, recipe, trainer, flags, weights, figure):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    recipe.main([*SMALL, *flags, "--output", str(whole)])
    names = {"config.json", "result.json", "metrics.csv", "checkpoint.safetensors", weights, figure}
    assert {path.name for path in whole.iterdir()} == names
    assert (whole / figure).stat().st_size > 5000
    rows = list(csv.DictReader((whole / "metrics.csv").open()))
    assert [row["epoch"] for row in rows][-2:] == ["1", "2"]

    save = trainer.save_checkpoint

    def save_and_die(*arguments):
        save(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_checkpoint", save_and_die)
        with pytest.raises(Killed):
            recipe.main([*SMALL, *flags, "--output", str(parts)])
    assert not (parts / "result.json").exists()
    recipe.main([*SMALL, *flags, "--output", str(parts), "--resume"])
    one, two = (load_file(folder / weights) for folder in (whole, parts))
    assert all((one[key] == two[key]).all() for key in one)
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, parts)]
    for result in results:
        for key in ("seconds", "step_ms"):
            result.pop(key, None)
    assert results[0] == results[1]


def test_another_run_s_folder_is_left_alone(tmp_path):
    flags = [*SMALL, "--epochs", "1", "--output", str(tmp_path)]
    invariance.main([*flags, "--penalty", "none"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for other in ([], ["--resume"]):
        with pytest.raises(SystemExit, match=r"penalty none there, mist now.*choose another --output"):
            invariance.main([*flags, "--penalty", "mist", *other])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        (disentangle, ["--rebuild", "-3"], "finite number of at least 0"),
        (contrastive, ["--share", "nan"], "finite number of at least 0"),
        (information_plane, ["--seed", str(2**32)], "at most"),
        (invariance, ["--device", "meta"], "a device of this machine"),
    ],
)
def test_bad_flags_are_named(capsys, recipe, flags, message):
    with pytest.raises(SystemExit, match="2"):
        recipe.main(flags)
    assert flags[0] in (said := capsys.readouterr().err)
    assert message in said


@pytest.mark.parametrize("recipe", [recipe for recipe, *_ in RECIPES], ids=lambda recipe: recipe.__name__)
def test_an_output_that_is_a_file_is_no_traceback(tmp_path, recipe):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=recipe.__name__):
        recipe.main([*SMALL, "--output", str(tmp_path / "file" / "sub")])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [recipe for recipe, *_ in RECIPES], ids=lambda recipe: recipe.__name__)
def test_mixed_precision_and_compilation(tmp_path, recipe: ModuleType):
    recipe.main([*SMALL, "--amp", "--compile", "--output", str(tmp_path)])
    assert (tmp_path / "result.json").exists()


@pytest.mark.parametrize("recipe", [disentangle, invariance], ids=lambda recipe: recipe.__name__)
def test_fresh_probes_of_an_untrained_encoder_read_colour_and_class(tmp_path, recipe):
    recipe.main([*SMALL, "--lr", "0", "--noise", "0", "--penalty", "none", "--output", str(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())
    leak = result["leak_style" if recipe is disentangle else "leak"]
    assert 10 < leak < 90
    assert 20 < result["content" if recipe is disentangle else "task"] < 100


@pytest.mark.parametrize("leaks", [False, True])
def test_a_code_that_knows_the_content_is_not_said_to_hide_the_style(leaks):
    torch.manual_seed(0)
    contents, styles = 60, 5
    content, style = torch.arange(contents).repeat_interleave(styles), torch.arange(styles).repeat(contents)
    code = torch.randn(contents, 8)[content]
    if leaks:
        code = torch.cat([code, torch.eye(styles)[style]], dim=1)
    order = torch.randperm(len(content))
    parts = [Part(torch.zeros(len(index)), content[index], style[index]) for index in (order[60:], order[:60])]
    codes = [code[order[60:]], code[order[:60]]]
    leak = penalised.style_leak(codes[0], parts[0], codes[1], parts[1], painted=False)
    assert leak > 60 if leaks else abs(leak) < 12
    if not leaks:  # what was left out in training is what is left
        assert penalised.style_leak(codes[0], parts[0], codes[1], parts[1], painted=True) < -12


def test_a_comparison_prints_its_table_and_its_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(disentangle, "WEIGHTS", {"none": 0.0, "mist": 0.1})
    arguments = [*SMALL, "--compare", "--seeds", "7", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["recipes/disentangle.py", *arguments])
    disentangle.main(arguments)
    printed = capsys.readouterr().out
    assert "| none |" in printed
    assert "| mist |" in printed
    assert "Seeds 7:" in printed
    assert "python recipes/disentangle.py --images 256" in printed
    assert (tmp_path / "table.md").read_text().strip() == printed.strip()


def test_weights_are_chosen_by_leakage_among_those_that_cost_little():
    plain = [{"leak": 50.0, "task": 95.0}, {"leak": 50.0, "task": 97.0}]
    costs = {0.1: (40.0, 96.5), 0.3: (20.0, 95.2), 1.0: (10.0, 94.9), 3.0: (1.0, 80.0)}
    results: list[dict] = [
        {"config": {"weight": w}, "leak": leak + seed, "task": task + seed}
        for seed in (-5, 5)
        for w, (leak, task) in costs.items()
    ]
    assert penalised.choose(results, plain, ("leak",), ("task",)) == 0.3
    expensive = [result for result in results if result["config"]["weight"] >= 1]
    assert penalised.choose(expensive, plain, ("leak",), ("task",)) == 1.0


def test_tuning_tries_every_weight_on_its_seeds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(invariance, "WEIGHTS", {"none": 0.0, "adversary": 7.0})
    monkeypatch.setattr(penalised, "TRIED", {"adversary": (0.5, 2.0)})
    monkeypatch.setattr(penalised, "TUNING_SEEDS", (0, 1))
    invariance.main([*SMALL, "--tune", "--seeds", "9", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert [line.split(" ")[1] for line in printed.splitlines() if line.startswith("| ")][2:] == ["0.0", "0.5", "2.0"]
    assert "chosen: " in printed
    assert {path.name for path in (tmp_path / "adversary").iterdir()} == {"0.5-0", "2.0-0", "0.5-1", "2.0-1"}


def test_the_channel_s_information_is_right_where_it_is_known():
    torch.manual_seed(0)
    clean = torch.tensor([[-10.0], [10.0]]).repeat(500, 1)
    noisy = clean + 0.5 * torch.randn(1000, 1)
    assert information_plane.channel_information(clean, noisy, 0.5) == pytest.approx(0.6931, abs=1e-3)
    gaussian = torch.randn(4000, 1)
    told = information_plane.channel_information(gaussian, gaussian + 0.5 * torch.randn(4000, 1), 0.5)
    assert told == pytest.approx(0.5 * torch.log(torch.tensor(1 + 1 / 0.25)).item(), abs=0.06)

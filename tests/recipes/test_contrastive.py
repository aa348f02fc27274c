"""The recipe runs as a user would run it, and its parts do what they say."""

import csv
import gzip
import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("torchvision")
pytest.importorskip("lightly")
RECIPES = Path(__file__).parents[2] / "recipes"
sys.path.insert(0, str(RECIPES))
import contrastive  # noqa: E402
import data  # noqa: E402


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(RECIPES / "contrastive.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_smoke(tmp_path):
    done = run("--smoke", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "linear probe" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["config"]["objective"] == "mist"
    assert result["linear_pixels"] > 90
    assert min(result["linear"], result["linear_untrained"], result["neighbours"]) > 30
    history = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [row["epoch"] for row in history] == ["1", "2", "3"]
    assert all(float(row["low"]) <= float(row["estimate"]) <= float(row["high"]) for row in history)
    weights = load_file(tmp_path / "encoder.safetensors")
    contrastive.build_encoder("convnet", 1, 16).load_state_dict(weights)


@pytest.mark.parametrize("name", contrastive.OBJECTIVES)
def test_objectives_prefer_views_that_agree(name):
    torch.manual_seed(0)
    objective = contrastive.Objective(name, 0.1, 0, 8, 8)
    if objective.local is not None:
        objective.local = torch.nn.Sequential()  # the identity
    z, other = torch.randn(2, 256, 8)
    near, far = torch.cat([z, z + 0.3 * torch.randn_like(z)]), torch.cat([z, other])
    agree, differ = (objective(features[:, :, None, None], features) for features in (near, far))
    assert agree < differ - 0.1
    told, nothing = objective.nats(near), objective.nats(far)
    assert told["low"] <= told["estimate"] <= told["high"]
    assert told["estimate"] > nothing["estimate"] + 1
    assert max(0.5, nothing["infonce"] + 0.3) < told["infonce"] <= math.log(511)


def test_a_queue_lends_rows_to_a_small_batch():
    torch.manual_seed(0)
    alone, queued = (contrastive.Objective("mist", 0.1, queue, 8, 8) for queue in (0, 100))
    z = torch.randn(400, 8)
    views = [torch.cat([rows, rows + 0.5 * torch.randn_like(rows)]) for rows in z.split(50)]
    for features in views:
        queued(features[:, :, None, None], features)
    torch.manual_seed(1)  # of the rotation
    loss = queued(views[0][:, :, None, None], views[0])
    rows = [torch.cat([views[0][side : side + 50], *(v[side : side + 50] for v in views[-2:])]) for side in (0, 50)]
    torch.manual_seed(1)
    expected = alone(z, torch.cat(rows))
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize(("features", "groups", "width"), [(16, 4, 4), (10, 2, 4), (3, 1, 3)])
def test_groups_are_of_rotations_of_whitened_features(features, groups, width, alike):
    torch.manual_seed(0)
    x = torch.randn(500, features) @ torch.randn(features, features)
    one, two = contrastive.turned_groups(x, x, alike)
    assert one.shape == (contrastive.TURNS * groups, 500, width)
    torch.testing.assert_close(one, two)
    turns = one.unflatten(0, (contrastive.TURNS, groups)).transpose(1, 2).flatten(2)
    identity = torch.eye(groups * width).expand(contrastive.TURNS, -1, -1)
    torch.testing.assert_close(turns.mT @ turns / 500, identity, atol=5e-3, rtol=0)
    assert (turns[0] - turns[1]).abs().max() > 0.5  # another rotation
    again, _ = contrastive.turned_groups(x, x, alike)
    assert (one - again).abs().max() > 0.5


def test_views_are_whitened_together_and_other_sides_apart():
    torch.manual_seed(0)
    x, y = torch.randn(2000, 4), 3 * torch.randn(2000, 4)
    one, two = contrastive.turned_groups(x, y, alike=True)
    assert two.var() / one.var() == pytest.approx(9, rel=0.1)
    one, two = contrastive.turned_groups(x, y, alike=False)
    assert two.var() / one.var() == pytest.approx(1, rel=0.1)


def test_a_local_feature_is_one_of_its_image():
    maps = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    seen = torch.stack([contrastive.somewhere(maps) for _ in range(50)])
    assert seen.shape == (50, 2, 3)
    places = maps.flatten(2).transpose(1, 2)
    assert all((places[i] == row).all(-1).any() for drawn in seen for i, row in enumerate(drawn))
    assert len(seen[:, 0, 0].unique()) > 5


def test_encoders_take_any_small_image():
    for name, channels in (("convnet", 128), ("resnet18", 512)):
        encoder = contrastive.build_encoder(name, 3, 5)
        images = torch.randn(4, 3, 12, 12)
        assert encoder(images).shape == (4, 5)
        assert encoder[0](images).shape[:2] == (4, channels)


@pytest.mark.slow
def test_the_default_run_beats_the_untrained_encoder_by_ten_points(tmp_path):
    assert run("--output", str(tmp_path)).returncode == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["linear"] >= result["linear_untrained"] + 10
    assert result["seconds"] < 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "nonsense"], "a device of this machine"),
        (["--data", "no-such-folder"], "which is no folder"),
    ],
)
def test_bad_options_are_explained(capsys, arguments, message):
    with pytest.raises(SystemExit) as refused:  # which Python prints as a line, without a traceback
        contrastive.main(arguments)
    assert message in f"{refused.value}{capsys.readouterr().err}"


def test_views_keep_shape_and_range_and_differ():
    torch.manual_seed(0)
    images = torch.rand(20, 3, 8, 8)
    one, two = data.random_view(images), data.random_view(images)
    assert one.shape == images.shape
    assert one.min() >= 0
    assert one.max() <= 1
    assert (one - two).abs().flatten(1).amax(1).min() > 0.05


def test_a_view_without_change_is_the_image():
    images = torch.rand(4, 1, 8, 8)
    still = data.random_affine(images, degrees=0, scale=0, shear=0, shift=0)
    torch.testing.assert_close(still, images, atol=1e-5, rtol=0)


def test_digits_are_split_once():
    images = data.load_images("digits")
    assert images.train.shape == (1438, 1, 8, 8)
    assert images.test.shape == (359, 1, 8, 8)
    assert images.train.min() >= 0
    assert images.train.max() == 1
    assert torch.equal(images.test, data.load_images("digits").test)


def write_folder(root: Path, counts: dict[str, int]) -> None:
    image = pytest.importorskip("PIL.Image")
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            image.new("L", (40, 30), color=20 * index).save(root / name / f"{index}.png")


def test_image_folder_with_and_without_parts(tmp_path):
    write_folder(tmp_path / "whole", {"cat": 10, "dog": 10})
    whole = data.load_images(str(tmp_path / "whole"), size=16)
    assert whole.train.shape == (16, 3, 16, 16)
    assert whole.test_labels.bincount().tolist() == [2, 2]
    write_folder(tmp_path / "parts" / "train", {"cat": 3, "dog": 4})
    write_folder(tmp_path / "parts" / "val", {"cat": 1, "dog": 2})
    parts = data.load_images(str(tmp_path / "parts"), size=16)
    assert (len(parts.train), len(parts.test)) == (7, 3)
    assert parts.train_labels.tolist() != sorted(parts.train_labels.tolist())
    levels = parts.train[:, 0, 0, 0].mul(255).div(20).round().int().tolist()  # the colour says which image it is
    assert sorted(zip(parts.train_labels.tolist(), levels, strict=True)) == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
        (1, 2),
        (1, 3),
    ]


def test_image_folder_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match="one subfolder a class"):
        data.load_images(str(tmp_path))
    write_folder(tmp_path / "single", {"cat": 5})
    with pytest.raises(ValueError, match="at least two classes"):
        data.load_images(str(tmp_path / "single"))


def test_fashion_mnist_is_unpacked_from_the_debian_package(tmp_path):
    for part, count in (("train", 3), ("t10k", 2)):
        pixels, labels = bytes(range(196)) * 4 * count, bytes(range(count))
        files = {
            f"{part}-images-idx3-ubyte": struct.pack(">IIII", 2051, count, 28, 28) + pixels,
            f"{part}-labels-idx1-ubyte": struct.pack(">II", 2049, count) + labels,
        }
        (tmp_path / "packaged").mkdir(exist_ok=True)
        for name, content in files.items():
            (tmp_path / "packaged" / f"{name}.gz").write_bytes(gzip.compress(content))
    images = data.fashion_mnist(tmp_path / "root", packaged=tmp_path / "packaged")
    assert images.train.shape == (3, 1, 28, 28)
    assert images.test_labels.tolist() == [0, 1]
    assert images.train.max() == pytest.approx(195 / 255)


def test_an_archive_that_breaks_off_leaves_nothing(tmp_path):
    (tmp_path / "broken.gz").write_bytes(gzip.compress(bytes(100_000))[:50])
    with pytest.raises(EOFError):
        data._unpack(tmp_path / "broken.gz", tmp_path / "raw" / "broken")
    assert not list((tmp_path / "raw").iterdir())
    (tmp_path / "good.gz").write_bytes(gzip.compress(b"good"))
    data._unpack(tmp_path / "good.gz", tmp_path / "raw" / "good")
    assert (tmp_path / "raw" / "good").read_bytes() == b"good"
    (tmp_path / "plain").touch()
    modes = [path.stat().st_mode for path in (tmp_path / "raw" / "good", tmp_path / "plain")]
    assert modes[0] == modes[1]  # readable by whoever may read other files


def test_the_untrained_copy_leaves_the_encoder_alone():
    torch.manual_seed(0)
    images = data.load_images("digits")
    encoder = contrastive.build_encoder("convnet", 1, 8)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    contrastive.untrained_copy(encoder, images, torch.device("cpu"))
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())

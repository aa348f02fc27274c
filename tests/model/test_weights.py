"""Weights go out and come back unchanged, and nothing else comes in."""

import dataclasses
import json
import pickle
import struct
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mist_loss.model import weights
from mist_loss.model.network import MIST, MISTConfig

SIZES = {"width": 16, "set_width": 8, "row_pairs": 2, "pair_width": 4, "look_width": 8}
CONFIG = json.dumps(SIZES | dict.fromkeys(weights.TOLD, True))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = MIST(MISTConfig(**json.loads(CONFIG)))
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    weights.save_weights(model, path, {"seed": 0})
    return model, path


def test_round_trip(saved):
    model, path = saved
    loaded = MIST.from_pretrained(path)
    assert loaded.config == model.config
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    x, y = torch.randn(2, 20, 3), torch.randn(2, 20, 2)
    torch.testing.assert_close(loaded(x, y), model.eval()(x, y))
    assert weights.read_header(path)["provenance"] == {"seed": 0}
    assert list(path.parent.iterdir()) == [path]


def test_loading_leaves_the_random_numbers_alone(saved):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    MIST.from_pretrained(saved[1])
    torch.testing.assert_close(torch.rand(3), expected)


def test_a_file_may_be_replaced_or_emptied_while_its_model_is_in_use(saved, tmp_path):
    model, good = saved
    path = tmp_path / "used.safetensors"
    path.write_bytes(good.read_bytes())
    loaded = MIST.from_pretrained(path)
    path.write_bytes(b"")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor)


def test_the_default_dtype_does_not_matter(saved):
    torch.set_default_dtype(torch.float64)
    try:
        loaded = MIST.from_pretrained(saved[1])
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}


def test_folder(saved, tmp_path):
    model, _ = saved
    folder = model.save_pretrained(tmp_path / "deep" / "folder", {"seed": 3})
    loaded = MIST.from_pretrained(folder)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())
    found = weights.describe(folder)
    assert found["provenance"] == {"seed": 3}
    assert found["sha256"] == (folder / weights.CHECKSUM).read_text().split()[0]
    assert sorted(path.name for path in folder.iterdir()) == [weights.WEIGHTS, weights.CHECKSUM]
    model.save_pretrained(folder, {"seed": 4})  # over the old ones
    assert weights.describe(folder)["provenance"] == {"seed": 4}


@pytest.mark.parametrize("damage", ["tampered", "truncated", "checksum", "no checksum", "no weights"])
def test_a_damaged_folder_is_refused(saved, tmp_path, damage):
    folder = saved[0].save_pretrained(tmp_path)
    file, checksum = folder / weights.WEIGHTS, folder / weights.CHECKSUM
    data = bytearray(file.read_bytes())
    if damage == "tampered":
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "truncated":
        file.write_bytes(data[:-100])
    elif damage == "checksum":
        checksum.write_bytes(b"\xff\xfe")
    elif damage == "no checksum":
        checksum.unlink()
    else:
        file.unlink()
    error, message = (FileNotFoundError, damage[3:6]) if damage.startswith("no") else (ValueError, "sha256")
    message = {"che": weights.CHECKSUM, "wei": weights.WEIGHTS}.get(message, message)
    with pytest.raises(error, match=message):
        MIST.from_pretrained(folder)
    if damage in ("tampered", "truncated", "checksum"):
        with pytest.raises(ValueError, match=r"sha256 .* expected"):
            MIST.from_pretrained(file)


def test_unknown_and_missing_names():
    with pytest.raises(ValueError, match=r"expected one of .* got 'mist-huge'"):
        MIST.from_pretrained("mist-huge")
    with pytest.raises(FileNotFoundError, match=r"no weights at .*gone\.safetensors"):
        MIST.from_pretrained("gone.safetensors")
    with pytest.raises(ValueError, match=r"expected a \.safetensors file, got .*test_weights\.py"):
        MIST.from_pretrained(__file__)


class Bomb:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_pickles_are_refused_unread(tmp_path):
    plain, zipped = tmp_path / "plain.safetensors", tmp_path / "zipped.safetensors"
    plain.write_bytes(pickle.dumps(Bomb()))
    torch.save({"a": Bomb()}, zipped)
    for path in (plain, zipped):
        with pytest.raises(ValueError, match="is not a readable safetensors file"):
            MIST.from_pretrained(path)
        folder = tmp_path / path.stem
        folder.mkdir()
        (folder / weights.WEIGHTS).write_bytes(path.read_bytes())
        (folder / weights.CHECKSUM).write_text(weights.sha256(path))
        with pytest.raises(ValueError, match="is not a readable safetensors file"):
            MIST.from_pretrained(folder)


def with_header(good, path, tensors=None, **changes):
    header = {"format": weights.FORMAT, "config": CONFIG, "provenance": "{}"} | changes
    save_file(load_file(good) | (tensors or {}), path, {k: v for k, v in header.items() if v is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": None}, "has format None"),
        ({"format": "mist-loss-2"}, "install the version that the file was saved with"),
        ({"config": None}, "broken header"),
        ({"config": "[]"}, "broken header"),
        ({"config": "{"}, "broken header"),
        ({"config": "[" * 100_000}, "broken header"),
        ({"provenance": "3"}, "broken header"),
        ({"config": '{"width": 32}'}, "does not fit"),
        ({"config": '{"set_width": 18}'}, "broken configuration"),
        ({"config": '{"width": 1000000000, "set_width": 8}'}, "does not fit"),  # would be terabytes
        ({"config": '{"future": 1}'}, "does not fit"),
        ({"config": '{"width": -1}'}, "broken configuration"),
        ({"config": '{"rows": ["a", "b"]}'}, "broken configuration"),
        ({"config": '{"dims": 7}'}, "broken configuration"),
        ({"config": '{"dims": [7]}'}, "broken configuration"),
        ({"config": '{"width": true}'}, "broken configuration"),
        ({"tensors": {"vector_mean": torch.zeros(3)}}, "does not fit"),
        ({"tensors": {"extra": torch.zeros(3)}}, "does not fit"),
        ({"tensors": {"pair_term.bias": torch.tensor([0.0, torch.nan])}}, r"no finite numbers in pair_term\.bias"),
        ({"tensors": {"vector_std": None}}, "no finite numbers in vector_std"),
    ],
)
def test_wrong_versions_and_broken_headers_are_refused(saved, tmp_path, changes, message):
    _, good = saved
    if changes.get("tensors") == {"vector_std": None}:  # the right shape, the wrong type
        changes = {"tensors": {"vector_std": load_file(good)["vector_std"].long()}}
    path = with_header(good, tmp_path / "bad.safetensors", **changes)
    with pytest.raises(ValueError, match=message) as raised:
        MIST.from_pretrained(path)
    assert path.name in str(raised.value)


def test_a_registered_file_that_was_altered_is_refused(saved, tmp_path, monkeypatch):
    _, good = saved
    (tmp_path / "small.safetensors").write_bytes(good.read_bytes())
    monkeypatch.setattr(weights, "pretrained_folder", lambda: tmp_path)
    monkeypatch.setitem(weights.REGISTRY, "small", ("small.safetensors", weights.sha256(good)))
    assert MIST.from_pretrained("small").config.width == 16
    altered = bytearray(good.read_bytes())
    altered[-1] ^= 1
    (tmp_path / "small.safetensors").write_bytes(altered)
    with pytest.raises(ValueError, match=r"not the released 'small'"):
        MIST.from_pretrained("small")
    (tmp_path / "small.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="are missing"):
        MIST.from_pretrained("small")


def refused_or_finite(path):
    """What a loader may do with any file at all."""
    try:
        model = MIST.from_pretrained(path)
    except ValueError:
        return
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.data())
def test_any_damage_is_a_value_error_or_leaves_finite_weights(saved, tmp_path, data):
    content = bytearray(saved[1].read_bytes())
    header = struct.unpack("<Q", content[:8])[0] + 8
    for _ in range(data.draw(st.integers(1, 4))):
        # mostly in the header, where the parsers are
        place = data.draw(st.integers(0, header - 1) | st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=8))
    path = tmp_path / "fuzzed.safetensors"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    refused_or_finite(path)


@FUZZ
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_value_error(tmp_path, content):
    path = tmp_path / "noise.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"noise\.safetensors"):
        MIST.from_pretrained(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
FIELDS = st.sampled_from([*(field.name for field in dataclasses.fields(MISTConfig)), "other"])


@FUZZ
@given(config=st.dictionaries(FIELDS, JSON | st.lists(st.integers(), min_size=2, max_size=2)))
def test_any_configuration_is_a_value_error_or_leaves_finite_weights(saved, tmp_path, config):
    refused_or_finite(with_header(saved[1], tmp_path / "fuzzed.safetensors", config=json.dumps(config)))


@pytest.mark.parametrize("field", weights.OPTIONAL)
def test_a_file_from_before_there_was_a_kind_of_token_is_read_without_it(saved, tmp_path, field):
    _, good = saved
    older = json.loads(CONFIG)
    assert field not in older
    path = with_header(good, tmp_path / "older.safetensors", config=CONFIG)
    assert getattr(MIST.from_pretrained(path).config, field) == 0
    assert getattr(MIST.from_pretrained(good).config, field) == getattr(MISTConfig(), field) > 0


@pytest.mark.parametrize("flag", weights.TOLD)
def test_a_file_from_before_there_was_a_flag_is_read_without_what_it_tells(tmp_path, flag):
    torch.manual_seed(0)
    sizes = json.loads(CONFIG) | {flag: False} | dict.fromkeys(weights.OPTIONAL, 0)
    model = MIST(MISTConfig(**sizes)).eval()
    path = tmp_path / "older.safetensors"
    weights.save_weights(model, path, {"seed": 0})
    del sizes[flag]
    loaded = MIST.from_pretrained(with_header(path, tmp_path / "silent.safetensors", config=json.dumps(sizes)))
    assert getattr(loaded.config, flag) is False
    x, y = torch.randint(3, (2, 2, 50, 2)).float()
    assert torch.equal(loaded(x, y), model(x, y))


def test_a_file_from_before_the_width_of_a_second_look_was_said_has_the_one_they_had(tmp_path):
    torch.manual_seed(0)
    sizes = json.loads(CONFIG) | {"look_width": 64} | dict.fromkeys(weights.OPTIONAL, 0)
    model = MIST(MISTConfig(**sizes)).eval()
    path = tmp_path / "older.safetensors"
    weights.save_weights(model, path, {"seed": 0})
    del sizes["look_width"]
    loaded = MIST.from_pretrained(with_header(path, tmp_path / "silent.safetensors", config=json.dumps(sizes)))
    assert loaded.config == model.config


@pytest.mark.parametrize(("dtype", "number"), [(torch.float64, 1e300), (torch.float8_e4m3fn, torch.nan)])
def test_numbers_are_finite_in_the_precision_that_is_used(saved, tmp_path, dtype, number):
    good = load_file(saved[1])
    fits = {"pair_term.bias": torch.ones_like(good["pair_term.bias"]).to(dtype)}
    loaded = MIST.from_pretrained(with_header(saved[1], tmp_path / "fits.safetensors", tensors=fits))
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    large = {"pair_term.bias": torch.full(good["pair_term.bias"].shape, number, dtype=torch.float64).to(dtype)}
    with pytest.raises(ValueError, match=r"no finite numbers in pair_term\.bias"):
        MIST.from_pretrained(with_header(saved[1], tmp_path / "large.safetensors", tensors=large))


@pytest.mark.parametrize("damage", ["sizes", "names", "nan"])
def test_a_refusal_is_a_line_that_can_be_read(saved, tmp_path, damage):
    good = load_file(saved[1])
    changes: dict[str, dict[str, Any]] = {
        "sizes": {"config": '{"width": 32}'},
        "names": {"tensors": {f"extra.{i}": torch.zeros(1) for i in range(99)}},
        "nan": {"tensors": {key: torch.full_like(tensor, torch.nan) for key, tensor in good.items()}},
    }
    path = with_header(saved[1], tmp_path / "bad.safetensors", **changes[damage])
    with pytest.raises(ValueError, match=f"and {len(good) - 3} more" if damage == "nan" else "does not fit") as raised:
        MIST.from_pretrained(path)
    message = str(raised.value).replace(str(path), "")
    assert "\n" not in message
    assert len(message) < 350


def test_a_file_that_cannot_be_written_is_an_os_error(saved, tmp_path):
    (tmp_path / "small.safetensors").mkdir()  # a folder has the name, or there is none to write to
    for folder, message in ((tmp_path, ""), (tmp_path / "none", "cannot write .*")):
        with pytest.raises(OSError, match=message + r"small\.safetensors"):
            weights.save_weights(saved[0], folder / "small.safetensors", {})
    assert [path.name for path in tmp_path.iterdir()] == ["small.safetensors"]


def test_what_nobody_could_load_is_not_saved(saved, tmp_path):
    model = MIST.from_pretrained(saved[1])
    with pytest.raises(ValueError, match="dictionary"):
        model.save_pretrained(tmp_path / "run", provenance=["a run"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected provenance as JSON can hold it"):
        model.save_pretrained(tmp_path / "run", provenance={"path": tmp_path})
    with torch.no_grad():
        model.skip.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"skip\.weight"):
        model.save_pretrained(tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()

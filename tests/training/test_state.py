"""The state of a run: a file that is none, or that cannot be written, is said to be so."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mist_loss.training import state


def fresh() -> tuple[nn.Linear, nn.Linear, torch.optim.AdamW]:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2)).backward()
    optimizer.step()
    return model, nn.Linear(2, 1), optimizer


@pytest.mark.parametrize("damage", ["truncated", "foreign", "without moments"])
def test_what_is_no_state_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "state.safetensors"
    state.save(path, *fresh(), header={"step": 1}, more={})
    assert state.load(path, *fresh()) == state.read_header(path) == {"step": 1}
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        save_file(state.read(path, "model."), path, {"header": "{}"} if damage == "without moments" else None)
    readers = [lambda: state.load(path, *fresh())]
    readers += [] if damage == "without moments" else [lambda: state.read_header(path)]
    for reader in readers:
        with pytest.raises(ValueError, match=r"state\.safetensors is not the state of a run.*: move it away$"):
            reader()


def test_a_state_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "state.safetensors").mkdir()  # a folder has the name
    with pytest.raises(OSError, match=r"state\.safetensors"):
        state.save(tmp_path / "state.safetensors", *fresh(), header={}, more={})

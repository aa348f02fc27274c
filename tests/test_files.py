"""Files that are there whole or not at all, and who may read them."""

import os

import pytest
import torch
from safetensors.torch import save_file

from mist_loss.files import replacing, write_text


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
def test_whoever_may_read_new_files_may_read_these(tmp_path):
    plain, tensors = tmp_path / "plain", tmp_path / "tensors"
    plain.touch()
    write_text(tmp_path / "text", "words")
    with replacing(tensors) as temporary:
        save_file({"a": torch.zeros(1)}, temporary)
    assert tensors.stat().st_mode == plain.stat().st_mode == (tmp_path / "text").stat().st_mode


def test_of_what_fails_nothing_is_left_and_what_was_there_stays(tmp_path):
    path = tmp_path / "text"
    write_text(path, "before")

    def stopped():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [file.name for file in tmp_path.iterdir()] == ["text"]
    assert path.read_text() == "before"

"""Files that are there whole or not at all, and who may read them."""

import os

import pytest
import torch
from safetensors.torch import save_file

from mist_loss.files import replacing, write_text


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
def test_whoever_may_read_a_file_may_read_what_replaces_it(tmp_path):
    before = os.umask(0o022)
    try:
        for path, mode in ((tmp_path / "new", 0o644), (tmp_path / "private", 0o600)):
            if path.name == "private":
                path.touch(mode)
            with replacing(path) as temporary:
                save_file({"a": torch.zeros(1)}, temporary)
            assert path.stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


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

"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, renamed to it where the block ends well and removed where it does not.

    It may be read and written by whoever may the file that was there, or a new one.

    Raises:
        OSError: the file cannot be renamed.
    """
    # the process in the name, so that two do not write into each other's; the name last, as libraries ask for suffixes
    temporary = path.with_name(f"tmp-{os.getpid()}-{path.name}")
    try:
        temporary.touch()
        mode = (path if path.exists() else temporary).stat().st_mode
        yield temporary
        if temporary.stat().st_mode != mode:  # safetensors makes files that nobody else may read
            with suppress(OSError):  # as where a mount has no modes
                temporary.chmod(mode)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

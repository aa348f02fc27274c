"""Folders of weights on the Hugging Face Hub, fetched at a fixed commit. Needs the extra ``hub``.

huggingface_hub keeps the cache (below HF_HOME): it locks, downloads to a temporary name and renames, and at a commit
that is cached it asks the network nothing. A branch or a tag can move, so neither is accepted.
"""

import re
from pathlib import Path
from typing import Any

_REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_address(name: str) -> bool:
    """Whether a name has the form OWNER/NAME or OWNER/NAME@REVISION."""
    return re.fullmatch(rf"{_REPOSITORY}(@.*)?", name) is not None


def fetch(address: str, files: tuple[str, ...]) -> Path:
    """The folder, in the cache, with the files of a repository at a commit.

    Args:
        address: OWNER/NAME@COMMIT, the commit by its 40 hexadecimal digits.
        files: what to fetch.

    Raises:
        ValueError: no commit, or not by its full hash.
        FileNotFoundError: no such repository, commit or file, or the Hub cannot be reached and nothing is cached.
        ModuleNotFoundError: the extra ``hub`` is not installed.
    """
    repository, _, commit = address.partition("@")
    if not _COMMIT.fullmatch(commit):
        raise ValueError(
            f"no file or folder is called {address!r}; of a repository on the Hub give {repository}@COMMIT with the 40 "
            "hexadecimal digits of a commit, since branches and tags can move: its history lists them"
        )
    library = _library()
    try:
        paths = [library.hf_hub_download(repository, name, revision=commit) for name in files]
    except library.utils.LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{address} is not in the cache, and the Hugging Face Hub cannot be reached: fetch it once while online "
            "(without HF_HUB_OFFLINE), or copy its folder here and give the path"
        ) from error
    except (library.utils.HfHubHTTPError, library.utils.EntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"no weights at {address} ({reason}): check the name and the commit, and the token if it is private"
        ) from error
    return Path(paths[0]).parent


def push(folder: Path, repository: str, private: bool) -> str:
    """Push a folder as one commit, and return its address OWNER/NAME@COMMIT.

    Raises:
        ValueError: the repository is not called OWNER/NAME.
        ModuleNotFoundError: the extra ``hub`` is not installed.
    """
    if not re.fullmatch(_REPOSITORY, repository):
        raise ValueError(f"expected a repository OWNER/NAME, got {repository!r}")
    interface = _library().HfApi()
    interface.create_repo(repository, private=private, exist_ok=True)
    commit = interface.upload_folder(
        repo_id=repository, folder_path=folder, commit_message="Weights of mist-loss, with their checksum"
    )
    return f"{repository}@{commit.oid}"


def _library() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        hint = f"weights on the Hugging Face Hub need {error.name}: pip install 'mist-loss[hub]'"
        raise ModuleNotFoundError(hint) from error
    return huggingface_hub

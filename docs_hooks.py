"""For mkdocs: a menu of the pages that exist, so that a page may be planned before it is written."""

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Drop menu entries without a file."""
    config.nav = _existing(config.nav, Path(config.docs_dir))
    return config


def _existing(entries: list, folder: Path) -> list:
    kept = []
    for entry in entries:
        ((title, target),) = entry.items()
        if isinstance(target, list):
            kept.append({title: _existing(target, folder)})
        elif (folder / target).is_file():
            kept.append(entry)
    return kept

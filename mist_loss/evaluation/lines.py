"""Named tuples as lines of a CSV file, and back."""

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

Row = TypeVar("Row", bound=NamedTuple)

_BY_TYPE: dict[type, Callable[[str], Any]] = {bool: {"True": True, "False": False}.__getitem__}


def to_text(lines: Iterable[Iterable[Any]]) -> str:
    """Lines of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def read(path: Path, kind: type[Row]) -> list[Row]:
    """The rows below a heading of the names of their fields; none of a file that is not there, or empty.

    Raises:
        ValueError: a damaged file, or one of other columns.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head, *lines = list(csv.reader(file)) or [list(kind._fields)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no file of results ({error}): move it away") from error
    if tuple(head) != kind._fields:
        raise ValueError(f"expected the columns {','.join(kind._fields)} in {path}, got {','.join(head)}: move it away")
    parsers = [_BY_TYPE.get(hint, hint) for hint in get_type_hints(kind).values()]
    rows = []
    for number, line in enumerate(lines, start=2):
        try:
            rows.append(kind(*(parse(cell) for parse, cell in zip(parsers, line, strict=True))))
        except (ValueError, KeyError) as error:
            raise ValueError(f"cannot read line {number} of {path} ({error}): delete the line") from error
    return rows

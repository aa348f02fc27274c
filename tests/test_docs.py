"""What the documentation shows is run: the Python blocks of a page in one namespace; command lines are parsed."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from mist_loss import cli

CHECKOUT = Path(__file__).parents[1]
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]

INCLUDED = [CHECKOUT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "recipes/README.md")]
INCLUDED += sorted((CHECKOUT / "pretrained").glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language, preceded by empty lines so that tracebacks name the page's lines."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in found]


def with_blocks(language: str) -> list:
    """Pages that have such blocks."""
    return [pytest.param(page, id=page.name) for page in PAGES if blocks(page, language)]


@pytest.mark.parametrize("page", with_blocks("python"))
def test_python_blocks_run(page, monkeypatch):
    if page.name == "selection.md":
        pytest.importorskip("sklearn")
    monkeypatch.chdir(CHECKOUT)
    # two views of what a reader has at hand
    namespace: dict = {"z1": torch.randn(256, 8, requires_grad=True), "z2": torch.randn(256, 4)}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", with_blocks("sh"))
def test_command_lines_parse(page):
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith("mist-loss ") and "--help" not in line:
            assert cli.parse(shlex.split(line, comments=True)[1:]).run


@pytest.mark.parametrize("page", [*PAGES, *INCLUDED], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Of pages that the site shows in another place only links that do not depend on it."""
    found = re.findall(r"\]\(([^)#\s]+)", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE))
    relative = [link for link in found if not link.startswith("http")]
    if page in INCLUDED:
        assert not relative
    assert not [link for link in relative if not (page.parent / link).exists()]


def test_pages_have_blocks():
    assert len(with_blocks("python")) >= 5
    assert len(with_blocks("sh")) >= 3

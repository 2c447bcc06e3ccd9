"""What the tests of the documentation share: where it is, and its fenced blocks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"(?:<!-- test: (?P<order>[^\n]*?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.M)


class Block(NamedTuple):
    """A fenced block, and the comment before it that says what a test should do with it."""

    kind: str
    text: str
    order: str
    line: int


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    page = path.read_text(encoding="utf-8")
    return [
        Block(found["kind"], found["text"], found["order"] or "", page.count("\n", 0, found.start("kind")) + 1)
        for found in _FENCE.finditer(page)
    ]


def pages() -> list[Path]:
    """Every page of the documentation."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "sdk" / "README.md"])

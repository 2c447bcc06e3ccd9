"""Text for people, whoever wrote it: nothing in it draws on a terminal or passes for a line of ours."""

from __future__ import annotations

import re


def plain(text: str) -> str:
    """On one line: what could end it or draw on a terminal is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def shown(text: str) -> str:
    """A message of several lines, of which only the first begins at the margin."""
    first, *others = text.split("\n")
    return "\n".join([plain(first), *(plain(re.sub(r"^(?=\S)", "  ", line)) for line in others)])

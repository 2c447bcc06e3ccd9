"""Links lead somewhere, `make` targets exist, and settings that are named are settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from config.settings import PREFIX, Settings
from tests.docs.markdown import ROOT, pages

_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
_MAKE = re.compile(r"(?:`|^)make ([a-z-]+(?: [a-z-]+)*)", re.M)
_LINK = re.compile(r"\]\(([^)#\s]+)?(?:#([^)]*))?\)")


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in _LINK.findall(text):
        if target.startswith("https://"):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in _anchors(path), f"{page.name}: {target}#{anchor}"
    named = {word for words in _MAKE.findall(text) for word in words.split()}
    assert named <= _TARGETS
    variables = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"\bTALLY_[A-Z_]+\b", text)) - {"TALLY_"} <= variables


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_contributing_lists_the_targets() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^make ([a-z-]+)", text, flags=re.M))
    assert listed >= _TARGETS - {"help", "clean"}

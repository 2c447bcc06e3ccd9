"""docs/guarantees.md and the decisions name tests that exist, and every guarantee names one."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, pages

PAGE = ROOT / "docs" / "guarantees.md"
_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


@cache
def _functions(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_is_named_exists(page: Path) -> None:
    missing = [
        f"{file}::{test}"
        for file, test in _TEST.findall(page.read_text(encoding="utf-8"))
        if not (ROOT / file).is_file() or (test and test not in _functions(ROOT / file))
    ]
    assert not missing


def test_every_guarantee_names_a_test() -> None:
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]
    numbered = [section for section in sections if section[0].isdigit()]
    assert [int(section.partition(".")[0]) for section in numbered] == list(range(1, len(numbered) + 1))
    assert len(numbered) >= 8
    assert [section.splitlines()[0] for section in numbered if not _TEST.search(section)] == []
    assert [section.splitlines()[0] for section in numbered if "Where it ends" not in section] == []

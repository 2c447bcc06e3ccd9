"""docs/guarantees.md and the decisions name tests that exist, and every guarantee names one."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, pages
from tests.faults import report

PAGE = ROOT / "docs" / "guarantees.md"
_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


@cache
def _functions(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@cache
def _strings(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return frozenset(value for value in constants if isinstance(value, str))


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_is_named_exists(page: Path) -> None:
    missing = [
        f"{file}::{test}"
        for file, test in _TEST.findall(page.read_text(encoding="utf-8"))
        if not (ROOT / file).is_file() or (test and test not in _functions(ROOT / file))
    ]
    assert not missing


def test_the_fault_matrix_is_what_the_tests_do() -> None:
    """Each row's test has its words; `Report.add` refuses a fault that has no row."""
    rows = report.ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert len(rows) >= 13 and len({fault for fault, *_ in rows}) == len(rows)
    for fault, expected, test, _ in rows:
        said = _strings(ROOT / test.strip("`").partition("::")[0])
        assert {fault, expected} <= said, test


def test_every_guarantee_names_a_test() -> None:
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]
    numbered = [section for section in sections if section[0].isdigit()]
    assert [int(section.partition(".")[0]) for section in numbered] == list(range(1, len(numbered) + 1))
    assert len(numbered) >= 8
    assert [section.splitlines()[0] for section in numbered if not _TEST.search(section)] == []
    assert [section.splitlines()[0] for section in numbered if "Where it ends" not in section] == []

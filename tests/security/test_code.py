"""What no product code may do: SQL put together from values, foreign data unpickled, YAML that makes objects."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
FILES = sorted(path for folder in [*FOLDERS, "sdk/src"] for path in (ROOT / folder).rglob("*.py"))

SQL = re.compile(
    r"\b(SELECT|INSERT INTO|ALTER|DELETE FROM|TRUNCATE|OPTIMIZE|CREATE|DROP|ATTACH|DETACH|RENAME|KILL|GRANT|SYSTEM)\s"
    r"|\b(USE `|SET|DESCRIBE|EXISTS (DATABASE|TABLE)|SHOW|FROM|WHERE|UNION ALL|PREWHERE|LIMIT)(\s|$)"
)
PARTS: dict[str, dict[str, str]] = {
    "cli/demo.py": {
        "program": "shown to the user, run by nobody",
        "shlex.quote(str(data_dir))": "shown to the user, run by nobody",
    },
    "engines/front.py": {"self.tag": "made of random digits at the start"},
    "engines/front_query.py": {
        "name": "of a setting: letters, digits and _ only; of a database: quoted and escaped",
        "literal": "a setting's value, quoted and escaped; its sender may run any SQL that reads",
        "level": "0, 1 or 2 (_check)",
    },
    "flows/rebuild.py": dict.fromkeys(("table", "condition", "order"), "one of the constants that it loops over"),
    "flows/subscriptions.py": {"_COLUMNS": "a constant"},
    "sinks/cluster.py": {"table": "one of the constants in LEDGER"},
    "sinks/migrate.py": {"name": "of the database in the operator's settings; refused with a quote or backslash"},
    "webhooks/store.py": {"columns": "of the constant _SCHEMA"},
}
"""By file, what stands in SQL without being a parameter, and why nobody outside can choose it."""


def test_sql_has_no_parts_but_those_named() -> None:
    found: dict[str, set[str]] = {}
    for path in FILES:
        for text, parts in _built(_tree(path)):
            if SQL.search(text):
                found.setdefault(str(path.relative_to(ROOT)), set()).update(parts)
    assert found == {file: set(parts) for file, parts in PARTS.items()}


def _built(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """Of each text that is put together: what of it stands in the code, and the expressions in between."""
    told = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Raise) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in told:  # a message
            continue
        match node:
            case ast.JoinedStr(values=values):
                pieces: list[ast.expr] = [v.value if isinstance(v, ast.FormattedValue) else v for v in values]
            case ast.BinOp(op=ast.Add() | ast.Mod(), left=left, right=right):
                pieces = [left, right]
            case ast.Call(func=ast.Attribute(value=text, attr="format" | "join" | "replace"), args=args):
                pieces = [text, *args]
            case _:
                continue
        texts = [piece.value for piece in pieces if isinstance(piece, ast.Constant)]
        parts = [ast.unparse(piece) for piece in pieces if not isinstance(piece, ast.Constant)]
        if parts:
            yield " ".join(t.decode("latin-1") if isinstance(t, bytes) else str(t) for t in texts), parts


def test_nothing_is_unpickled_and_no_yaml_makes_objects() -> None:
    for path in FILES:
        for node in ast.walk(_tree(path)):
            match node:
                case ast.Import(names=names):
                    modules = {each.name.partition(".")[0] for each in names}
                case ast.ImportFrom(module=str(module)):
                    modules = {module.partition(".")[0]}
                case ast.Attribute(value=ast.Name("yaml"), attr=attribute):
                    assert attribute in YAML, f"{path}: yaml.{attribute}"
                    continue
                case ast.Call(func=ast.Name("eval" | "exec" | "__import__")):
                    pytest.fail(f"{path}, line {node.lineno}")
                case _:
                    continue
            if modules & {"pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"}:
                assert str(path.relative_to(ROOT)) in UNPICKLED


UNPICKLED = {"flows/recovery.py": "what Bytewax saved in the data directory, which Bytewax unpickles too"}

YAML = {
    "safe_load",
    "compose",  # nodes only, with a loader derived from SafeLoader
    "SafeLoader",
    "YAMLError",
    "MarkedYAMLError",
    "Node",
    "ScalarNode",
    "MappingNode",
    "SequenceNode",
    "scanner",
}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))

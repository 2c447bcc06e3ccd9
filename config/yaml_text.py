"""YAML as plain values, with the line of each: the text under a catalog.

The YAML 1.2 core schema, so that nothing turns into something else in silence: `no` and dates are
strings, 1.50 is a `Decimal`, not a float, and mapping keys are texts as written. Repeated keys,
merge keys, tags and aliases that contain themselves are faults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from re import compile as pattern
from typing import Any, ClassVar

import yaml

from domain.schema import Fault

NODES_MAX = 200_000
"""Aliases can make a small text expand without end."""

FLOW_DEPTH_MAX = 100

_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def fetch_flow_collection_start(self, token: Any) -> None:
        """PyYAML looks at every open bracket for each token: thousands of them would take minutes."""
        if self.flow_level >= FLOW_DEPTH_MAX:
            raise yaml.scanner.ScannerError(
                None, None, f"nested too deep, more than {FLOW_DEPTH_MAX} open brackets", self.get_mark()
            )
        super().fetch_flow_collection_start(token)


_Loader.add_implicit_resolver(f"{_TAG}null", pattern(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(f"{_TAG}bool", pattern(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(f"{_TAG}int", pattern(r"^[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    f"{_TAG}float",
    pattern(r"^[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def _number(text: str, kind: str) -> int | Decimal | None:
    try:
        return int(text) if kind == "int" else Decimal(text)
    except (ValueError, InvalidOperation):  # too many digits, an exponent beyond Decimal's, a tag on a text
        return None


@dataclass(slots=True)
class Document:
    """A YAML text as plain values (dict, list, str, int, Decimal, bool, None)."""

    value: Any = None
    lines: dict[str, int] = field(default_factory=dict)
    """The line (from 1) of the value at a path such as `plans.pro.prices[0]`."""
    faults: list[Fault] = field(default_factory=list)

    def line(self, path: str) -> int:
        """The line of a path, or of the nearest part of it that stands in the text; 0 if none does."""
        while path not in self.lines and path:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, 0)


def read(text: str) -> Document:
    """Read one YAML document; what is wrong with the text is in `faults`."""
    document = Document()
    try:
        node = yaml.compose(text, Loader=_Loader)
        document.value = _Builder(document).build(node, "") if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        about = ", ".join(part for part in (error.problem, error.context) if part)
        document.faults.append(Fault("", f"{where}not valid YAML: {about}", "correct the text there"))
    except yaml.YAMLError as error:
        document.faults.append(Fault("", f"not valid YAML: {str(error).splitlines()[0]}", "correct the text there"))
    except (RecursionError, OverflowError):
        document.faults.append(Fault("", "is nested too deep, or expands without end", "write it without aliases"))
    return document


class _Builder:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.open: set[int] = set()
        self.nodes = 0

    def build(self, node: yaml.Node, path: str) -> Any:
        self.nodes += 1
        if id(node) in self.open or self.nodes > NODES_MAX:
            raise OverflowError
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        if node.tag not in (f"{_TAG}map", f"{_TAG}seq"):
            self.fault(path, f"has the tag {node.tag}", "write a plain value without a tag")
        self.open.add(id(node))
        value = self.mapping(node, path) if isinstance(node, yaml.MappingNode) else self.sequence(node, path)
        self.open.discard(id(node))
        return value

    def sequence(self, node: yaml.Node, path: str) -> list[Any]:
        return [self.build(item, f"{path}[{index}]") for index, item in enumerate(node.value)]

    def mapping(self, node: yaml.Node, path: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        lines = self.document.lines
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
                self.fault(path, "a key must be a plain text", "write the keys out")
                continue
            key = key_node.value
            inside = f"{path}.{key}" if path else key
            if key in found:
                self.fault(inside, f"is repeated; it stands on line {lines[inside]} already", "keep one of them")
            lines[inside] = key_node.start_mark.line + 1
            found[key] = self.build(value_node, inside)
        return found

    def scalar(self, node: yaml.ScalarNode, path: str) -> Any:
        text = node.value
        match node.tag.removeprefix(_TAG):
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int" | "float" as kind if (number := _number(text, kind)) is not None:
                return number
            case "str":
                return text
            case "int" | "float":
                self.fault(path, "is no number within reach", "write fewer digits")
            case tag:
                self.fault(path, f"has the tag {tag}", "write a plain value without a tag")
        return None

    def fault(self, path: str, message: str, remedy: str) -> None:
        self.document.faults.append(Fault(path, message, remedy))

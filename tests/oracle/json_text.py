"""JSON, strictly: RFC 8259 in UTF-8, no NaN or infinities, no lone surrogates, at most 500 levels deep."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

DEPTH_MAX = 500
SPACE = " \t\r\n"
STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
TOKEN = re.compile(STRING + r"|[\[\]{},]", re.DOTALL)
ESCAPE = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|u(....)|.)", re.DOTALL)
CLOSES = {"[": "]", "{": "}"}


class Malformed(Exception):
    """The text is not acceptable JSON."""


@dataclass(frozen=True)
class Number:
    """A JSON number as written."""

    text: str

    def integer(self) -> int | None:
        """Its value if it is an `integer` property's: no fraction, no exponent, |x| < 10^15."""
        digits = self.text.removeprefix("-")
        if not digits.isdigit() or len(digits) > 15:
            return None
        return int(self.text)

    def decimal(self) -> Decimal | None:
        """Its value if it is a `number` property's: |x| < 10^15, at most 12 decimals by value."""
        try:
            value = Decimal(self.text)
        except InvalidOperation:
            return None
        _, digits, exponent = value.as_tuple()
        assert isinstance(exponent, int)
        if not any(digits):
            return Decimal(0)
        trailing_zeros = len(digits) - len("".join(map(str, digits)).rstrip("0"))
        fits = exponent + trailing_zeros >= -12 and value.copy_abs() < 10**15
        return value if fits else None


def decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8", "strict")
    except UnicodeDecodeError:
        raise Malformed from None


def depth(text: str) -> int:
    """The greatest number of arrays and objects open at once."""
    level = deepest = 0
    for token in TOKEN.finditer(text):
        if token.group() in ("[", "{"):
            level += 1
            deepest = max(deepest, level)
        elif token.group() in ("]", "}"):
            level -= 1
    return deepest


def has_lone_surrogate(text: str) -> bool:
    """Whether a `\\u` escape is half of a pair. In JSON a backslash stands in strings only."""
    escapes = (match.group(1) for match in ESCAPE.finditer(text))
    return any(code is not None and 0xD800 <= int(code, 16) <= 0xDFFF for code in escapes)


def _refuse(constant: str) -> Any:
    raise Malformed(constant)


def check_grammar(text: str) -> Any:
    """The value of a JSON text that is not too deep; numbers as `Number`; of repeated keys the last.

    Raises:
        Malformed: not JSON. (A BOM is not: the standard parser refuses it.)
    """
    try:
        return json.loads(text, parse_int=Number, parse_float=Number, parse_constant=_refuse)
    except ValueError:
        raise Malformed from None


@lru_cache(maxsize=10_000)
def parse(raw: bytes) -> Any:
    """The value of one event's bytes, under every rule; nobody changes it.

    Raises:
        Malformed: some rule is broken.
    """
    text = decode(raw)
    if depth(text) > DEPTH_MAX:
        raise Malformed("too deep")
    value = check_grammar(text)
    if has_lone_surrogate(text):
        raise Malformed("lone surrogate")
    return value


def elements(text: str) -> list[str]:
    """The exact texts of an array's elements, without the space around them.

    An element too deep to be looked into is not checked: it is malformed on its own, and does not
    harm its neighbours; nor does an element with a lone surrogate.

    Raises:
        Malformed: the text is not one JSON array.
    """
    parts = _cut(text)
    if len(parts) == 1 and parts[0] == "":
        return []
    for part in parts:
        if depth(part) <= DEPTH_MAX:
            check_grammar(part)
    return parts


def _cut(text: str) -> list[str]:
    """The texts between the outermost brackets and commas."""
    if not text.lstrip(SPACE).startswith("["):
        raise Malformed("not an array")
    open_brackets: list[str] = []
    parts: list[str] = []
    start = 0
    for token in TOKEN.finditer(text):
        match token.group():
            case "[" | "{" as bracket:
                open_brackets.append(bracket)
                if len(open_brackets) == 1:
                    start = token.end()
            case "]" | "}" as bracket:
                if CLOSES[open_brackets.pop()] != bracket:
                    raise Malformed("brackets")
                if not open_brackets:
                    parts.append(text[start : token.start()].strip(SPACE))
                    if text[token.end() :].strip(SPACE):
                        raise Malformed("something after the array")
                    return parts
            case "," if len(open_brackets) == 1:
                parts.append(text[start : token.start()].strip(SPACE))
                start = token.end()
    raise Malformed("the array has no end")

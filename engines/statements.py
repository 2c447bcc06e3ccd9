"""What the ClickHouse front must know of a statement before the engine sees it.

A lexer, not a parser: it tells words from strings, names and comments, and follows brackets. The
engine stays the judge of whether a statement is valid; here is decided only how it is sent there.
Pure functions over bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# The lexical rules of ClickHouse (src/Parsers/Lexer.cpp); an unclosed string or comment runs to the end.
_TOKEN = re.compile(
    rb"""
    (?P<skip> \s+ | --[^\n]*+ | \#[\ !][^\n]*+ | /\*.*?(?:\*/|\Z) )
  | (?P<word> [A-Za-z_][A-Za-z0-9_]*+ )
  | (?P<quoted> '(?:[^'\\]|\\.|'')*+(?:'|\\?\Z) | "(?:[^"\\]|\\.|"")*+(?:"|\\?\Z) | `(?:[^`\\]|\\.|``)*+(?:`|\\?\Z) )
  | (?P<heredoc> \$\w*+\$ )
  | (?P<number> [0-9][A-Za-z0-9_.]*+ )
  | (?P<sign> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_TAGS = re.compile(rb"(?=(\$\w*+\$))")
_READING = frozenset({"SELECT", "WITH", "FROM", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "CHECK"})
_FREE_OF_DATA = frozenset({"SELECT", "WITH", "FROM", "WATCH"})
_SPACES = re.compile(rb"[ \t\f]*\r?\n?")


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement, taken apart as far as the front needs it."""

    kind: str
    """Its first word in capitals; "" if there is none."""
    text: bytes
    """The statement; of an insert with data, what stands before FORMAT or VALUES."""
    format: str | None = None
    """Of its FORMAT clause; "Values" for VALUES."""
    data_start: int | None = None
    """Where the data of an insert begins in what was given; None if the statement takes no data."""
    several: bool = False
    """Something follows a semicolon."""
    into_outfile: bool = False
    inserts: bool = False
    """Writes rows, also behind a WITH."""
    totals: bool = False
    """Has the word TOTALS, whose extra rows cannot be sent block by block."""
    reaches_files: bool = False
    """Calls `file(...)`: unlike its namesake in FROM, the function is not held back by readonly = 1."""

    @property
    def reads(self) -> bool:
        """Answers with rows and changes nothing."""
        return self.kind in _READING and not self.inserts and not self.into_outfile


def parse_statement(sql: bytes) -> Statement:
    """Take apart one statement, which for an insert with data may be cut off anywhere in the data."""
    words = _Words()
    for token in _tokens(sql):
        if token["skip"] is not None:
            continue
        found = words.take(token)
        if found is not None:
            before, name = found
            space = _SPACES.match(sql, token.end()) if name != "Values" else None
            start = token.end() if space is None else space.end()
            return Statement("INSERT", sql[:before], name, start, inserts=True)
    return Statement(
        words.kind,
        sql,
        words.format,
        several=words.several,
        into_outfile=words.into_outfile,
        inserts=words.inserts,
        totals=words.totals,
        reaches_files=words.reaches_files,
    )


def _tokens(sql: bytes) -> Iterator[re.Match[bytes]]:
    """The tokens in order, in time linear in the text; of a heredoc its opening tag only."""
    last = {tag[1]: tag.start() for tag in _TAGS.finditer(sql)}
    at = 0
    while token := _TOKEN.match(sql, at):
        yield token
        at = token.end()
        tag = token["heredoc"]
        if tag is not None:  # without its end it is no heredoc, but a sign
            at = sql.index(tag, at) + len(tag) if last[tag] >= at else token.start() + 1


class _Words:
    """What has been seen of a statement, token by token."""

    def __init__(self) -> None:
        self.kind = ""
        self.format: str | None = None
        self.several = self.into_outfile = self.inserts = self.totals = self.reaches_files = False
        self._last = ""
        self._depth = 0
        self._ended = self._free_of_data = self._settings_follow = False
        self._before = ("", 0)

    def take(self, token: re.Match[bytes]) -> tuple[int, str] | None:
        """Note a token; of an insert whose data follows: where its statement ends, and the format."""
        sign = token["sign"]
        self.reaches_files = self.reaches_files or (sign == b"(" and self._last == "FILE")
        self._last = "" if token["word"] is None else token["word"].decode().upper()
        if sign == b";" and self._depth == 0:
            self._ended = True
            return None
        self.several = self.several or self._ended
        if token["word"] is not None:
            return self._word(token["word"].decode(), token.start())
        if sign is not None:
            self._depth += (sign in b"([{") - (sign in b")]}")
        self._forget_format()
        self._before = ("", 0)
        return None

    def _word(self, word: str, start: int) -> tuple[int, str] | None:
        name = word.upper()
        self.kind = self.kind or name
        self.totals = self.totals or name == "TOTALS"
        before, before_start = self._before
        if self._depth > 0:
            return None
        self._before = (name, start)
        self.into_outfile = self.into_outfile or (before, name) == ("INTO", "OUTFILE")
        self.inserts = self.inserts or (before, name) == ("INSERT", "INTO") or self.kind == "INSERT"
        if self.kind == "INSERT" and not self._free_of_data:
            if name == "VALUES":
                return start, "Values"
            if before == "FORMAT":
                return before_start, word
            self._free_of_data = name in _FREE_OF_DATA
        elif before == "FORMAT":
            self.format = word
        elif name == "SETTINGS" and self.format is not None:
            self._settings_follow = True
        else:
            self._forget_format()
        return None

    def _forget_format(self) -> None:
        """A FORMAT clause is the last, but for SETTINGS: what is followed by more was an alias."""
        if not self._settings_follow:
            self.format = None

from __future__ import annotations

import time

import pytest

from engines.statements import parse_statement


@pytest.mark.parametrize(
    ("sql", "text", "format", "data"),
    [
        ("INSERT INTO t FORMAT CSV\n1,2", "INSERT INTO t ", "CSV", "1,2"),
        ("insert into t (a, `format b`) format CSV 1,2", "insert into t (a, `format b`) ", "CSV", "1,2"),
        ("INSERT INTO t FORMAT TSV\r\n\n1", "INSERT INTO t ", "TSV", "\n1"),
        ("/* x */ INSERT INTO t SETTINGS a=1 FORMAT Native\n\0", "/* x */ INSERT INTO t SETTINGS a=1 ", "Native", "\0"),
        ("INSERT INTO t (values) VALUES (1, ';')", "INSERT INTO t (values) ", "Values", " (1, ';')"),
        ("INSERT INTO FUNCTION file('FORMAT x') FORMAT CSV\n'", "INSERT INTO FUNCTION file('FORMAT x') ", "CSV", "'"),
        ("INSERT INTO t FORMAT CSV", "INSERT INTO t ", "CSV", ""),
    ],
)
def test_inserts_with_data(sql: str, text: str, format: str, data: str) -> None:
    statement = parse_statement(sql.encode())
    assert (statement.kind, statement.text, statement.format) == ("INSERT", text.encode(), format)
    assert statement.data_start is not None and sql.encode()[statement.data_start :] == data.encode()
    assert not statement.reads


@pytest.mark.parametrize(
    ("sql", "kind", "format", "reads"),
    [
        ("SELECT 1", "SELECT", None, True),
        ("-- c\n # d\n /* e */ select ';' format JSON ;", "SELECT", "JSON", True),
        ("SELECT 1 FORMAT JSON SETTINGS a = 1, b = 'x'", "SELECT", "JSON", True),
        ("SELECT x AS format FROM t", "SELECT", None, True),
        ("SELECT a format, b FROM t", "SELECT", None, True),
        ("((SELECT 1))", "SELECT", None, True),
        ("WITH 1 AS x SELECT x FORMAT Native", "WITH", "Native", True),
        ("SELECT 'it''s \\' FORMAT x' FORMAT CSV", "SELECT", "CSV", True),
        ("SELECT $a$ ' ; $a$ FORMAT CSV", "SELECT", "CSV", True),
        ("WITH 1 AS x INSERT INTO t SELECT x", "WITH", None, False),
        ("INSERT INTO t SELECT 1 FORMAT Null", "INSERT", None, False),
        ("INSERT INTO t FROM INFILE 'f' FORMAT CSV", "INSERT", None, False),
        ("DROP TABLE t", "DROP", None, False),
        ("SELECT 1 INTO OUTFILE 'x'", "SELECT", None, False),
        ("", "", None, False),
    ],
)
def test_statements_without_data(sql: str, kind: str, format: str | None, reads: bool) -> None:
    statement = parse_statement(sql.encode())
    assert statement.data_start is None and not statement.several
    assert (statement.kind, statement.reads) == (kind, reads)
    if kind != "INSERT":
        assert statement.format == format


@pytest.mark.parametrize("sql", ["SELECT 1; SELECT 2", "SELECT 1;;'x'", "SELECT 1; )"])
def test_several_statements(sql: str) -> None:
    assert parse_statement(sql.encode()).several


@pytest.mark.parametrize("sql", ["SELECT 'a", "SELECT 'a\\", "SELECT `a", "SELECT 1 /* a", "SELECT $a$ b"])
def test_what_is_not_closed_is_left_to_the_engine(sql: str) -> None:
    assert parse_statement(sql.encode()).text == sql.encode()


def test_many_heredocs_without_an_end_take_linear_time() -> None:
    began = time.process_time()
    parse_statement(b"SELECT " + b"".join(b"$%x$ " % i for i in range(100_000)))
    assert time.process_time() - began < 10

"""`tally query`: exact, read-only, streamed, with errors in one line; beside a run and without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

from cli.query import readable
from domain.ports import TallyError
from engines.data_directory import DataDirectory
from engines.reader import json_lines, open_reader
from sinks.migrate import DATABASE
from tests.cli.command import SECONDS_MAX, Inside, ended, environment, shown, start
from tests.cli.conftest import EVENTS, Counted


def test_rows_are_json_lines_and_exact(counted: Counted, inside: Inside) -> None:
    sql = """
        SELECT 'é€漢字 a/b' AS "Ünï", toDecimal128('0.1', 12) AS d, toUInt64(18446744073709551615) AS u,
            toInt64(1) AS i, toInt32(1) AS small, NULL AS nothing, 'two\nlines' AS text -- a remark;
    """
    said = inside("query", "--data-dir", counted.data, sql)
    assert said.code == 0 and said.err == "", shown(said)
    assert said.out == (
        '{"Ünï":"é€漢字 a/b","d":"0.1","u":"18446744073709551615","i":"1","small":1,"nothing":null,'
        '"text":"two\\nlines"}\n'
    )


def test_no_rows_are_no_lines(counted: Counted, inside: Inside) -> None:
    assert inside("query", "--data-dir", counted.data, "SELECT 1 WHERE 0;") == (0, "", "")


def test_there_is_nothing_to_ask(inside: Inside, tmp_path: Path) -> None:
    said = inside("query", "--data-dir", "none", "SELECT 1")
    assert (said.code, said.out) == (1, "")
    assert said.err.endswith("none yet: let `tally run` make it, or check --data-dir\n")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("", "there is no SQL to run"),
        (" -- only a remark", "there is no SQL to run"),
        ("INSERT INTO events (id) VALUES ('x')", "tally query only reads, and INSERT does not"),
        ("WITH 1 AS x INSERT INTO events (id) SELECT x", "tally query only reads, and WITH does not"),
        ("drop table events", "tally query only reads, and DROP does not"),
        ("SET readonly = 0", "tally query only reads, and SET does not"),
        ("SYSTEM FLUSH LOGS", "tally query only reads, and SYSTEM does not"),
        ("CHECK TABLE events", "tally query only reads, and CHECK does not"),
        ("SELECT 1 INTO OUTFILE 'x'", "leave INTO OUTFILE out"),
        ("SELECT 1 FORMAT CSV", "prints JSON lines: leave FORMAT CSV out"),
        ("SELECT 1; SELECT 2", "one statement"),
        ("SELECT * FROM file('/etc/passwd')", "leave file() out"),
        ("SELECT File /* */ ('/etc/passwd')", "leave file() out"),
    ],
)
def test_what_does_not_read_is_refused(sql: str, message: str) -> None:
    with pytest.raises(TallyError) as caught:
        readable(sql)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "sql", ["SELECT 1", "select 1 ; ", "WITH 1 AS x SELECT x", "SHOW TABLES", "DESCRIBE events", "EXPLAIN SELECT 1"]
)
def test_what_reads_is_run_without_its_semicolon(sql: str) -> None:
    assert readable(sql) == sql.removesuffix(" ; ")


@pytest.mark.parametrize("sql", ["SELECT 'file(', 'FORMAT CSV', 'a;b' AS format", "SELECT file FROM x -- file("])
def test_words_in_texts_and_names_are_no_orders(sql: str) -> None:
    assert readable(sql) == sql


@pytest.fixture(scope="module")
def client(counted: Counted) -> Iterator[Client]:
    with open_reader(DataDirectory(counted.data), DATABASE) as client:
        yield client


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT 1 FRM x", "ClickHouse: Syntax error: failed at position 14 (x) (line 1, col 14): x (SYNTAX_ERROR)"),
        ("SELECT\n1 + (", "(SYNTAX_ERROR)"),
        ("SELECT * FROM nope", "ClickHouse: Unknown table expression identifier 'nope'."),
        ("SELECT nope FROM events", "(UNKNOWN_IDENTIFIER)"),
        ("SELECT * FROM url('http://127.0.0.1:1/x', 'LineAsString')", "(READONLY): a query reads this deployment's"),
        ("SELECT * FROM remote('127.0.0.1:1', system.one)", "(READONLY): a query reads this deployment's tables"),
        ("SELECT 1 SETTINGS max_threads = 1", "(READONLY): a query reads this deployment's tables, and brings no"),
        ("SELECT throwIf(number = 5e5, 'too\nfar') FROM numbers(1000000)", "ClickHouse: too far: while executing"),
    ],
)
def test_errors_are_one_line_in_clickhouse_s_own_words(client: Client, sql: str, message: str) -> None:
    with pytest.raises(TallyError) as caught:
        for _ in json_lines(client, sql):
            pass
    said = str(caught.value)
    assert message in said
    assert "\n" not in said and "DB::Exception" not in said and "JSONEachRow" not in said and "127.0.0.1:8" not in said


def test_rows_before_an_error_are_whole_lines(client: Client) -> None:
    lines: list[bytes] = []
    sql = "SELECT number, throwIf(number = 500000, 'too far') FROM numbers(1000000)"
    with pytest.raises(TallyError, match="too far"):
        lines.extend(line for block in json_lines(client, sql) for line in block.splitlines())
    assert 0 < len(lines) <= 500_000
    assert json.loads(lines[-1])["number"] == str(len(lines) - 1)


def test_a_large_result_comes_in_pieces(client: Client) -> None:
    pieces = [len(block) for block in json_lines(client, "SELECT number FROM numbers(2000000)")]
    assert sum(pieces) == sum(len('{"number":""}\n') + len(str(number)) for number in range(2_000_000))
    assert max(pieces) < sum(pieces) / 10


def test_another_query_may_come_meanwhile(client: Client, counted: Counted) -> None:
    """It asks the first one's engine."""
    said = ended(start("query", "--data-dir", counted.data, "SELECT count() AS n FROM progress", cwd=counted.folder))
    assert said == (0, '{"n":"3"}\n', "")


def test_a_run_waits_for_a_query(counted: Counted, tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    done = threading.Event()

    def ask() -> None:
        with directory.acquire(reads=True):
            asked.set()
            time.sleep(0.2)
            done.set()

    asked = threading.Event()
    query = threading.Thread(target=ask)
    query.start()
    assert asked.wait(SECONDS_MAX)
    with directory.acquire(query_wait_seconds_max=SECONDS_MAX):
        assert done.is_set()
    query.join()


SQL = "SELECT number, repeat('x', 1000) AS x FROM numbers(100000000)"


def test_a_closed_pipe_ends_it(counted: Counted) -> None:
    command = [sys.executable, "-m", "cli.main", "query", "--data-dir", str(counted.data), SQL]
    process = subprocess.Popen(
        command, cwd=counted.folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith(b'{"number":"0"')
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(SECONDS_MAX) == 1


def test_ctrl_c_ends_it_at_once(counted: Counted) -> None:
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "query", "--data-dir", str(counted.data), SQL],
        cwd=counted.folder, env=environment(), stdout=writer, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(writer)
    assert os.read(reader, 1) == b"{"
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS_MAX) == -signal.SIGINT
    os.close(reader)
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_the_numbers_are_those_of_the_run_also_after_a_killed_query(counted: Counted, inside: Inside) -> None:
    said = inside(
        "query", "--data-dir", counted.data, "SELECT sum(events) AS e, sum(accepted + rejected) AS ar FROM completeness"
    )
    assert json.loads(said.out) == {"e": str(EVENTS), "ar": str(EVENTS)}

"""`tally run`: goes on where it ended, however it ended; says what is wrong in one message."""

from __future__ import annotations

import gzip
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from domain.ports import TallyError
from engines.clickhouse import EmbeddedClickHouse
from engines.data_directory import DataDirectory
from sinks.migrate import DATABASE
from tests.cli.command import ROOT, SECONDS_MAX, Inside, Result, ended, environment, shown, start
from tests.cli.conftest import EVENTS, Counted
from tests.tables import differences, read_tables

SLOWLY = {"TALLY_BATCH_ROWS_MAX": "1", "TALLY_FLUSH_SECONDS": "0.1", "TALLY_EPOCH_SECONDS": "0.5"}
"""A thousand events last for seconds, and can be seen as they are counted."""


def check_tables(data: Path, counted: Counted) -> None:
    """The deployment's tables are those of the oracle."""
    directory = DataDirectory(data)
    with (
        directory.acquire(),
        EmbeddedClickHouse(directory.clickhouse) as engine,
        engine.client(DATABASE) as client,
    ):
        assert differences(read_tables(client), counted.tables) == []


def balance(result: Result) -> tuple[int, int, int]:
    """Events read, accepted and rejected, as the summary says."""
    found = re.search(r"^balance: ([\d,]+) events in = ([\d,]+) accepted \+ ([\d,]+) rejected$", result.out, re.M)
    assert found is not None, shown(result)
    read, accepted, rejected = (int(number.replace(",", "")) for number in found.groups())
    assert read == accepted + rejected
    return read, accepted, rejected


def row(result: Result, name: str) -> list[str]:
    """The cells of a row of the summary's table."""
    found = [
        re.split(r"\s*[│┃]\s*", line)[2:-1] for line in result.out.splitlines() if line[1:].strip().startswith(name)
    ]
    assert len(found) == 1, shown(result)
    return found[0]


def test_the_first_run_counts_by_the_sample_catalog_and_says_so(counted: Counted) -> None:
    assert balance(counted.said)[0] == EVENTS
    assert "no catalog given: this deployment counts by the sample `api`" in counted.said.err
    assert f"this run: {EVENTS:,} events read in " in counted.said.err
    assert "counting" not in counted.said.err and "\x1b" not in counted.said.err + counted.said.out
    check_tables(counted.data, counted)


def test_run_again_it_reads_what_is_new_only(counted: Counted, inside: Inside, tmp_path: Path) -> None:
    counted.copy_events(tmp_path)
    whole = (tmp_path / "events" / "events-0.ndjson").read_bytes()
    half = whole[: whole.index(b"\n", len(whole) // 2) + 1]
    (tmp_path / "events" / "events-0.ndjson").write_bytes(half)
    run = ("run", "--source", "file:events/*.ndjson", "--data-dir", "data")
    first = inside(*run, "--catalog", "api")
    assert first.code == 0, shown(first)
    assert "catalog" not in first.err
    again = inside(*run)
    assert again.code == 0, shown(again)
    assert balance(again) == balance(first)
    assert "this run: 0 events read" in again.err
    assert row(again, "accepted")[:2] == ["0", row(first, "accepted")[0]]
    (tmp_path / "events" / "events-0.ndjson").write_bytes(whole)
    grown = inside(*run, "--workers", "4")
    assert grown.code == 0, shown(grown)
    new = balance(grown)[0] - balance(first)[0]
    assert balance(grown)[0] == EVENTS and f"this run: {new:,} events read" in grown.err
    assert int(row(grown, "accepted")[0]) == balance(grown)[1] - balance(first)[1]
    check_tables(tmp_path / "data", counted)


def begun(process: subprocess.Popen[str], data: Path) -> None:
    """Wait until a run has counted something: its front says so."""
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline:
        assert process.poll() is None, shown(ended(process))
        with suppress(OSError, TallyError):
            front = DataDirectory(data).read("front")
            if front is not None:
                url = f"http://{front['host']}:{front['port']}/?database=tallyflow"
                key = {"X-ClickHouse-User": front["user"], "X-ClickHouse-Key": front["password"]}
                with urlopen(Request(url, b"SELECT count() FROM events", key), timeout=10) as answer:
                    if answer.read() != b"0\n":
                        return
        time.sleep(0.02)
    raise AssertionError("nothing was counted")


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGINT, signal.SIGINT]])
def test_a_signal_ends_the_run_and_another_run_goes_on(
    counted: Counted, inside: Inside, tmp_path: Path, signals: list[signal.Signals]
) -> None:
    run = ("run", "--source", "file:events/*.ndjson", "--data-dir", tmp_path / "data")
    counted.copy_events(tmp_path)
    process = start(*run, cwd=tmp_path, **SLOWLY)
    begun(process, tmp_path / "data")
    second = inside(*run)
    assert second.code == 1
    assert f"data is in use by process {process.pid}: wait for it or stop it" in second.err
    asked = inside("query", "--data-dir", "data", "SELECT count() > 0 AS some FROM events")
    assert asked == (0, '{"some":1}\n', "")
    for number in signals:
        process.send_signal(number)
        time.sleep(0.02)
    said = ended(process)
    if len(signals) == 1:
        assert said.code == 0, shown(said)
        assert 0 < balance(said)[0] < EVENTS
        assert "stopping after what was read so far" in said.err
        assert said.err.endswith("tally: stopped as asked; run again to go on\n")
    else:
        assert said.code == 128 + signal.SIGINT, shown(said)
        assert said.err.endswith("tally: ended at once; run again to go on from the last snapshot\n")
        assert said.out == ""
    assert "Traceback" not in said.err
    rest = inside(*run)
    assert rest.code == 0, shown(rest)
    assert balance(rest)[0] == EVENTS
    check_tables(tmp_path / "data", counted)


def test_on_a_terminal_there_is_a_bar_with_rate_and_time_left(counted: Counted, tmp_path: Path) -> None:
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "run", "--source", f"file:{counted.folder}/events/*.ndjson"],
        cwd=tmp_path,
        env=environment(TERM="xterm", COLUMNS="80", TALLY_BATCH_ROWS_MAX="4"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
    )
    os.close(terminal)
    said = b""
    try:
        while piece := os.read(screen, 65536):
            said += piece
    except OSError:  # how a terminal says that nobody is on its other side
        pass
    os.close(screen)
    assert process.wait() == 0, said
    plain = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", said).decode()
    assert re.search(r"counting ━.* +\d+%  [\d,]+ events  [\d,]+/s +\d:\d\d:\d\d left", plain), plain
    assert said.count(b"\x1b[?25l") == said.count(b"\x1b[?25h") > 0  # the cursor is back


def test_a_deep_data_directory(counted: Counted, inside: Inside, tmp_path: Path) -> None:
    """A socket's path may have 107 bytes."""
    deep = tmp_path / ("d" * 60) / ("é" * 50)
    said = inside("run", "--source", f"file:{counted.folder}/events/*.ndjson", "--data-dir", deep)
    assert said.code == 0, shown(said)
    check_tables(deep, counted)


def test_a_damaged_file_stops_the_run_and_another_goes_on_once_it_is_repaired(
    counted: Counted, inside: Inside, tmp_path: Path
) -> None:
    (tmp_path / "events").mkdir()
    run = ("run", "--source", "file:events/*", "--data-dir", "data")
    for file in counted.files[:2]:
        shutil.copy(file, tmp_path / "events")
    before = inside(*run)
    whole = gzip.compress(counted.files[2].read_bytes())
    packed = tmp_path / "events" / "events-2.ndjson.gz"
    packed.write_bytes(whole[: len(whole) // 2])
    broken = inside(*run, "--workers", "2", TALLY_BATCH_ROWS_MAX="10")
    assert broken.code == 1, shown(broken)
    assert re.fullmatch(
        r"tally: \S+/events/events-2\.ndjson\.gz: cannot be read on after byte \d+ \(uncompressed\), line \d+: .*"
        r"Replace it by a complete file with the same beginning; a run goes on where this one ended\.\n",
        broken.err,
    )
    assert broken.out == ""
    packed.write_bytes(whole)
    after = inside(*run)
    assert after.code == 0, shown(after)
    assert balance(before)[0] < balance(after)[0] == EVENTS
    check_tables(tmp_path / "data", counted)


CHANGED = ("One request through the gateway.", "A request.")


def test_a_changed_catalog_holds_from_now_on_or_is_refused(counted: Counted, inside: Inside, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(counted.data, data, symlinks=True)
    source = f"file:{counted.folder}/events/*.ndjson"
    catalog = tmp_path / "catalog.yaml"
    sample = (ROOT / "config" / "catalogs" / "api.yaml").read_text()
    catalog.write_text(sample.replace(*CHANGED))
    accepted = inside("run", "--source", source, "--data-dir", data, "--catalog", catalog)
    assert accepted.code == 0, shown(accepted)
    assert re.search(r"^tally: catalog version 2 holds for log times from 2026-01-1\S+Z on$", accepted.err, re.M)
    catalog.write_text(sample.replace("aggregation: sum", "aggregation: max", 1))
    refused = inside("run", "--source", source, "--data-dir", data, "--catalog", catalog)
    assert (refused.code, refused.out) == (1, "")
    assert "meters.api_bytes: its aggregation may not change once it is used; name it anew" in refused.err
    checked = inside("check", "--data-dir", data, "--catalog", catalog)
    assert checked.code == 1 and "name it anew" in checked.out
    same = inside("run", "--source", source, "--data-dir", data)
    assert same.code == 0 and "catalog" not in same.err


FAULTS = {
    "kafka": (["--source", "kafka:usage"], "write --source kafka; TALLY_KAFKA_TOPIC names the topic"),
    "other": (["--source", "s3:usage"], "this version reads no 's3', only files and Kafka. Write file:GLOB"),
    "no kind": (["--source", "one.ndjson"], "says no kind: write --source 'file:one.ndjson'"),
    "nothing": (["--source", "none.ndjson"], "write file:GLOB, for instance --source 'file:events/*.ndjson'"),
    "empty": (["--source", "file:"], "write file:GLOB"),
    "no catalog": (["--catalog", "none.yaml"], "none.yaml cannot be read: No such file or directory. Give the path of"),
    "catalog folder": (["--catalog", "."], "the catalog . cannot be read: Is a directory"),
    "catalog bytes": (["--catalog", "latin.yaml"], "latin.yaml is not UTF-8 (byte 2): save it as UTF-8"),
    "data file": (["--data-dir", "one.ndjson"], "it is a file, not a directory: choose another path (--data-dir"),
    "data below a file": (["--data-dir", "one.ndjson/data"], "a part of the path is a file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_option_is_one_message(name: str, inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "one.ndjson").write_text("")
    (tmp_path / "latin.yaml").write_bytes(b"a:\xe9")
    options, message = FAULTS[name]
    given = ["--source", "file:one.ndjson", *options] if "--source" not in options else options
    said = inside("run", *given)
    assert (said.code, said.out) == (1, ""), shown(said)
    assert said.err.startswith("tally: ") and said.err.count("\n") == 1
    assert message in said.err
    assert not (tmp_path / ".tally").exists()


def test_nothing_to_read_is_said(inside: Inside) -> None:
    said = inside("run")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("tally: nothing to read: give --source 'file:GLOB'")


def test_where_a_rebuild_goes_on_is_asked_for(inside: Inside) -> None:
    for options, message in (
        (["--source", "ledger"], "--source ledger needs to know where to go on: give --then 'file:GLOB', or set"),
        (["--then", "file:*.ndjson"], "--then says where to go on behind --source ledger"),
    ):
        said = inside("run", *options)
        assert (said.code, said.out) == (1, "")
        assert said.err.startswith(f"tally: {message}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("file:none*.ndjson", "no file matches 'none*.ndjson' in"),
        ("file:.", "is a directory. Name the files in it, for instance '"),
        ("file:/dev/null", "is not a regular file"),
    ],
)
def test_input_that_is_not_there_is_refused_before_a_catalog_is_applied(
    source: str, message: str, inside: Inside
) -> None:
    said = inside("run", "--source", source, "--data-dir", "data")
    assert (said.code, said.out) == (1, ""), shown(said)
    assert message in said.err and said.err.count("\n") == 1
    asked = inside("query", "--data-dir", "data", "SELECT count() AS n FROM catalogs")
    assert asked.out == '{"n":"0"}\n', shown(asked)


def test_every_fault_of_a_catalog_is_named(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("version: 2\nmeters:\n  a: {event_type: x, aggregation: sum}\nplans: 7\n")
    said = inside("run", "--source", "file:x", "--catalog", "wrong.yaml")
    assert said.code == 1
    assert said.err.splitlines()[0] == "tally: wrong.yaml: the catalog has 5 faults:"
    assert [line.split(":")[0] for line in said.err.splitlines()[1:]] == ["  line 1"] * 3 + ["  line 3", "  line 4"]


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_services_that_are_not_there(inside: Inside, tmp_path: Path, closed_port: int) -> None:
    (tmp_path / "one.ndjson").write_text("")
    run = ("run", "--source", "file:one.ndjson", "--data-dir", "data")
    redis = inside(*run, TALLY_REDIS_URL=f"redis://:s3cret@127.0.0.1:{closed_port}/0", TALLY_REDIS_WAIT_SECONDS="0.2")
    assert redis.code == 1
    assert f"tally: Redis at redis://127.0.0.1:{closed_port}/0 gave no answer for 0.2 s (" in redis.err
    clickhouse = inside(*run, TALLY_CLICKHOUSE_URL=f"http://me:s3cret@127.0.0.1:{closed_port}/tallyflow")
    assert clickhouse == Result(
        1,
        "",
        f"tally: ClickHouse at 127.0.0.1:{closed_port} cannot be used: Connection refused. "
        "Is it running, and is its address right?\n",
    )
    settings = inside(*run, TALLY_CLICKHOUSE_URL="s3cret", TALLY_SHARDS="0", TALLY_EPOCH_SECONDS="x")
    assert settings.code == 1
    assert settings.err.splitlines()[0] == "tally: bad settings:" and settings.err.count("\n") == 4
    assert "s3cret" not in redis.err + clickhouse.err + settings.err


PATCHED = """
import sys
from domain.ports import TallyError
import operators.aggregate, operators.deduplicate, sinks.clickhouse, sources.files, os
def fail(*args, **options):
    {what}
{where} = fail
from cli.main import app
app()
"""
BATCH = "sources.files.FilePartition.next_batch"
TOTALS = "operators.aggregate._Shard.on_batch"
WRITER = "sinks.clickhouse.Insertion.insert"
ERROR = "raise TallyError('the disk is full: free some space')"


@pytest.mark.parametrize(
    ("where", "workers", "what"),
    [
        (BATCH, 1, ERROR),
        (TOTALS, 3, ERROR),
        (WRITER, 1, ERROR),
        (TOTALS, 3, "raise KeyError('a bug')"),
        (TOTALS, 1, "os.abort()"),
    ],
)
def test_what_goes_wrong_in_the_flow_ends_it(
    counted: Counted, tmp_path: Path, where: str, workers: int, what: str
) -> None:
    """An error with a remedy is one message; a bug shows where it is; a fault in native code does not hang."""
    process = start(
        *("run", "--source", f"file:{counted.folder}/events/*.ndjson", "--workers", str(workers)),
        cwd=tmp_path,
        script=PATCHED.format(where=where, what=what),
    )
    said = ended(process)
    assert said.out == "", shown(said)
    if what == ERROR:
        message = said.err.replace(
            "tally: no catalog given: this deployment counts by the sample `api` (see --catalog)\n", ""
        )
        assert (said.code, message) == (1, "tally: the disk is full: free some space\n"), shown(said)
    elif "abort" in what:
        assert said.code == -signal.SIGABRT, shown(said)
        assert "Fatal Python error: Aborted" in said.err and "in fail" in said.err
    else:
        assert said.code == 1, shown(said)
        assert "Traceback" in said.err and "KeyError: 'a bug'" in said.err and "in fail" in said.err

"""Access logs as events: every line becomes one or is reported, and ids stay what they are."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli.convert import LINE_BYTES_MAX, Converted, convert_access_log, convert_file, to_event
from domain.ports import TallyError

LINE = '10.0.0.1 - ann [17/May/2015:10:05:03 -0430] "GET /a/b?c=d HTTP/1.1" 200 203 "http://e/" "Mozilla/5.0"'


def convert(line: str | bytes, number: int = 1) -> dict[str, Any] | None:
    raw = line.encode() if isinstance(line, str) else line
    event = to_event(raw + b"\n", number, "access-log:x")
    return None if event is None else dict(json.loads(event))


def data(line: str | bytes) -> dict[str, Any]:
    event = convert(line)
    assert event is not None
    return dict(event["data"])


def test_a_line_becomes_an_event() -> None:
    event = convert(LINE, 12)
    assert event is not None
    assert event.pop("id").startswith("12-")
    assert event == {
        "specversion": "1.0",
        "source": "access-log:x",
        "type": "http.access",
        "subject": "10.0.0.1",
        "time": "2015-05-17T10:05:03-04:30",
        "data": {"bytes": 203, "method": "GET", "status": 200, "status_class": "2xx", "path": "/a/b"},
    }


@pytest.mark.parametrize(
    ("request_line", "method", "path"),
    [
        ("-", "", ""),
        ("", "", ""),
        (r"\x16\x03\x01", "", ""),
        ("GET /", "GET", "/"),
        ("GET /a b HTTP/1.1", "GET", "/a b"),
        ("GET /a?b c HTTP/1.1", "GET", "/a"),
        ("GET /a#b HTTP/2.0", "GET", "/a"),
        (r"GET /\"quoted\" HTTP/1.1", "GET", r"/\"quoted\""),
        ("OPTIONS * HTTP/1.0", "OPTIONS", "*"),
        ("GET /é HTTP/1.1", "GET", "/é"),
    ],
)
def test_request_lines(request_line: str, method: str, path: str) -> None:
    found = data(LINE.replace("GET /a/b?c=d HTTP/1.1", request_line))
    assert (found["method"], found["path"]) == (method, path)


@pytest.mark.parametrize(
    "line",
    [
        LINE.split(' "http')[0],
        LINE[:-1],
        LINE + ' 0.003 "extra"',
        LINE + "\r",
        LINE.replace("ann", "ann smith"),
        "::1" + LINE.removeprefix("10.0.0.1"),
    ],
)
def test_variants_of_the_format(line: str) -> None:
    assert data(line)["bytes"] == 203


def test_sizes_and_statuses() -> None:
    assert data(LINE.replace("200 203", "304 -")) | {"path": ""} == {
        "bytes": 0,
        "method": "GET",
        "status": 304,
        "status_class": "3xx",
        "path": "",
    }
    assert data(LINE.replace(" 203 ", " 0203 "))["bytes"] == 203
    assert b"9" * 5000 in (to_event(LINE.replace(" 203 ", f" {'9' * 5000} ").encode(), 1, "x") or b"")


def test_bytes_that_are_not_utf8() -> None:
    assert data(LINE.encode().replace(b"/a/b", b"/\xff"))["path"] == r"/\xff"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "garbage",
        LINE.replace("17/May", "31/Jun"),
        LINE.replace("17/May", "17/Mai"),
        LINE.replace("10:05:03", "10:05:60"),
        LINE.replace("-0430", "-0460"),
        LINE.replace("-0430", "-2400"),
        LINE.replace(" -0430", ""),
        LINE.replace(" 200 ", " 20 "),
        LINE.replace(" 203 ", " x "),
        LINE.replace('"GET', "GET"),
        LINE + "x" * LINE_BYTES_MAX,
        "a - " + "[" * 200_000,
    ],
)
def test_lines_that_do_not_parse(line: str) -> None:
    assert convert(line) is None


def run(file: Path, out: Path, rejects: Path | None = None) -> tuple[Converted, list[str]]:
    reports: list[str] = []
    return convert_file(file, out, rejects, reports.append, lambda count: None), reports


def test_ids_are_stable_when_the_log_grows_or_is_packed(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    log.write_text(f"{LINE}\n{LINE}\n{LINE[:-9]}")
    assert run(log, tmp_path / "first")[0] == (2, 1)
    log.write_text(f"{LINE}\n{LINE}\n{LINE}\n{LINE}")
    assert run(log, tmp_path / "second")[0] == (4, 0)
    packed = tmp_path / "access.log.gz"
    packed.write_bytes(gzip.compress(log.read_bytes() + b"\n"))
    assert run(packed, tmp_path / "third")[0] == (4, 0)
    first, second, third = ((tmp_path / name).read_text() for name in ("first", "second", "third"))
    assert second.startswith(first)
    assert third == second
    assert len({json.loads(line)["id"] for line in third.splitlines()}) == 4


def test_lines_that_do_not_parse_are_reported_and_kept(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    long = b"x" * (2 * LINE_BYTES_MAX + 5)
    log.write_bytes(b"\n".join([LINE.encode(), b"bad \xff\r", long, *[b"bad"] * 30, LINE.encode()]) + b"\n")
    result, reports = run(log, tmp_path / "out", tmp_path / "rejects")
    assert result == (2, 32)
    assert len(reports) == 20
    assert reports[:2] == [f"{log}:{number}: not a line of an access log" for number in (2, 3)]
    kept = (tmp_path / "rejects").read_bytes().split(b"\n")
    assert kept[0] == f"{log}:2: ".encode() + b"bad \xff"
    assert len(kept) == 33
    assert sorted(path.name for path in tmp_path.iterdir()) == ["access.log", "out", "rejects"]


def test_what_cannot_be_read_or_written(tmp_path: Path) -> None:
    log = tmp_path / "access.log.gz"
    with pytest.raises(TallyError, match="cannot be opened"):
        run(log, tmp_path / "out")
    log.write_bytes(gzip.compress(f"{LINE}\n".encode() * 1000)[:-12])
    with pytest.raises(TallyError, match="cannot be read on after line"):
        run(log, tmp_path / "out")
    with pytest.raises(TallyError, match="must be different files"):
        run(log, log)
    with pytest.raises(TallyError, match="cannot be written"):
        run(log, tmp_path / "missing" / "out")
    assert list(tmp_path.iterdir()) == [log]


def test_the_command_writes_to_standard_output(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(convert_access_log)
    (tmp_path / "access.log").write_text("bad\n" * 25 + LINE + "\n")
    result = CliRunner().invoke(app, [str(tmp_path / "access.log")])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["subject"] == "10.0.0.1"
    assert "... and 5 more" in result.stderr
    assert "26 lines, 1 events, 25 lines that do not parse" in result.stderr

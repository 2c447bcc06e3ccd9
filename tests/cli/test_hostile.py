"""Hostile input in real runs: what reaches logs, a pipe and a terminal is on its line, and draws nothing of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from telemetry.plain import plain, shown
from tests.cli.command import SECONDS_MAX, Inside, environment, tally

HOSTILE = (
    "[bold red]x[/] [link=http://evil]y[/link] :bomb: \x1b[31mred \x1b]8;;http://evil\x07z\x9b1m\u202e\x00\b\r\n"
    "tally: forged"
)
"""Rich's markup, escape sequences of a terminal, a hyperlink, C1 and bidirectional controls, and a line like ours."""
NAME = HOSTILE.replace("/", "").replace("\0", "")
"""What of it can be a file's name."""
DRAWN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What our own tables and bars draw with."""
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def _events() -> str:
    """One accepted, and one rejected for each place that can be hostile."""
    event = {
        "specversion": "1.0", "id": HOSTILE, "source": HOSTILE, "type": "api.request", "subject": HOSTILE,
        "time": "2026-03-10T12:00:00Z", "data": {"bytes": 5, "region": HOSTILE, "endpoint": HOSTILE},
    }  # fmt: skip
    faulty = [{**event, "type": HOSTILE}, {**event, "time": HOSTILE}, {**event, "data": {"bytes": HOSTILE}}]
    return "".join(json.dumps(each) + "\n" for each in [event, *faulty, HOSTILE]) + "\x1b[31m[bold]{\n"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a data directory, and what a terminal was sent while it was counted."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / f"{NAME}.ndjson").write_text(_events())
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "cli.main",
            "run",
            "--source",
            "file:*.ndjson",
            "--data-dir",
            "data",
            "--catalog",
            "api",
        ],
        cwd=folder,
        env=environment(
            TALLY_DATA_DIR="data", TALLY_LOG_FORMAT="text", TALLY_LOG_LEVEL="debug", TERM="xterm", COLUMNS="200"
        ),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        written = b""
        try:
            while piece := os.read(ours, 65536):
                written += piece
        except OSError:  # the other end is closed
            pass
        assert process.wait(SECONDS_MAX) == 0, written
    return folder, written.decode("utf-8")


def test_nothing_in_events_draws_on_a_terminal(drawn: tuple[Path, str]) -> None:
    text = DRAWN.sub("", drawn[1]).replace("\r\n", "\n").replace("\r", "")
    assert not RAW.search(text), RAW.findall(text)
    assert "[bold red]x[/] [link=http://evil]y[/link] :bomb:" in text
    assert "\x1b[31mred" not in drawn[1]
    assert "\ntally: forged" not in text
    assert "1 accepted + 5 rejected" in text


def test_a_pipe_and_json_logs_are_lines(drawn: tuple[Path, str], inside: Inside) -> None:
    folder, _ = drawn
    said = tally(
        "run", "--source", "file:*.ndjson",
        cwd=folder, TALLY_DATA_DIR="data", TALLY_LOG_FORMAT="json", TALLY_LOG_LEVEL="debug",
    )  # fmt: skip
    assert said.code == 0 and not RAW.search(said.out.replace("\n", ""))
    assert all(json.loads(line)["level"] for line in said.err.split("\n") if line)
    found = inside("query", "--data-dir", folder / "data", "SELECT DISTINCT subject FROM usage")
    assert found.out.count("\n") == 1 and json.loads(found.out) == {"subject": HOSTILE}


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_hostile_name_stays_on_its_line(tmp_path: Path, inside: Inside, format: str) -> None:
    """Of a file that is refused, and of a catalog with faults, whose keys are hostile, too."""
    os.mkfifo(tmp_path / f"{NAME}\udcff.ndjson")
    (tmp_path / f"{NAME}.yaml").write_text(f"event_types: {{{json.dumps(HOSTILE)}: 1}}\n{json.dumps(HOSTILE)}: 2\n")
    for arguments in (("run",), ("run", "--catalog", f"{NAME}.yaml"), ("check", "--catalog", f"{NAME}.yaml")):
        said = inside(*arguments, "--source", "file:*.ndjson", TALLY_LOG_FORMAT=format, TALLY_LOG_LEVEL="warning")
        assert said.code == 1 and len(said.out + said.err) > len(NAME)
        for text in (said.out, said.err):
            assert not RAW.search(text.replace("\n", ""))
            assert "\ntally: forged" not in text
        if format == "json" and said.err:
            assert json.loads(said.err)["level"] == "error"


def test_texts_for_people() -> None:
    assert plain("a\tb\x1b\ud800é😀") == r"a\tb\x1b\ud800é😀"
    assert shown("tally: a\n  b\ntally: c\x07\n") == "tally: a\n  b\n  tally: c\\x07\n"

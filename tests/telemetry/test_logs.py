"""Logs: one event a line, in both forms, whoever speaks."""

from __future__ import annotations

import json
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from telemetry.logs import Event, configure, logger, speaks_json

NASTY = 'two\nlines\x1b[31m "red" \u2028 \ud800 ä'


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_json_lines_of_everybody(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", "info")
    assert speaks_json()
    logger().info(Event.PROGRESS, accepted=5, positions={3: 70}, subject=NASTY, huge=2**70)
    logger().debug(Event.PROGRESS)
    logging.getLogger("kafka.client").warning("broker %s\nis away", "b1")
    logging.getLogger("kafka.client").info("unheard")
    ours, theirs = lines(capsys)
    assert ours.pop("time").endswith("Z")
    assert ours == {
        "level": "info", "event": "flow.progress", "accepted": 5, "positions": {"3": 70}, "subject": NASTY,
        "huge": 2**70,
    }  # fmt: skip
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("broker b1\nis away", "warning", "kafka.client")


def test_text_is_one_line_that_draws_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    configure("text", "info")
    assert not speaks_json()
    logger().info(Event.PROGRESS, accepted=5, positions={3: 70}, name="a b", subject=NASTY)
    logging.getLogger("kafka").warning("broker\nis away")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(
        'Z info    flow.progress accepted=5 positions={3: 70} name="a b" '
        'subject="two\\nlines\\u001b[31m \\"red\\" \\u2028 \\ud800 ä"'
    )
    assert second.endswith(r"Z warning broker\nis away logger=kafka")


@pytest.mark.parametrize("format", ["json", "text"])
def test_errors_that_nobody_caught_are_told_in_the_same_form(format: Any, capsys: pytest.CaptureFixture[str]) -> None:
    configure(format, "warning")

    def fail() -> None:
        raise ValueError("a\nfault")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    try:
        fail()
    except ValueError:
        sys.excepthook(*sys.exc_info())
    said = capsys.readouterr().err
    if format == "json":
        found = [json.loads(line) for line in said.splitlines()]
        assert [(line["event"], line["error"]) for line in found] == [("process.failed", "ValueError: a\nfault")] * 2
        assert all("in fail" in line["exception"] for line in found)
    else:
        assert said.count("critical process.failed error=") == 2 and said.count("\n    ") > 4


def test_configuring_again_replaces(capsys: pytest.CaptureFixture[str]) -> None:
    configure("text", "info")
    configure("json", "warning")
    logger().info(Event.PROGRESS)
    logger().warning(Event.NOTICE, message="x")
    assert [line["event"] for line in lines(capsys)] == ["process.notice"]


def test_every_event_is_in_the_page() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "logs.md").read_text(encoding="utf-8")
    assert [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")] == list(Event)

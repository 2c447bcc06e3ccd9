"""The sample input: repeatable, and what `truth.json` says about it is so, by an independent count."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from cli._broken import BROKEN
from cli._generator import generate
from cli.generate import generate_command
from domain.envelope import split
from domain.ports import TallyError
from domain.values import EVENT_BYTES_MAX, Reason


def written(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        generate(3000, 50, 3, seed, tmp_path / name, lambda count: None)
    assert written(tmp_path / "a") == written(tmp_path / "b")
    assert written(tmp_path / "a").keys() == written(tmp_path / "c").keys()
    assert all(written(tmp_path / "a")[name] != content for name, content in written(tmp_path / "c").items())
    assert written(tmp_path / "a").keys() == {"events-0.ndjson", "events-1.ndjson", "events-2.ndjson", "truth.json"}


TIME = re.compile(r"(20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6})\d*(Z|[+-]\d\d:\d\d)", re.ASCII)


def instant(event: dict[str, Any], name: str) -> datetime:
    """ValueError or TypeError if it is no time."""
    if (found := TIME.fullmatch(event[name])) is None:
        raise ValueError(event[name])
    return datetime.fromisoformat(found[1] + found[2])


def verdict(event: dict[str, Any], first: dict[tuple[str, str], object]) -> str:
    """Judge a well-formed event by the rules of the time limits and of claims."""
    time = instant(event, "time")
    log_time = instant(event, "logtime") if "logtime" in event else time
    if time - log_time > timedelta(minutes=5):
        return Reason.TIME_IN_FUTURE
    if log_time - time > timedelta(days=35):
        return Reason.TOO_LATE
    key = (event["source"], event["id"])
    content = (event["type"], event["subject"], time, event["data"])
    if key not in first:
        first[key] = content
        return "accepted"
    return Reason.DUPLICATE if first[key] == content else Reason.CONFLICT


def test_the_truth_is_true(tmp_path: Path) -> None:
    """Counts again what can be read, with a dict for the claims; the rest must be the broken ones."""
    seen: list[int] = []
    truth = generate(40_000, 200, 4, 1, tmp_path, seen.append)
    assert truth == json.loads((tmp_path / "truth.json").read_text())
    first: dict[tuple[str, str], object] = {}
    verdicts: Counter[str] = Counter()
    subjects: dict[str, list[int]] = {}
    homes: dict[str, set[str]] = {}
    for name, counts in truth["files"].items():
        lines = (tmp_path / name).read_bytes().removesuffix(b"\n").split(b"\n")
        events = [event for line in lines for event in split(line)]
        assert counts == {"messages": len(lines), "events": len(events)}
        for line in events:
            event = acceptable(line)
            if event is None:
                continue
            homes.setdefault(event["subject"], set()).add(name)
            verdicts[found := verdict(event, first)] += 1
            if found == "accepted":
                used = subjects.setdefault(event["subject"], [0, 0])
                used[0] += 1
                used[1] += event["data"]["bytes"]
    assert all(len(files) == 1 for files in homes.values())
    accepted = verdicts.pop("accepted")
    assert accepted == truth["accepted"] == truth["written"]["plain"] + truth["written"]["late"]
    assert sum(truth["rejected"].values()) == truth["events"] - accepted == 40_000 - accepted == sum(seen) - accepted
    assert verdicts == {reason: count for reason, count in truth["rejected"].items() if reason in verdicts}
    assert verdicts.keys() == {"duplicate", "conflict", "too_late", "time_in_future"}
    assert truth["rejected"].keys() == set(Reason) - {Reason.SUBSCRIPTION_INVALID}, "nobody subscribes by events here"
    assert subjects == {name: [int(used["requests"]), int(used["bytes"])] for name, used in truth["subjects"].items()}
    assert truth["bytes"] == str(sum(used[1] for used in subjects.values()))
    assert 0.015 < truth["rejected"]["duplicate"] / 40_000 < 0.025
    assert truth["messages"] < truth["events"]


def acceptable(line: bytes) -> dict[str, Any] | None:
    """The event of a line that is well-formed in every respect that the sample breaks; else None."""
    try:
        event = json.loads(line.decode(), parse_constant=Decimal)
        json.dumps(event, ensure_ascii=False).encode()  # refuses lone surrogates
        for name in ("time", "logtime") if "logtime" in event else ("time",):
            instant(event, name)
        data = event["data"]
        whole = type(data["bytes"]) is int and 0 <= data["bytes"] < 10**15
        texts = [event["id"], event["source"], event["subject"], data["region"]]
        named = event["type"] == "api.request" and event["specversion"] == "1.0" and type(data["status"]) is int
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return (
        event
        if whole and named and all(type(text) is str and text for text in texts) and len(line) <= EVENT_BYTES_MAX
        else None
    )


def test_every_broken_kind_is_one_event_on_one_line() -> None:
    line = (
        '{"specversion":"1.0","id":"1","source":"/gateways/a","type":"api.request","subject":"cust-1",'
        '"time":"2026-01-12T00:00:00.000001Z","data":{"bytes":17,"region":"a","method":"GET","status":200,'
        '"endpoint":"/v1/items"}}'
    )
    assert acceptable(line.encode()) is not None
    edited = [edit(line).encode("utf-8", "surrogateescape") for _, edit in BROKEN]
    for event in edited:
        assert b"\n" not in event
        assert split(event) == [event]
        assert acceptable(event) is None, event
    assert len(set(edited)) > len(edited) - 10
    for (reason, _), event in zip(BROKEN, edited, strict=True):
        if reason is not Reason.MALFORMED:
            json.loads(event)


def test_few_events_many_files(tmp_path: Path) -> None:
    truth = generate(1, 1, 3, 0, tmp_path, lambda count: None)
    assert (truth["events"], truth["messages"], len(truth["files"])) == (1, 1, 3)
    assert all((tmp_path / name).exists() for name in truth["files"])


def test_another_runs_files_are_not_mixed_in(tmp_path: Path) -> None:
    generate(10, 1, 3, 0, tmp_path, lambda count: None)
    generate(10, 1, 3, 0, tmp_path, lambda count: None)
    with pytest.raises(TallyError, match=r"events-2\.ndjson is from another run"):
        generate(10, 1, 2, 0, tmp_path, lambda count: None)
    with pytest.raises(TallyError, match="cannot write to"):
        generate(10, 1, 2, 0, tmp_path / "truth.json" / "sub", lambda count: None)


def test_the_command(tmp_path: Path) -> None:
    app = Typer()
    app.command()(generate_command)
    result = CliRunner().invoke(
        app, ["--events", "100", "--subjects", "5", "--files", "2", "--out", str(tmp_path / "x")]
    )
    assert result.exit_code == 0
    assert "Wrote 100 events" in result.output
    assert sorted(written(tmp_path / "x")) == ["events-0.ndjson", "events-1.ndjson", "truth.json"]

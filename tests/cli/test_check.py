"""`tally check` and `tally migrate`: what they say, and that a check changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import Inside, shown
from tests.cli.conftest import Counted


def test_a_fresh_folder(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "one.ndjson").write_text("")
    said = inside("check", "--source", "file:*.ndjson", "--catalog", "web")
    assert said.code == 0 and said.err == "", shown(said)
    lines = dict(line.split(" ok: ") for line in said.out.splitlines())
    assert lines["catalog    "] == "becomes version 1, 1 event type, 3 meters, 1 plan"
    assert lines["input      "] == "1 file"
    assert lines["redis      "].startswith("embedded, /")
    assert lines["clickhouse "] == "embedded"
    assert lines["data       "] == f"{tmp_path / '.tally'} will be made"
    assert [path.name for path in tmp_path.iterdir()] == ["one.ndjson"]


def test_every_fault_is_named(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = inside(
        *("check", "--source", "file:none", "--catalog", "none.yaml", "--data-dir", "file/data"),
        TALLY_REDIS_URL="redis://:s3cret@127.0.0.1:1",
        TALLY_REDIS_WAIT_SECONDS="0.1",
        TALLY_CLICKHOUSE_URL="http://u:s3cret@127.0.0.1:1/tallyflow",
    )
    assert said.code == 1, shown(said)
    faults = [line.split(" FAULT: ") for line in said.out.splitlines()]
    assert [fault[0].strip() for fault in faults] == ["catalog", "input", "redis", "clickhouse", "data"]
    assert "none.yaml cannot be read" in faults[0][1]
    assert "no file matches" in faults[1][1]
    assert "s3cret" not in said.out + said.err


def test_a_deployment(inside: Inside, counted: Counted) -> None:
    said = inside("check", "--data-dir", counted.data)
    assert said.code == 0, shown(said)
    assert "catalog     ok: is version 1, from the beginning on, 1 event type, 2 meters, 2 plans" in said.out
    assert f"data        ok: {counted.data} is free" in said.out


def test_a_folder_of_something_else_is_left_as_it_is(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "home" / "mine").mkdir(parents=True)
    said = inside("check", "--data-dir", "home")
    assert said.code == 0 and f"{tmp_path / 'home'} will be used" in said.out
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["mine"]


def test_migrate_says_what_it_applied(inside: Inside) -> None:
    first = inside("migrate", "--data-dir", "data")
    assert first.code == 0 and first.out.startswith("applied 0001_tables.sql\n"), shown(first)
    assert inside("migrate", "--data-dir", "data") == (0, "the schema is current\n", "")


@pytest.mark.parametrize(
    "command", ["demo", "run", "query", "generate", "check", "health", "migrate", "convert access-log", ""]
)
def test_every_command_explains_itself(command: str, inside: Inside) -> None:
    said = inside(*command.split(), "--help")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"Usage: tally {command}".rstrip()) and max(map(len, said.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "No such command 'nope'."),
        (["run", "--source", "file:x", "--workers", "0"], "Invalid value for '--workers'"),
        (["run", "--sorce", "file:x"], "No such option: --sorce"),
        (["query"], "Missing argument 'SQL'."),
        (["query", "SELECT", "1"], "Got unexpected extra argument"),
        (["demo", "--events", "none"], "Invalid value for '--events'"),
        (["generate", "--files", "0"], "Invalid value for '--files'"),
        (["convert", "access-log"], "Missing argument 'FILE'."),
        (["check", "extra"], "Got unexpected extra argument"),
    ],
)
def test_wrong_options_are_exit_code_2(arguments: list[str], message: str, inside: Inside) -> None:
    said = inside(*arguments)
    assert (said.code, said.out) == (2, "")
    assert message in said.err


def test_the_version(inside: Inside) -> None:
    said = inside("--version")
    assert said.code == 0 and said.out.startswith("tally 0.")

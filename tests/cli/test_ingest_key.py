"""`tally ingest-key` and what `tally ingest` refuses to start with."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from api.keys import read_keys
from tests.cli.command import Inside


def test_keys_are_appended_and_work(inside: Inside, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    first = inside("ingest-key", "one", TALLY_INGEST_KEYS_FILE=str(file))
    second = inside("ingest-key", "two", "--file", file, "--type", "a", "--type", "b", "--subject-prefix", "cust: ")
    assert (first.code, second.code, file.stat().st_mode & 0o777) == (0, 0, 0o600)
    ring = read_keys(file.read_text(), "file")
    found = [ring.find(said.out.strip().encode()) for said in (first, second)]
    assert [key and key.name for key in found] == ["one", "two"]
    assert found[1] is not None
    assert (found[1].types, found[1].sources, found[1].subject_prefix) == (frozenset("ab"), None, "cust: ")
    assert first.out.strip() not in file.read_text()


def test_without_a_file_the_entry_is_shown(inside: Inside) -> None:
    said = inside("ingest-key", "one")
    ring = read_keys("keys:\n" + said.err, "said")
    assert ring.find(said.out.strip().encode()) is not None


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("keys:\n  - {name: one, sha256: " + "ab" * 32 + "}\n", "choose another name"),
        (json.dumps({"keys": [{"name": "other", "sha256": "ab" * 32}]}), "put this entry into it by hand"),
        ("keys: [\n", "correct it"),
        ("other: 1\n", "lists no keys"),
    ],
)
def test_a_file_that_cannot_be_appended_to_is_left_alone(
    inside: Inside, tmp_path: Path, text: str, remedy: str
) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    said = inside("ingest-key", "one", "--file", file)
    assert (said.code, said.out) == (1, "")
    assert remedy in said.err
    assert file.read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["keys.yaml"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "TALLY_KAFKA_BROKERS"),
        ({"TALLY_KAFKA_BROKERS": "127.0.0.1:1"}, "TALLY_INGEST_KEYS_FILE"),
        ({"TALLY_KAFKA_BROKERS": "127.0.0.1:1", "TALLY_INGEST_KEYS_FILE": "none.yaml"}, "none.yaml cannot be read"),
        ({"TALLY_KAFKA_BROKERS": "127.0.0.1:1", "TALLY_INGEST_KEYS_FILE": "keys.yaml"}, "--catalog"),
        ({"TALLY_KAFKA_BROKERS": "127.0.0.1:1", "TALLY_KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, "TALLY_KAFKA_PASSWORD"),
    ],
)
def test_an_ingest_that_cannot_start_says_what_is_missing(
    inside: Inside, tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    inside("ingest-key", "one", "--file", tmp_path / "keys.yaml")
    told = inside("ingest", **settings)
    assert (told.code, said in told.err) == (1, True), told.err


def test_a_port_that_is_taken_is_named(inside: Inside, tmp_path: Path) -> None:
    inside("ingest-key", "one", "--file", tmp_path / "keys.yaml")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = {"TALLY_KAFKA_BROKERS": "127.0.0.1:1", "TALLY_INGEST_KEYS_FILE": "keys.yaml"}
        said = inside("ingest", "--catalog", "api", "--port", str(port), **settings)
    assert (said.code, f"port {port}" in said.err) == (1, True), said.err

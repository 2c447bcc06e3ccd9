"""API keys: what a file may say, who is let in, and what a key may send."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from api.keys import ApiKey, KeysFile, new_key, read_keys
from domain.ports import TallyError


def test_a_key_is_found_by_its_hash_only() -> None:
    key, digest = new_key()
    other, other_digest = new_key()
    ring = read_keys(
        json.dumps({"keys": [{"name": "a", "sha256": digest}, {"name": "b", "sha256": other_digest}]}), "file"
    )
    assert key != other and key.startswith("tally_") and len(key) > 40
    assert hashlib.sha256(key.encode()).hexdigest() == digest
    assert [found and found.name for found in map(ring.find, (key.encode(), other.encode()))] == ["a", "b"]
    assert [ring.find(wrong) for wrong in (b"", digest.encode(), key.encode()[:-1], key.encode() + b"x")] == [None] * 4


@pytest.mark.parametrize(
    ("key", "event", "refused"),
    [
        (ApiKey("k", b""), ("api.request", "/any", "cust-1"), ""),
        (ApiKey("k", b""), ("tallyflow.subscription", "/any", "cust-1"), "type"),
        (ApiKey("k", b"", frozenset({"tallyflow.subscription"})), ("tallyflow.subscription", "/any", "cust-1"), ""),
        (ApiKey("k", b"", frozenset({"api.request"})), ("llm.call", "/any", "cust-1"), "type"),
        (ApiKey("k", b"", None, frozenset({"/gateway"})), ("api.request", "/gateway/2", "cust-1"), "source"),
        (ApiKey("k", b"", None, None, "cust-"), ("api.request", "/any", "customer"), "subject"),
    ],
)
def test_what_a_key_may_send(key: ApiKey, event: tuple[str, str, str], refused: str) -> None:
    assert key.refusal(*event).partition(":")[0] == refused


def test_every_fault_of_a_file_is_named_and_no_hash_repeated() -> None:
    secret = "put-in-by-mistake"
    text = f"""
keys:
  - {{name: a, sha256: {secret}}}
  - {{name: a, sha256: {"0" * 62}, typos: [x]}}
  - {{sha256: {"ab" * 32}, types: [], sources: one, subject_prefix: 7}}
  - text
"""
    with pytest.raises(TallyError) as caught:
        read_keys(text, "keys.yaml")
    said = str(caught.value)
    assert secret not in said
    assert [line.split(":")[0].strip() for line in said.splitlines()[1:]] == [
        "keys[0].sha256",
        "keys[1].typos",
        "keys[1].sha256",
        "keys[2].name",
        "keys[2].subject_prefix",
        "keys[2].types",
        "keys[2].sources",
        "keys[3]",
        "keys[1].name",
    ]


@pytest.mark.parametrize("text", ["", "[]", "keys: []", "keys: {}", "a: [", "keys", "keys: \x00"])
def test_a_file_without_keys_lets_nobody_in(text: str) -> None:
    with pytest.raises(TallyError, match=r"keys\.yaml"):
        read_keys(text, "keys.yaml")


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    keys = [new_key() for _ in range(2)]
    file.write_text(json.dumps({"keys": [{"name": "a", "sha256": keys[0][1]}]}))
    watched = KeysFile(file)
    assert watched.refresh() == ""
    file.write_text(json.dumps({"keys": [{"name": "b", "sha256": keys[1][1]}]}))
    assert watched.refresh() == ""
    assert (watched.ring.find(keys[0][0].encode()), len(watched.ring.keys)) == (None, 1)
    file.write_text("keys: [")
    assert "stay in force" in watched.refresh()
    assert watched.ring.find(keys[1][0].encode()) is not None
    file.unlink()
    assert "cannot be read" in watched.refresh(force=True)
    assert watched.ring.find(keys[1][0].encode()) is not None


def test_a_file_that_is_swapped_by_a_link_is_read_again(tmp_path: Path) -> None:
    """As Kubernetes replaces a mounted secret: the link moves, the size may stay."""
    keys = [new_key() for _ in range(2)]
    for name, (_, digest) in zip("ab", keys, strict=True):
        (tmp_path / name).write_text(json.dumps({"keys": [{"name": name, "sha256": digest}]}))
        os.utime(tmp_path / name, ns=(0, 0))
    link = tmp_path / "keys.yaml"
    link.symlink_to("a")
    watched = KeysFile(link)
    link.unlink()
    link.symlink_to("b")
    assert watched.refresh() == ""
    assert [key.name for key in watched.ring.keys] == ["b"]

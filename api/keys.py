"""API keys: who may send which events.

A file (YAML or JSON) lists the keys by name with the SHA-256 of each; the keys themselves are nowhere. A key is 256
random bits, so a plain digest is enough: there is nothing to guess. A presented key is compared with every entry in
constant time.

The file is read again when it changes and when the process is told to. A file that has become wrong changes nothing:
the keys read last stay in force, and the fault is reported.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from domain.ports import TallyError

KEY_PREFIX = "tally_"
"""What every key begins with, so that one that leaked is recognised where it should not be."""
RESERVED_TYPES = "tallyflow."
"""Event types with this prefix change what is charged; only a key that lists one may send it."""

_BYTES = 32
_FILE_BYTES_MAX = 4 * 1024 * 1024
_FIELDS = ("name", "sha256", "types", "sources", "subject_prefix")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, as the file describes it."""

    name: str
    sha256: bytes
    types: frozenset[str] | None = None
    """Event types that it may send; None: every type but the reserved ones."""
    sources: frozenset[str] | None = None
    """Sources that it may send from; None: any."""
    subject_prefix: str = ""
    """What every subject must begin with."""

    def refusal(self, event_type: str, source: str, subject: str) -> str:
        """Why this key may not send such an event; "" if it may."""
        if self.types is None:
            if event_type.startswith(RESERVED_TYPES):
                return f"type: this key may not send {event_type!r}; its entry has to list it"
        elif event_type not in self.types:
            return f"type: this key may not send {event_type!r}"
        if self.sources is not None and source not in self.sources:
            return f"source: this key may not send from {source!r}"
        if not subject.startswith(self.subject_prefix):
            return f"subject: this key may only send subjects that begin with {self.subject_prefix!r}"
        return ""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Every key that is in force."""

    keys: tuple[ApiKey, ...]

    def find(self, presented: bytes) -> ApiKey | None:
        """The entry of a key; takes as long for a wrong one as for a right one."""
        digest = hashlib.sha256(presented).digest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found


def new_key() -> tuple[str, str]:
    """A new random key, and the SHA-256 (hexadecimal) to put into the file."""
    key = KEY_PREFIX + secrets.token_urlsafe(_BYTES)
    return key, hashlib.sha256(key.encode()).hexdigest()


def read_keys(text: str, where: str) -> KeyRing:
    """The keys that a YAML or JSON text lists: `keys: [{name, sha256, types, sources, subject_prefix}, ...]`.

    Raises:
        TallyError: with every fault; it never repeats a hash, which may be a key put in by mistake.
    """
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f" in line {mark.line + 1}" if mark else ""
        raise TallyError(f"{where} is neither YAML nor JSON{at}: correct it") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise TallyError(
            f"{where} lists no keys: write `keys:` and an entry for each; `tally ingest-key NAME` makes one"
        )
    faults: list[str] = []
    keys = [_entry(entry, f"keys[{i}]", faults) for i, entry in enumerate(entries)]
    for what in ("name", "sha256"):
        seen: set[object] = set()
        for i, key in enumerate(keys):
            value = getattr(key, what)
            if value and value in seen:
                faults.append(f"keys[{i}].{what}: is given twice; make each key its own")
            seen.add(value)
    if faults:
        raise TallyError("\n".join([f"{where} has faults:", *(f"  {fault}" for fault in faults)]))
    return KeyRing(tuple(keys))


def _entry(entry: Any, path: str, faults: list[str]) -> ApiKey:
    if not isinstance(entry, dict):
        faults.append(f"{path}: is no mapping; write {{name: ..., sha256: ...}}")
        return ApiKey("", b"")
    for unknown in [name for name in entry if name not in _FIELDS]:
        faults.append(f"{path}.{unknown}: is not known; use {', '.join(_FIELDS)}")
    name = _text(entry.get("name"), f"{path}.name", faults)
    digest = b""
    with suppress(TypeError, ValueError):
        digest = bytes.fromhex(entry.get("sha256", ""))
    if len(digest) != 32:
        digest = b""
        faults.append(f"{path}.sha256: is no SHA-256 in 64 hexadecimal digits; `tally ingest-key NAME` makes one")
    prefix = "" if "subject_prefix" not in entry else _text(entry["subject_prefix"], f"{path}.subject_prefix", faults)
    types, sources = (_texts(entry, key, f"{path}.{key}", faults) for key in ("types", "sources"))
    return ApiKey(name, digest, types, sources, prefix)


def _text(value: object, path: str, faults: list[str]) -> str:
    if isinstance(value, str) and value:
        return value
    faults.append(f"{path}: is no text; write a non-empty string")
    return ""


def _texts(entry: dict[str, Any], key: str, path: str, faults: list[str]) -> frozenset[str] | None:
    if key not in entry:
        return None
    values = entry[key]
    if isinstance(values, list) and values and all(isinstance(value, str) and value for value in values):
        return frozenset(values)
    faults.append(f"{path}: is no list of texts; write [value, ...], or leave it out to allow all")
    return frozenset()


def with_entry(text: str, where: str, entry: Mapping[str, object]) -> str:
    """The text of a keys file with one more entry at its end.

    Raises:
        TallyError: the file is wrong, or nothing can be put at its end (it is JSON), or the name is taken.
    """
    line = f"  - {json.dumps(entry, ensure_ascii=False)}"
    if not text.strip():
        return f"keys:\n{line}\n"
    if text.strip() != "keys:":
        read_keys(text, where)
    longer = f"{text.rstrip()}\n{line}\n"
    try:
        read_keys(longer, where)
    except TallyError as error:
        if "given twice" in str(error):
            raise TallyError(f"{where} has a key named {entry['name']!r} already: choose another name") from None
        raise TallyError(
            f"nothing can be appended to {where}: put this entry into it by hand: {line.strip(' -')}"
        ) from None
    return longer


class KeysFile:
    """The keys file of a running process.

    Raises:
        TallyError: the file cannot be read or is wrong (when made; later faults are returned by `refresh`).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._stamped()
        self._ring = self._read()

    @property
    def ring(self) -> KeyRing:
        """The keys in force."""
        return self._ring

    def refresh(self, *, force: bool = False) -> str:
        """Read the file again if it changed, or in any case if `force`; returns what was wrong with it, else ""."""
        try:
            stamp = self._stamped()
            if stamp == self._stamp and not force:
                return ""
            self._stamp = stamp
            self._ring = self._read()
        except TallyError as error:
            return f"{error}; the keys read before stay in force"
        return ""

    def _stamped(self) -> tuple[int, ...]:
        """What changes when the file does; follows the symbolic links by which Kubernetes swaps mounted secrets."""
        try:
            found = os.stat(self._path)
        except OSError as error:
            raise self._unreadable(error) from error
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev

    def _read(self) -> KeyRing:
        try:
            with self._path.open("rb") as file:
                content = file.read(_FILE_BYTES_MAX + 1)
        except OSError as error:
            raise self._unreadable(error) from error
        if len(content) > _FILE_BYTES_MAX:
            raise TallyError(
                f"the keys file {self._path} is larger than {_FILE_BYTES_MAX} bytes: is it the right file?"
            )
        try:
            return read_keys(content.decode("utf-8-sig"), f"the keys file {self._path}")
        except UnicodeDecodeError:
            raise TallyError(f"the keys file {self._path} is not UTF-8: save it as UTF-8") from None

    def _unreadable(self, error: OSError) -> TallyError:
        return TallyError(
            f"the keys file {self._path} cannot be read: {error.strerror}. TALLY_INGEST_KEYS_FILE names it; "
            "`tally ingest-key NAME` makes it."
        )

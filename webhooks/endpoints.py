"""The file of endpoints: where signals go, which ones, and with which secrets.

```yaml
endpoints:
  billing:
    url: https://hooks.example.com/tally
    secrets: [{env: BILLING_WEBHOOK_SECRET}]   # or {file: /run/secrets/billing}; two while one is replaced
    signals: [quota.exceeded]                  # absent: all
    subjects: ["cust-*"]                       # absent: all
    internal: false                            # true: may be http, and at a private address
    timeout: 10s
    concurrency: 4
retry_after: [5s, 5m, 30m, 2h, 5h, 10h, 14h, 20h, 24h]
```

Secrets stand in the environment or in files, never here. All faults are reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from config import yaml_text
from config.yaml_text import Document
from domain.ports import TallyError
from domain.quota import SignalType
from domain.schema import Fault
from webhooks.signing import read_secret

RETRY_AFTER_SECONDS = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Pauses between attempts, as the Standard Webhooks specification suggests: ten attempts in about three days."""
TIMEOUT_SECONDS = 10.0
TIMEOUT_SECONDS_MAX = 60.0
CONCURRENCY = 4
CONCURRENCY_MAX = 64
ENDPOINTS_MAX = 1000
ATTEMPTS_MAX = 50
PAUSE_SECONDS_MAX = 7 * 86_400.0
SECRET_FILE_BYTES_MAX = 1000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
_DURATION = re.compile(r"(\d{1,7})(ms|s|m|h|d)", re.ASCII)
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_KEYS = {"url", "secrets", "signals", "subjects", "internal", "timeout", "concurrency"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One receiver."""

    name: str
    url: str
    secrets: tuple[bytes, ...] = field(repr=False)
    signals: frozenset[str] | None = None
    """None: every type."""
    subjects: tuple[str, ...] | None = None
    """Patterns with `*` and `?`; None: every subject."""
    internal: bool = False
    timeout_seconds: float = TIMEOUT_SECONDS
    concurrency: int = CONCURRENCY
    """Most requests at once."""

    def wants(self, type: str, subject: str) -> bool:
        """Whether a signal goes to it."""
        if self.signals is not None and type not in self.signals:
            return False
        return self.subjects is None or any(fnmatchcase(subject, pattern) for pattern in self.subjects)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The whole file."""

    endpoints: tuple[Endpoint, ...]
    retry_after_seconds: tuple[float, ...] = RETRY_AFTER_SECONDS


class EndpointsError(TallyError):
    """A file of endpoints that cannot be used; with every fault."""


def load_endpoints(path: Path, environment: Mapping[str, str]) -> Endpoints:
    """Read the file, and the secrets that it names.

    Raises:
        EndpointsError: with every fault, its line and a remedy; never a secret.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EndpointsError(f"the endpoints {path} cannot be read: {error}") from error
    document = yaml_text.read(text)
    reader = _Reader(document, environment)
    found = None if document.faults else reader.file(document.value)
    if document.faults or found is None:
        faults = sorted(document.faults, key=lambda fault: document.line(fault.path))
        lines = [f"  line {document.line(f.path)}: {f}" if document.line(f.path) else f"  {f}" for f in faults]
        count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
        raise EndpointsError("\n".join([f"{path} has {count}:", *lines]))
    return found


class _Reader:
    """Reads part after part, noting faults; a part with a fault is None or its default."""

    def __init__(self, document: Document, environment: Mapping[str, str]) -> None:
        self._faults = document.faults
        self._environment = environment

    def file(self, value: Any) -> Endpoints | None:
        if not isinstance(value, dict):
            self._fault("", "is no mapping", "begin with `endpoints:`")
            return None
        self._only(value, {"endpoints", "retry_after"}, "")
        named = value.get("endpoints")
        if not isinstance(named, dict) or not named:
            self._fault("endpoints", "names no endpoint", "write a name and under it a url and secrets")
            named = {}
        if len(named) > ENDPOINTS_MAX:
            self._fault("endpoints", f"has {len(named)} endpoints", f"at most {ENDPOINTS_MAX}")
        endpoints = [self._endpoint(name, one, f"endpoints.{name}") for name, one in named.items()]
        pauses = self._pauses(value["retry_after"]) if "retry_after" in value else RETRY_AFTER_SECONDS
        return None if self._faults else Endpoints(tuple(one for one in endpoints if one is not None), pauses)

    def _endpoint(self, name: str, value: Any, path: str) -> Endpoint | None:
        if not _NAME.fullmatch(name):
            self._fault(path, f"{name!r} is no name", "use letters, digits and _.- (at most 64)")
        if not isinstance(value, dict):
            self._fault(path, "is no mapping", "write a url and secrets under it")
            return None
        self._only(value, _KEYS, path)
        internal = value.get("internal", False)
        if not isinstance(internal, bool):
            self._fault(f"{path}.internal", "is neither true nor false", "write true or false")
        return Endpoint(
            name,
            self._url(value.get("url"), internal is True, f"{path}.url"),
            self._secrets(value.get("secrets"), f"{path}.secrets"),
            self._signals(value.get("signals"), f"{path}.signals"),
            self._texts(value.get("subjects"), f"{path}.subjects", 'subjects or patterns such as "cust-*"'),
            internal is True,
            self._duration(value.get("timeout"), f"{path}.timeout", 0.1, TIMEOUT_SECONDS_MAX, TIMEOUT_SECONDS),
            self._whole(value.get("concurrency"), f"{path}.concurrency", CONCURRENCY_MAX, CONCURRENCY),
        )

    def _url(self, value: Any, internal: bool, path: str) -> str:
        remedy = "write an address such as https://hooks.example.com/tally"
        try:
            parts = urlsplit(value if isinstance(value, str) else "")
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not str(value).isascii():
            self._fault(path, "is no http(s) address" if value is not None else "is missing", remedy)
        elif parts.username or parts.password or parts.fragment or re.search(r"[\s\x00-\x1f]", str(value)):
            self._fault(path, "holds a login, a fragment or a space", remedy)
        elif parts.scheme == "http" and not internal:
            self._fault(path, "is not https", "use https, or say `internal: true` if it stays in your network")
        return str(value)

    def _secrets(self, value: Any, path: str) -> tuple[bytes, ...]:
        if not isinstance(value, list) or not value:
            self._fault(path, "names no secret", "write a list such as [{env: BILLING_WEBHOOK_SECRET}]")
            return ()
        found = [self._secret(one, f"{path}[{place}]") for place, one in enumerate(value)]
        return tuple(one for one in found if one is not None)

    def _secret(self, value: Any, path: str) -> bytes | None:
        match value:
            case {"env": str(name), **rest} if not rest:
                text: str | None = self._environment.get(name, "")
                where = f"the variable {name}"
            case {"file": str(name), **rest} if not rest:
                text = self._file(name, path)
                where = f"the file {name}"
            case _:
                self._fault(path, "is neither {env: NAME} nor {file: PATH}", "keep the secret itself out of this file")
                return None
        if text is None:
            return None
        if not text.strip():
            self._fault(
                path, f"{where} is empty or missing", "set it to whsec_ and the base64 of 24 to 64 random bytes"
            )
            return None
        try:
            return read_secret(text.strip())
        except ValueError as error:
            self._fault(path, f"{where} {error}", "write whsec_ and the base64 of 24 to 64 random bytes")
            return None

    def _file(self, name: str, path: str) -> str | None:
        try:
            with Path(name).open("rb") as file:
                return file.read(SECRET_FILE_BYTES_MAX).decode("utf-8", "replace")
        except OSError as error:
            self._fault(path, f"the file {name} cannot be read: {error.strerror}", "check path and permissions")
            return None

    def _signals(self, value: Any, path: str) -> frozenset[str] | None:
        known = [str(kind) for kind in SignalType]
        found = self._texts(value, path, f"types of signals: {', '.join(known)}")
        for place, kind in enumerate(found or ()):
            if kind not in known:
                self._fault(f"{path}[{place}]", f"unknown signal {kind!r}", f"use one of {', '.join(known)}")
        return None if found is None else frozenset(found)

    def _texts(self, value: Any, path: str, what: str) -> tuple[str, ...] | None:
        if value is None:
            return None
        if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
            self._fault(path, "is no list of texts", f"write a list of {what}; leave it out for all")
            return None
        return tuple(value)

    def _pauses(self, value: Any) -> tuple[float, ...]:
        path = "retry_after"
        if not isinstance(value, list) or len(value) >= ATTEMPTS_MAX:
            self._fault(path, f"is no list of less than {ATTEMPTS_MAX} pauses", "write pauses such as [5s, 5m, 1h]")
            return RETRY_AFTER_SECONDS
        return tuple(
            self._duration(one, f"{path}[{place}]", 0.001, PAUSE_SECONDS_MAX, 0) for place, one in enumerate(value)
        )

    def _duration(self, value: Any, path: str, least: float, most: float, default: float) -> float:
        if value is None and default:
            return default
        match = _DURATION.fullmatch(value) if isinstance(value, str) else None
        seconds = int(match[1]) * _UNIT_SECONDS[match[2]] if match else -1.0
        if not least <= seconds <= most:
            self._fault(path, f"{value!r} is no duration from {least:g} s to {most:g} s", "write one such as 10s or 5m")
        return seconds

    def _whole(self, value: Any, path: str, most: int, default: int) -> int:
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            self._fault(path, f"{value!r} is no number from 1 to {most}", "write digits")
            return default
        return value

    def _only(self, value: dict[str, Any], known: set[str], path: str) -> None:
        for key in value:
            if key not in known:
                inside = f"{path}.{key}" if path else key
                self._fault(inside, "is no key here", f"use {', '.join(sorted(known))}")

    def _fault(self, path: str, message: str, remedy: str) -> None:
        self._faults.append(Fault(path, message, remedy))

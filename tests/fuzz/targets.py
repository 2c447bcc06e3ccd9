"""What is fuzzed: functions of any bytes, which raise where a promise is broken."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.fuzz import events, readers, servers, texts

TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "line": events.line,
    "binary": events.binary,
    "catalog": texts.catalog,
    "keys": texts.keys,
    "instants": texts.instants,
    "signal": texts.signal,
    "statement": texts.statement,
    "file": readers.file,
    "packed": readers.packed,
    "body": readers.body,
    "status": servers.status,
    "front": servers.front,
    "ingest": servers.ingest,
}
CORPUS: Final = Path(__file__).parent / "corpus"
"""A folder for each target, with inputs that once failed or that reach far; `make test` runs them all."""

SECONDS_MAX_BY_KB: Final = 1.0


def attempt(name: str, data: bytes, slower: float = 1.0) -> None:
    """Give an input to a target; that it takes too much of the processor for its size is a failure, too.

    Args:
        slower: By what factor the code is slowed down that is measured.
    """
    began = time.process_time()
    TARGETS[name](data)
    seconds = time.process_time() - began
    assert seconds <= slower * SECONDS_MAX_BY_KB * (1 + len(data) / 1024), f"{seconds:.1f} s for {len(data)} bytes"

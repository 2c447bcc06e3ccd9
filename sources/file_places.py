"""Where in a file a line begins, and which file is which partition: what a lost data directory knew.

The ledger knows lines by their number. A file is read once up to the lines that were counted; samples of the ledger
must stand in it where the ledger says. So a file that was replaced, or taken for another, is refused.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader

from xxhash import xxh3_128_intdigest

from domain.envelope import split
from domain.ports import TallyError
from sources.files import BLOCK_BYTES, HEAD_BYTES_MAX, FileState
from sources.paths import open_regular

Samples = Mapping[tuple[int, int], bytes]
"""Payloads of events by line and place in it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the ledger says of a partition."""

    lines: int
    events: int
    samples: Samples


def match(paths: list[str], wanted: Mapping[int, Wanted]) -> dict[str, int]:
    """The partition number of each path that the ledger knows, told by their contents alone.

    Raises:
        TallyError: a partition has no file, or it cannot be told which.
    """
    found: dict[str, int] = {}
    unread = list(paths)
    for number, want in sorted(wanted.items()):
        fitting = [path for path in unread if _fits(path, want)]
        if not fitting:
            raise TallyError(
                f"partition {number} of the ledger has {want.lines} lines, and no file given begins with them: name "
                "all files that were read, as they were"
            )
        if not want.samples or len(fitting) > 1:
            raise TallyError(
                f"partition {number} of the ledger may be any of {', '.join(fitting)}: restore files.json, or write it "
                'by hand, a JSON object of partition numbers by absolute path, for instance {"/logs/a.ndjson": 0}'
            )
        unread.remove(fitting[0])
        found[fitting[0]] = number
    return found


def place(path: str, want: Wanted) -> FileState:
    """Where a file is read on that was counted so far.

    Raises:
        TallyError: it is not what was counted.
    """
    state, differs = _scan(path, want)
    if state is None or differs:
        raise TallyError(
            f"{path}: {differs or f'has less than {want.lines} lines'}, but {want.lines} of its lines stand in the "
            "ledger. Restore the file."
        )
    return state


def _fits(path: str, want: Wanted) -> bool:
    state, differs = _scan(path, want)
    return state is not None and not differs


def _scan(path: str, want: Wanted) -> tuple[FileState | None, str]:
    """Read as many lines; None if there are fewer. Says how they differ from the ledger, "" if they do not."""
    places: dict[int, dict[int, bytes]] = {}
    for (number, element), payload in want.samples.items():
        places.setdefault(number, {})[element] = payload
    state, head = FileState(), b""
    for line in _lines(path, want.lines):
        expected = places.get(state.lines)
        if expected is not None:
            events = split(line.removesuffix(b"\n"))
            if any(events[element : element + 1] != [payload] for element, payload in expected.items()):
                return state, f"line {state.lines} is not what was counted"
        if len(head) < HEAD_BYTES_MAX:
            head += line[: HEAD_BYTES_MAX - len(head)]
        state = FileState(
            offset_bytes=state.offset_bytes + len(line),
            lines=state.lines + 1,
            events=want.events,
            head_bytes=len(head),
            unterminated=not line.endswith(b"\n"),
        )
    if state.lines < want.lines:
        return None, ""
    return state._replace(head_hash=xxh3_128_intdigest(head)), ""


def _lines(path: str, count: int) -> Iterator[bytes]:
    """The first lines, with their ends."""
    try:
        with open_regular(path, None) as raw, BufferedReader(raw, BLOCK_BYTES) as packed:
            opened = gzip.GzipFile(fileobj=packed) if path.lower().endswith(".gz") else packed
            for _, line in zip(range(count), opened, strict=False):
                yield line
    except (OSError, EOFError, zlib.error) as error:
        raise TallyError(f"{path} cannot be read: {error}. Restore the file.") from error

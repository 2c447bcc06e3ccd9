"""Files are known again by what the ledger has of them, and read on behind what was counted."""

from __future__ import annotations

import gzip
import threading
from pathlib import Path

import pytest

from domain.ports import TallyError
from sources.file_places import Wanted, match, place
from sources.files import FilePartition

LINES = [b'{"a":1}', b"", b'[{"b":1},{"b":2}]', b"x" * 100_000, b'{"c":3}']


def wanted(lines: int, *samples: tuple[int, int, bytes]) -> Wanted:
    return Wanted(lines, lines + 1, {(line, element): payload for line, element, payload in samples})


def rest_of(path: Path, want: Wanted) -> list[bytes]:
    """What is read behind the place that was found."""
    part = FilePartition(str(path), 0, place(str(path), want), 1000, threading.Event(), None)
    again = FilePartition(str(path), 0, part.snapshot(), 1000, threading.Event(), None)
    found: list[list[bytes]] = []
    for one in (part, again):
        found.append([])
        try:
            while True:
                found[-1] += one.next_batch()[0].payloads
        except StopIteration:
            one.close()
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize("lines", range(len(LINES) + 1))
@pytest.mark.parametrize("packed", [False, True])
def test_reading_goes_on_behind_the_lines_that_were_counted(tmp_path: Path, lines: int, packed: bool) -> None:
    path = tmp_path / ("a.ndjson.gz" if packed else "a.ndjson")
    content = b"\n".join(LINES)
    path.write_bytes(gzip.compress(content) if packed else content)
    expected = [event for line in LINES[lines:] for event in ([b'{"b":1}', b'{"b":2}'] if line[:1] == b"[" else [line])]
    assert rest_of(path, wanted(lines)) == expected
    state = place(str(path), wanted(lines))
    assert (state.lines, state.events, state.unterminated) == (lines, lines + bool(lines), lines == len(LINES))


def test_files_are_told_from_each_other_and_from_what_they_were_not(tmp_path: Path) -> None:
    for name, text in {"a": b"1\n2\n3\n", "b": b"1\n5\n", "c": b"1\n2\n4\n[6,7]\n", "new": b"9\n"}.items():
        (tmp_path / name).write_bytes(text)
    paths = [str(tmp_path / name) for name in ("a", "b", "c", "new")]
    known = {4: wanted(3, (0, 0, b"1"), (2, 0, b"3")), 0: wanted(1, (0, 0, b"9")), 1: wanted(4, (3, 1, b"7"))}
    assert match(paths, known) == {paths[0]: 4, paths[3]: 0, paths[2]: 1}
    with pytest.raises(TallyError, match=r"partition 2 of the ledger may be any of .*a, .*c: restore files.json"):
        match(paths, {2: wanted(2, (0, 0, b"1"), (1, 0, b"2"))})
    with pytest.raises(TallyError, match=r"partition 0 .* no file given begins with them"):
        match(paths, {0: wanted(3, (1, 0, b"1"))})
    with pytest.raises(TallyError, match=r"may be any of .*a: restore"):
        match(paths[:1], {0: wanted(2)})
    with pytest.raises(TallyError, match="a: line 2 is not what was counted, but 3 of its lines"):
        place(paths[0], wanted(3, (2, 0, b"4")))
    with pytest.raises(TallyError, match="a: has less than 4 lines"):
        place(paths[0], wanted(4))

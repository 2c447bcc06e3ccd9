"""Files as a log: what is read does not depend on batches, stops, resumption or compression."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from bytewax.dataflow import Dataflow
from bytewax.operators import input as flow_input
from bytewax.operators import map as flow_map
from bytewax.operators import output
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, run_main
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.envelope import is_json, split
from domain.ports import TallyError
from domain.values import RawBatch
from sources import files
from sources.files import FileSource, FileState

Row = tuple[int, int, bytes]

LINE = st.sampled_from(
    [b"", b"\r", b'{"a":1}', b'{"a":1}\r', b"[1,2]", b" [ {} , 3 ]\r", b"[]", b"[1,", b"x" * 50, b"\xff"]
)


def source(
    path: Path | str, *, rows: int = 3, stop: threading.Event | None = None, registry: Path | None = None
) -> FileSource:
    registry = registry or Path(str(path) + ".registry")
    return FileSource(str(path), registry, batch_rows_max=rows, stop=stop or threading.Event())


def read(
    path: Path, state: FileState | None = None, *, rows: int = 3, polls: int = 10**9
) -> tuple[list[Row], FileState]:
    """Read on from a state, check each batch's arithmetic, and return what came and the new state."""
    reader = source(path, rows=rows)
    part = reader.build_part("step", reader.list_parts()[0], state)
    got: list[Row] = []
    before = state or FileState()
    for batch in polled(part, polls):
        assert (batch.start_offset, batch.topic, batch.log_time_us) == (before.lines, "file", None)
        assert 1 <= batch.next_offset - batch.start_offset <= rows
        assert sorted(set(batch.offsets)) == list(range(batch.start_offset, batch.next_offset))
        before = part.snapshot()
        assert (batch.next_offset, batch.messages, batch.events) == (before.lines, before.lines, before.events)
        got += zip(batch.offsets, batch.indexes, batch.payloads, strict=True)
    after: FileState = pickle.loads(pickle.dumps(part.snapshot()))
    part.close()
    return got, after


def polled(part: files.FilePartition, polls: int) -> Iterator[RawBatch]:
    for _ in range(polls):
        try:
            yield from part.next_batch()
        except StopIteration:
            return


def expected(content: bytes) -> list[Row]:
    """The same by the plainest means."""
    *lines, last = content.split(b"\n")
    if is_json(last):
        lines.append(last)
    return [(number, index, event) for number, line in enumerate(lines) for index, event in enumerate(split(line))]


@pytest.fixture(params=["data.ndjson", "data.ndjson.gz"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("name", ["data.ndjson", "data.ndjson.gz"])
@settings(max_examples=150, deadline=None)
@given(
    lines=st.lists(LINE, max_size=12),
    last=LINE,
    cuts=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(0, 200)), max_size=8),
    block_bytes=st.sampled_from([1, 3, 7, 64, 1024]),
)
def test_batches_stops_and_growth_do_not_show(
    name: str, lines: list[bytes], last: bytes, cuts: list[tuple[int, int, int]], block_bytes: int
) -> None:
    """Reads in runs of a few polls, between which the file grows, and compares with one plain read."""
    content = b"".join(line + b"\n" for line in lines) + last
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK_BYTES", block_bytes)
        path = Path(folder) / name
        got: list[Row] = []
        state: FileState | None = None
        for rows, polls, length in [*sorted(cuts, key=lambda cut: cut[2]), (5, 10**9, len(content))]:
            grown = content[:length]
            if length < len(content) and is_json(grown.rsplit(b"\n")[-1]) and content[length : length + 1] != b"\n":
                continue  # the writer's fault, tested below
            write(path, grown)
            more, state = read(path, state, rows=rows, polls=polls)
            got += more
        assert got == expected(content)


def test_batches_are_split_into_events(path: Path) -> None:
    write(path, b'[{"a":1}, {"a":2}]\n{"a":3}\n')
    assert read(path)[0] == [(0, 0, b'{"a":1}'), (0, 1, b'{"a":2}'), (1, 0, b'{"a":3}')]
    assert read(path)[1].events == 3


def test_only_newline_ends_a_line(path: Path) -> None:
    write(path, b'{"a":1}\r\n"b\x0b\x0c\xc2\x85\xe2\x80\xa8c"\n\n')
    assert [payload for _, _, payload in read(path)[0]] == [b'{"a":1}\r', b'"b\x0b\x0c\xc2\x85\xe2\x80\xa8c"', b""]


def test_an_empty_file_ends_and_may_grow(path: Path) -> None:
    write(path, b"")
    got, state = read(path)
    assert (got, state) == ([], FileState(head_hash=state.head_hash))
    write(path, b"1\n")
    assert read(path, state)[0] == [(0, 0, b"1")]


def test_long_lines(path: Path) -> None:
    lines = [b'"' + letter * 10_000_000 + b'"' for letter in (b"a", b"b", b"c")]
    write(path, b"\n".join([*lines, b"4"]))
    assert read(path) == (
        [(0, 0, lines[0]), (1, 0, lines[1]), (2, 0, lines[2]), (3, 0, b"4")],
        read(path, read(path, polls=1)[1])[1],
    )


def test_an_endless_line_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LINE_BYTES_MAX", 3_000_000)
    write(path, b"1\n" + b"x" * 5_000_000)
    with pytest.raises(TallyError, match=r"after line 1 is longer than 3000000 bytes"):
        read(path)


def test_an_unterminated_line_waits_for_its_end(path: Path) -> None:
    write(path, b'{"a":1}\n{"a":')
    got, state = read(path)
    assert (len(got), state.offset_bytes, state.unterminated) == (1, 8, False)
    write(path, b'{"a":1}\n{"a":2}\n')
    assert read(path, state)[0] == [(1, 0, b'{"a":2}')]


@pytest.mark.parametrize("polls", [2, 3])
def test_an_unterminated_line_is_read_if_it_is_whole(path: Path, polls: int) -> None:
    write(path, b'{"a":1}\n{"a":2}')
    got, state = read(path, polls=polls)
    assert got == [(0, 0, b'{"a":1}'), (1, 0, b'{"a":2}')]
    assert state[:3] == (15, 2, 2)
    assert state.unterminated
    assert read(path, state) == ([], state)
    write(path, b'{"a":1}\n{"a":2}\n')
    got, ended = read(path, state)
    assert (got, ended.offset_bytes, ended.unterminated) == ([], 16, False)
    write(path, b'{"a":1}\n{"a":2}\n{"a":3}\n')
    assert read(path, state)[0] == read(path, ended)[0] == [(2, 0, b'{"a":3}')]


def test_extending_a_line_that_was_read_is_refused(path: Path) -> None:
    write(path, b"1\n2")
    _, state = read(path)
    write(path, b"1\n23\n")
    with pytest.raises(TallyError, match=r"data\.ndjson.*line 2 .*extended"):
        read(path, state)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"1\n", "less than the 6 bytes"),
        (b"1\n3\n4\n5\n", "its beginning is not what it was"),
        (b"", "less than the 6 bytes"),
    ],
)
def test_a_changed_file_is_refused(path: Path, content: bytes, complaint: str) -> None:
    write(path, b"1\n2\n4\n")
    _, state = read(path)
    write(path, content)
    with pytest.raises(TallyError, match=rf"data\.ndjson.*{complaint}.*3 of its lines.*Restore"):
        read(path, state)


@pytest.mark.parametrize(
    ("cut", "complaint"), [(slice(-1), "less than"), (slice(1, None), "beginning"), (slice(0, 70_000), "less than")]
)
def test_a_changed_long_file_is_refused(path: Path, cut: slice, complaint: str) -> None:
    content = b"".join(b"%09d\n" % number for number in range(20_000))
    write(path, content)
    _, state = read(path, rows=5000)
    assert state.head_bytes == files.HEAD_BYTES_MAX
    write(path, content[cut])
    with pytest.raises(TallyError, match=complaint):
        read(path, state)
    write(path, content[:100_000] + b"x" + content[100_000:])
    with pytest.raises(TallyError, match="line 20000 does not end where it did"):
        read(path, state)


def test_a_truncated_gz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.ndjson.gz"
    packed = gzip.compress(b"".join(b'{"number": %d}\n' % number for number in range(1000)))
    path.write_bytes(packed[:-20])
    with pytest.raises(TallyError, match=r"data\.ndjson\.gz: cannot be read on after byte 0 \(uncompressed\), line 0"):
        read(path)
    path.write_bytes(packed[:100] + bytes(100) + packed[200:])
    with pytest.raises(TallyError, match=r"data\.ndjson\.gz: cannot be read on"):
        read(path)
    path.write_bytes(b'{"not": "gz"}\n')
    with pytest.raises(TallyError, match=r"Not a gzipped file"):
        read(path)


def test_a_gz_of_several_members(tmp_path: Path) -> None:
    path = tmp_path / "data.ndjson.gz"
    path.write_bytes(gzip.compress(b"1\n2"))
    _, state = read(path)
    path.write_bytes(path.read_bytes() + gzip.compress(b"\n3\n"))
    assert read(path, state)[0] == [(2, 0, b"3")]


def test_stop_ends_at_the_next_poll(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1\n2\n3\n")
    stop = threading.Event()
    part = source(tmp_path / "a", rows=1, stop=stop).build_part("step", "0", None)
    part.next_batch()
    stop.set()
    with pytest.raises(StopIteration):
        part.next_batch()
    assert read(tmp_path / "a", part.snapshot())[0] == [(1, 0, b"2"), (2, 0, b"3")]


def test_numbers_go_by_byte_order_and_stay(tmp_path: Path) -> None:
    registry = tmp_path / "state" / "files.json"
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    for name in ["b", "é", "Z", "sub/c"]:
        (data / name).write_bytes(b"")
    first = source(data / "**", registry=registry).partitions
    assert first == {0: f"{data}/Z", 1: f"{data}/b", 2: f"{data}/sub/c", 3: f"{data}/é"}
    (data / "a").write_bytes(b"")
    again = source(data / "?", registry=registry)
    assert again.partitions == {0: f"{data}/Z", 1: f"{data}/b", 3: f"{data}/é", 4: f"{data}/a"}
    assert sorted(again.list_parts()) == ["0", "1", "3", "4"]
    assert list(registry.parent.iterdir()) == [registry]


def test_a_relative_path_and_one_with_brackets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a[1].ndjson").write_bytes(b"")
    assert source("a[1].ndjson").partitions == {0: str(tmp_path / "a[1].ndjson")}


def test_what_cannot_be_a_log_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "missing")
    with pytest.raises(TallyError, match=r"no file matches '.*/x\*'"):
        source(tmp_path / "x*")
    with pytest.raises(TallyError, match=r"folder is a directory. Name the files in it"):
        source(tmp_path / "folder*")
    with pytest.raises(TallyError, match=r"dangling cannot be opened: No such file"):
        source(tmp_path / "dangling")
    with pytest.raises(TallyError, match=r"/dev/null is not a regular file"):
        source("/dev/null", registry=tmp_path / "registry")
    assert not (tmp_path / "registry").exists()


def test_a_file_that_goes_away_before_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    reader = source(tmp_path / "a")
    (tmp_path / "a").unlink()
    with pytest.raises(TallyError, match="cannot be opened"):
        reader.build_part("step", "0", None)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"/a": "1"}', b'{"/a": -1}', b'{"/a": 1, "/b": 1}', b"\xff"])
def test_a_damaged_registry_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "registry").write_bytes(content)
    with pytest.raises(TallyError, match=r"registry, which has each file's partition number, cannot be read"):
        source(tmp_path / "a", registry=tmp_path / "registry")
    assert (tmp_path / "registry").read_bytes() == content


def test_a_bytewax_flow_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """Two files, stopped in mid-read, a third file added, one grown: every line once, in order."""
    init_db_dir(tmp_path, 1)
    data = tmp_path / "data"
    data.mkdir()
    content = {name: [json.dumps([name, number]) for number in range(50)] for name in "abc"}
    got: list[RawBatch] = []

    def run(stop_after: int, **lengths: int) -> None:
        for name, length in lengths.items():
            (data / name).write_text("".join(line + "\n" for line in content[name][:length]))
        stop = threading.Event()

        def see(batch: RawBatch) -> RawBatch:
            if len(got) >= stop_after:
                stop.set()
            return batch

        flow = Dataflow("files")
        stream = flow_input("in", flow, source(data / "*", rows=4, stop=stop, registry=tmp_path / "registry"))
        output("out", flow_map("see", stream, see), TestingSink(got))
        run_main(flow, epoch_interval=timedelta(0), recovery_config=RecoveryConfig(str(tmp_path)))

    run(3, a=50, b=30)
    assert len(got) < 10
    run(10**9, b=50, c=50)
    run(10**9)
    for number, name in enumerate("abc"):
        rows = [
            (offset, payload)
            for batch in got
            if batch.partition == number
            for offset, payload in zip(batch.offsets, batch.payloads, strict=True)
        ]
        assert [offset for offset, _ in rows] == [line for line in range(50) for _ in range(2)]
        assert [payload.decode() for _, payload in rows] == [
            part for number in range(50) for part in (f'"{name}"', str(number))
        ]


def test_how_much_is_read(path: Path) -> None:
    """By size on disk, over all files, also of what an earlier run had read."""
    write(path, b"".join(b"%09d\n" % number for number in range(300_000)))
    reader = source(path, rows=1000)
    assert reader.share_read() == 0
    part = reader.build_part("step", "0", None)
    part.next_batch()
    some = reader.share_read()
    assert 0 < some < 1
    while list(polled(part, 1)):
        assert some <= (some := reader.share_read()) <= 1
    assert some == 1
    again = source(path)
    again.build_part("step", "0", part.snapshot())
    assert again.share_read() == 1


def test_a_pattern_stays_below_the_folder_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link out of it is refused, not followed and not left out; a path that is named is followed."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside / "sub", outside):
        folder.mkdir(parents=True)
    (outside / "secret").write_bytes(b"1\n")
    (inside / "sub" / "a").write_bytes(b"1\n")
    (inside / "also-a").symlink_to("sub/a")
    assert set(source(inside / "**").partitions.values()) == {str(inside / "also-a"), str(inside / "sub" / "a")}
    for link, target, pattern in (
        ("link", outside / "secret", "in/*"),
        ("folder", outside, "in/*/secret"),
        ("relative", "../out/secret", "in/re*"),
    ):
        (inside / link).symlink_to(target)
        with pytest.raises(TallyError, match=rf"leads to {outside}/secret, out of {inside}, which is what"):
            source(tmp_path / pattern)
        assert len(source(inside / link / ("secret" if link == "folder" else "")).partitions) == 1
        (inside / link).unlink()
    for pattern in (f"{inside}/*/../../out/secret", "in/*/../../out/*", "i[n]/../../../../../../../../etc/passwd"):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(TallyError, match="out of"):
            source(pattern)
    assert len(source(f"../{tmp_path.name}/out/s[e]cret").partitions) == 1, "above is named"


def test_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
        for other in "abc":
            (tmp_path / name / f"to-{other}").symlink_to(tmp_path / other)
    (tmp_path / "a" / "x").write_bytes(b"")
    assert set(source(tmp_path / "**/x").partitions.values()) == {str(tmp_path / "a" / "x")}


@pytest.mark.parametrize("swap", ["fifo", "link", "device", "folder"])
def test_a_file_that_is_swapped_before_it_is_opened(tmp_path: Path, swap: str) -> None:
    """None of them is waited for, and none is read."""
    path = tmp_path / "data" / "a"
    path.parent.mkdir()
    path.write_bytes(b"1\n")
    (tmp_path / "elsewhere").write_bytes(b"1\n")
    reader = source(tmp_path / "data" / "*")
    path.unlink()
    match swap:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to("/dev/zero" if swap == "device" else tmp_path / "elsewhere")
    with pytest.raises(TallyError, match=r"not a regular file|leads to|cannot be opened"):
        reader.build_part("step", "0", None)
    with pytest.raises(TallyError, match=r"not a regular file|leads to|is a directory"):
        source(tmp_path / "data" / "*")
    if swap != "link":
        with pytest.raises(TallyError, match=r"not a regular file|is a directory"):
            source(path)

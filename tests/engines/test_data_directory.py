from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from domain.ports import TallyError
from engines.data_directory import DataDirectory, DirectoryInUse

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from engines.data_directory import DataDirectory
with DataDirectory(sys.argv[1]).acquire():
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_user() -> Iterator[None]:
    """Root may write everywhere; be nobody for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_layout_and_modes(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "a" / "dätä")
    with directory.acquire():
        directory.write("front", {"password": "é"})
        assert {path.name for path in directory.path.iterdir()} == {
            "lock",
            "redis",
            "clickhouse",
            "recovery",
            "front.json",
        }
        for folder in (directory.path, directory.redis, directory.clickhouse, directory.recovery):
            assert mode(folder) == 0o700
        assert mode(directory.path / "front.json") == mode(directory.path / "lock") == 0o600


def test_an_existing_root_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with DataDirectory(tmp_path).acquire():
        assert mode(tmp_path) == 0o755


def test_records_round_trip(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    assert directory.read("files") is None
    directory.remove("files")
    directory.write("files", {"ünï": [1, 2**70]})
    directory.write("files", {"ünï": [1, 2**71]})
    assert directory.read("files") == {"ünï": [1, 2**71]}
    assert [path.name for path in tmp_path.iterdir()] == ["files.json"]
    directory.remove("files")
    assert directory.read("files") is None


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b""])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "deployment.json").write_bytes(content)
    with pytest.raises(TallyError, match=r"deployment\.json is damaged"):
        DataDirectory(tmp_path).read("deployment")


def test_second_acquire_is_refused_and_names_the_holder(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    with directory.acquire():
        refused = pytest.raises(DirectoryInUse, match=rf"in use by process {os.getpid()}: .*--data-dir")
        with refused, DataDirectory(tmp_path).acquire():
            pass
    with directory.acquire():
        pass


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(DirectoryInUse, match=f"process {holder.pid}"), DataDirectory(tmp_path).acquire():
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with DataDirectory(tmp_path).acquire():
        pass


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(TallyError, match=r"file.*choose another"), DataDirectory(path).acquire():
            pass


def test_unwritable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    directory = DataDirectory(tmp_path / "data")
    with another_user(), pytest.raises(TallyError, match="may not write"), directory.acquire():
        pass


def test_a_full_disk_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = DataDirectory(tmp_path)
    directory.write("files", {"a": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(TallyError, match=r"files\.json.*the disk is full: free some space"):
            directory.write("files", {"a": 2})
    assert directory.read("files") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["files.json"]

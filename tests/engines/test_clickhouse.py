from __future__ import annotations

import builtins
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from domain.ports import TallyError
from engines.clickhouse import EmbeddedClickHouse, connect
from engines.data_directory import DataDirectory, DirectoryInUse
from engines.front import ClickHouseFront
from engines.reader import open_reader

ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: object) -> str:
    """In a process of its own: chDB opens one directory a process."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_clients_have_handles_of_their_own(engine: EmbeddedClickHouse) -> None:
    with closing(engine.client("tallyflow")) as one, closing(engine.client()) as other:
        one.command("SET max_threads = 1")
        assert one.command("SELECT currentDatabase()") == "tallyflow"
        assert other.command("SELECT currentDatabase()") == "default"
        assert other.command("SELECT getSetting('max_threads')") != 1
        results: list[Any] = []
        threads = [threading.Thread(target=lambda ch=ch: results.append(ch.command("SELECT 7"))) for ch in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [7, 7]


def test_errors_have_a_remedy(engine: EmbeddedClickHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TallyError, match="no database 'nope' yet"):
        engine.client("nope")
    with pytest.raises(TallyError, match="cannot open the embedded ClickHouse"):
        EmbeddedClickHouse(tmp_path / "another")
    with pytest.raises(TallyError, match=r"with '\?'"):
        EmbeddedClickHouse(tmp_path / "a?b")
    (tmp_path / "file").touch()
    with pytest.raises(TallyError, match="cannot open"):
        EmbeddedClickHouse(tmp_path / "file")
    original = builtins.__import__

    def without_chdb(name: str, *rest: Any) -> Any:
        if name == "chdb":
            raise ImportError("No module named 'chdb'")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_chdb)
    with pytest.raises(TallyError, match=r"needs the package chdb.*extra `embedded`.*TALLY_CLICKHOUSE_URL"):
        EmbeddedClickHouse(tmp_path / "x")


def test_close_and_reopen(tmp_path: Path) -> None:
    script = """
import sys
from domain.ports import TallyError
from engines.clickhouse import EmbeddedClickHouse
for name in ("a b'é", "other", "a b'é"):
    with EmbeddedClickHouse(sys.argv[1] + "/" + name) as engine:
        client = engine.client()
        client.command("CREATE TABLE IF NOT EXISTS t (x UInt8) ENGINE = MergeTree ORDER BY x")
        client.command("INSERT INTO t VALUES (1)")
        print(client.command("SELECT count() FROM t"))
        client.close()
    try:
        engine.client()
    except TallyError as error:
        print("closed" in str(error))
"""
    assert run(script, tmp_path).split() == ["1", "True", "1", "True", "2", "True"]


def test_connect(front: ClickHouseFront) -> None:
    url = f"http://default:{front.password}@127.0.0.1:{front._server.server_address[1]}"  # type: ignore[union-attr]
    with closing(connect(f"{url}/tallyflow")) as ch:
        assert ch.command("SELECT currentDatabase()") == "tallyflow"
    with closing(connect(f"{url}/nope", database="system")) as ch:
        assert ch.command("SELECT currentDatabase()") == "system"
    with pytest.raises(TallyError, match=r"127\.0\.0\.1:\d+ has no database 'nope' yet: `tally migrate`"):
        connect(f"{url}/nope")
    with pytest.raises(TallyError, match="refuses the user or the password") as caught:
        connect(url.replace(front.password, "s3cret%2F"))
    assert "s3cret" not in str(caught.value)


def test_connect_to_nobody() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    with pytest.raises(TallyError, match=rf"ClickHouse at 127\.0\.0\.1:{number} cannot be used") as caught:
        connect(f"http://user:s3cret@127.0.0.1:{number}/tallyflow")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "localhost:8123", "tcp://u:s3cret@h", "http://u:s3cret@/x", "http://u:s3cret@h:port/", "http://h/?a=1"]
)
def test_a_wrong_url_is_not_shown(url: str) -> None:
    with pytest.raises(TallyError, match="TALLY_CLICKHOUSE_URL must look like") as caught:
        connect(url)
    assert "s3cret" not in str(caught.value)


def test_reader_through_the_front(front: ClickHouseFront, held_directory: DataDirectory, table: str) -> None:
    with open_reader(held_directory, "tallyflow") as reader:
        assert reader.command("SELECT count() FROM t") == 0
        with pytest.raises(DatabaseError, match="readonly"):
            reader.command("DROP TABLE t")
    with pytest.raises(TallyError, match="no database 'nope' yet"), open_reader(held_directory, "nope"):
        pass


def test_reader_of_a_holder_that_does_not_answer(engine: EmbeddedClickHouse, held_directory: DataDirectory) -> None:
    for record in (None, {"host": "127.0.0.1", "port": 1, "user": "default", "password": "x"}, {}):
        if record is not None:
            held_directory.write("front", record)
        refused = pytest.raises(DirectoryInUse, match=r"in use by process .* does not answer")
        with refused, open_reader(held_directory, wait_seconds_max=0.1):
            pass
    held_directory.remove("front")


def test_reader_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(TallyError, match="there is no data in"), open_reader(DataDirectory(tmp_path / "none")):
        pass
    assert not (tmp_path / "none").exists()
    script = """
import os, sys, signal
from engines.data_directory import DataDirectory
from engines.clickhouse import EmbeddedClickHouse
from engines.front import ClickHouseFront
directory = DataDirectory(sys.argv[1])
with directory.acquire():
    engine = EmbeddedClickHouse(directory.clickhouse)
    engine.client().command("CREATE TABLE t ENGINE = MergeTree ORDER BY x AS SELECT 1 AS x")
    ClickHouseFront(engine, directory).start()
    if os.fork() == 0:                       # kill -9, and the front.json stays
        os.kill(os.getppid(), signal.SIGKILL)
        os._exit(0)
    signal.pause()
"""
    killed = subprocess.run([sys.executable, "-c", script, tmp_path], cwd=ROOT, timeout=60)
    assert killed.returncode == -9 and (tmp_path / "front.json").exists()
    read = """
import os, sys
from clickhouse_connect.driver.exceptions import DatabaseError
from engines.data_directory import DataDirectory, DirectoryInUse
from engines.reader import open_reader
directory = DataDirectory(sys.argv[1])
with open_reader(directory) as reader:
    print(reader.command("SELECT count() FROM t"), directory.read("front")["pid"] == os.getpid())
    try:
        reader.command("DROP TABLE t")
    except DatabaseError as error:
        print("READONLY" in str(error))
    try:
        with directory.acquire():
            pass
    except DirectoryInUse:
        print("held")
with directory.acquire():
    print("free", directory.read("front"))
"""
    assert run(read, tmp_path).split() == ["1", "True", "True", "held", "free", "None"]

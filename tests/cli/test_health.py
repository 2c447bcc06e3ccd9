"""`tally health`: what a container's health check runs."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from telemetry.health import Verdict
from telemetry.server import StatusServer
from tests.cli.command import Inside, ended, start

STUCK = Verdict(("partition 3 was not polled for 61 s", "no snapshot for 71 s"))


@pytest.mark.parametrize(
    ("host", "alive", "ready", "live", "count"),
    [
        ("127.0.0.1", Verdict(), Verdict(), (0, "ok\n"), (0, "ok\n")),
        ("0.0.0.0", Verdict(), Verdict(("starting for 3 s",)), (0, "ok\n"), (1, "starting for 3 s\n")),
        ("127.0.0.1", STUCK, STUCK, *[(1, "partition 3 was not polled for 61 s; no snapshot for 71 s\n")] * 2),
    ],
)
def test_it_says_what_the_flow_says(
    host: str, alive: Verdict, ready: Verdict, live: tuple[int, str], count: tuple[int, str], inside: Inside
) -> None:
    with StatusServer(host, 0, metrics=lambda: b"", alive=lambda: alive, ready=lambda: ready) as server:
        where = {"TALLY_METRICS_HOST": host, "TALLY_METRICS_PORT": str(server.port)}
        assert inside("health", **where) == (*live, "")
        assert inside("health", "--ready", **where) == (*count, "")


def test_nobody_and_somebody_else(inside: Inside) -> None:
    said = inside("health")
    assert said.code == 1 and "set TALLY_METRICS_PORT" in said.err
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        said = inside("health", TALLY_METRICS_PORT=str(free.getsockname()[1]))
    assert said.code == 1 and "the flow does not answer on 127.0.0.1:" in said.err and "Connection refused" in said.err


def test_the_script_imports_little_and_does_the_same(tmp_path: Path) -> None:
    script = """
import sys
from cli.entry import app
try:
    app()
finally:
    heavy = {"bytewax", "pyarrow", "kafka", "redis", "clickhouse_connect"} & set(sys.modules)
    assert not heavy, heavy
"""
    with StatusServer("127.0.0.1", 0, metrics=lambda: b"", alive=Verdict, ready=lambda: STUCK) as server:
        port = {"TALLY_METRICS_PORT": str(server.port)}
        assert ended(start("health", cwd=tmp_path, script=script, **port)) == (0, "ok\n", "")
        stuck = ended(start("health", "--ready", cwd=tmp_path, script=script, **port))
        assert stuck == (1, "; ".join(STUCK.reasons) + "\n", "")
    missing = ended(start("health", cwd=tmp_path, script=script))
    assert missing.code == 1 and missing.err.startswith("tally: no flow can be asked")
    wrong = ended(start("health", "--redy", cwd=tmp_path, script=script))
    assert wrong.code == 2 and "No such option: --redy" in wrong.err
    other = ended(start("--version", cwd=tmp_path, script="from cli.entry import app; app()"))
    assert other.code == 0 and other.out.startswith("tally ")

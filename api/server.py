"""The ingest as a process: listens, keeps keys and catalog fresh, and ends in good order.

SIGTERM and SIGINT stop listening, finish what is on its way within `stop_seconds_max`, and return; a second one ends
at once. SIGHUP reads the keys and the catalog again, which also happens every few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from uvicorn import Config, Server

from api.catalogs import Catalogs
from api.ingest import Ingest
from api.keys import KeysFile
from api.protocol import bounded_protocol
from api.publisher import Publisher
from domain.ports import TallyError

CHECK_SECONDS: Final = 2.0
"""How often the keys are looked at, and a catalog that is missing."""
_HEADER_BYTES_MAX: Final = 64 * 1024
_KEEP_ALIVE_SECONDS: Final = 75
"""Longer than the 60 s for which load balancers keep an idle connection: who may reuse it should be who closes it."""

log = logging.getLogger("tally.ingest")


@dataclass(frozen=True, slots=True)
class Serving:
    """How to serve."""

    host: str
    port: int
    """0: a free one."""
    read_seconds_max: float
    connections_max: int
    catalog_seconds: float
    """How often the catalog is read again."""
    stop_seconds_max: float


class _Server(Server):
    """uvicorn's server, with our own signals: it returns from a stop instead of dying of the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    serving: Serving,
    ingest: Ingest,
    publisher: Publisher,
    catalogs: Catalogs,
    keys: KeysFile,
    announce: Callable[[str, int], None] = lambda host, port: None,
) -> None:
    """Serve until told to stop; blocks.

    Args:
        announce: Called with host and port once connections are accepted.

    Raises:
        TallyError: the address cannot be listened on.
    """
    with _listener(serving.host, serving.port) as listener:
        publisher.start()
        try:
            asyncio.run(_serve(serving, ingest, catalogs, keys, listener, announce))
        finally:
            publisher.close()


def _listener(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise TallyError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}. Is it taken, or the address not this "
            "machine's? Choose others with --host and --port."
        ) from error
    return listener


async def _serve(
    serving: Serving,
    ingest: Ingest,
    catalogs: Catalogs,
    keys: KeysFile,
    listener: socket.socket,
    announce: Callable[[str, int], None],
) -> None:
    await asyncio.to_thread(catalogs.refresh)
    if catalogs.fault:
        log.warning("not ready: %s", catalogs.fault)
    server = _Server(_config(serving, ingest))
    hurry = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True
        ingest.stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, hurry.set)
    keeper = asyncio.create_task(_keep_fresh(keys, catalogs, hurry, serving.catalog_seconds))
    try:
        host, port = listener.getsockname()[:2]
        announce(host, port)
        await server.serve([listener])
    finally:
        keeper.cancel()


async def _keep_fresh(keys: KeysFile, catalogs: Catalogs, hurry: asyncio.Event, catalog_seconds: float) -> None:
    """Read keys and catalog again when they may have changed, and when `hurry` is set; says what is wrong, once."""
    said = {"keys": "", "catalog": catalogs.fault}
    loop = asyncio.get_running_loop()
    read_at = loop.time()
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(hurry.wait(), CHECK_SECONDS)
        hurried, now = hurry.is_set(), loop.time()
        hurry.clear()
        faults = {"keys": await asyncio.to_thread(keys.refresh, force=hurried)}
        if hurried or catalogs.decoder is None or now - read_at >= catalog_seconds:
            read_at = now
            await asyncio.to_thread(catalogs.refresh)
            faults["catalog"] = catalogs.fault
        for name, fault in faults.items():
            if fault != said[name]:
                log.log(logging.WARNING if fault else logging.INFO, fault or f"the {name} can be read again")
            said[name] = fault


def _config(serving: Serving, ingest: Ingest) -> Config:
    return Config(
        ingest.app(),
        http=bounded_protocol(serving.read_seconds_max, serving.connections_max),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(serving.stop_seconds_max),
        h11_max_incomplete_event_size=_HEADER_BYTES_MAX,
    )

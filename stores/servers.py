"""Which Redis server holds a key: the one of the address, or the master of the key's slot in a Redis Cluster.

Guarantees: once `meet` has returned, a connection is made only to the server processes that it met, each
at its place and unbroken in its history: the same run id and replication id, and a master. In a cluster, a
key whose slot was given to another node is noticed whenever a connection breaks or a call is redirected.
Failure: `ClaimsLost` for another server than the one met; `RedisError` for what may pass. Nothing is retried here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import redis
from redis.crc import key_slot
from redis.exceptions import ClusterDownError, ReadOnlyError
from redis.maint_notifications import MaintNotificationsConfig

from domain.ports import ClaimsLost, TallyError

Address = tuple[str, int] | None
"""Host and port of a cluster's node; None: the server that the URL names."""
Slots = list[tuple[int, int, Address]]
"""First and last slot, and their master."""


class Server(NamedTuple):
    """A server as it was met."""

    address: Address
    info: Mapping[str, str]

    @property
    def identity(self) -> str:
        """Changes when the process is another, and when its data may come from another."""
        return f"{self.info['run_id']} {self.info['master_replid']}"


class Servers:
    """Servers behind one URL; for any number of threads. `options` is what redis-py takes beside the address.

    `known` are nodes of the cluster, to be asked if the one of the URL is gone; kept up to date here, may be shared.
    """

    def __init__(
        self, url: str, timeout_seconds: float, options: Mapping[str, Any], known: list[Address] | None = None
    ) -> None:
        parts = urlsplit(url)
        self.address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        """The URL without user and password (nor query, which may hold them)."""
        pool = redis.ConnectionPool.from_url(
            url,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            protocol=2,
            driver_info=None,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
            **options,
        )
        self._options = dict(pool.connection_kwargs)
        self._class: Callable[..., Any] = pool.connection_class
        self._homes: dict[str, Address] = {}
        self._met: dict[Address, Server] = {}
        self._known: list[Address] = [] if known is None else known

    def meet(self, keys: Sequence[str]) -> list[Server]:
        """Look at every master that answers now; from now on only these will do, and keys may not move.

        Raises:
            RedisError: one does not answer or is no master, or no node serves a key.
        """
        self._met, self._homes = {}, {}
        slots = self._look()
        homes = {key: _home(slots, key) for key in keys}
        masters = list(dict.fromkeys(address for _, _, address in slots))
        met = [Server(address, self._info(address)) for address in masters]
        for server in met:
            _require_master(self.name(server.address), server.info)
        self._met, self._homes = {server.address: server for server in met}, homes
        return met

    @property
    def masters(self) -> list[Address]:
        """Every master that was met."""
        return list(self._met)

    def identity(self, key: str) -> str:
        """Of the met server that holds a key."""
        return self._met[self.home(key)].identity

    def home(self, key: str) -> Address:
        """The server that holds a key.

        Raises:
            RedisError: the cluster could not be asked, or no node serves the key's slot.
        """
        if key not in self._homes:
            self._homes[key] = _home(self._look(), key)
        return self._homes[key]

    def look_again(self) -> None:
        """After a failure: see whether keys have moved. Those of met servers must not have.

        Raises:
            ClaimsLost: a key is at home on another node than the one met.
            RedisError: no node answers.
        """
        if not self._met:
            self._homes = {}
        elif None not in self._met:
            slots = self._look()
            for key, before in self._homes.items():
                now = _home(slots, key)
                if before != now:
                    raise ClaimsLost(
                        f"Redis Cluster at {self.address}: slot {_slot(key)} moved from {self.name(before)} to "
                        f"{self.name(now)} (a failover or a migration), and claims may be lost: "
                        "restart, so that they are rebuilt from the ledger"
                    )

    def connect(self, address: Address) -> Any:
        """A connection to a server, which must be the one met, if servers were met.

        Raises:
            ClaimsLost: it is another one.
            RedisError: there is none now, or it is no master now.
        """
        connection = self._open(address)
        met = self._met.get(address)
        if met is None:
            assert not self._met, "homes are those of the servers met"
            return connection
        try:
            info = _ask_info(connection, "server") | _ask_info(connection, "replication")
            if Server(address, info).identity != met.identity:
                raise ClaimsLost(
                    f"Redis at {self.name(address)} is another server process than at the start, or got its data "
                    "from another (restarted or failed over), and may have lost claims: restart, so that they are "
                    "rebuilt from the ledger"
                )
            _require_master(self.name(address), info)
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def name(self, address: Address) -> str:
        """For messages."""
        return self.address if address is None else "{}:{}".format(*address)

    def _open(self, address: Address) -> Any:
        place = {} if address is None else {"host": address[0], "port": address[1]}
        kind = self._class
        if address is not None and kind is redis.UnixDomainSocketConnection:
            kind = redis.Connection
        options = {name: value for name, value in self._options.items() if address is None or name != "path"}
        connection = kind(**(options | place))
        try:
            connection.connect()
        except redis.ResponseError as error:
            connection.disconnect()
            if "SELECT is not allowed" in str(error) or "DB index is out of range" in str(error):
                raise TallyError(
                    f"Redis at {self.address} has no such database ({error}): take the number off TALLY_REDIS_URL; "
                    "a cluster has number 0 only"
                ) from error
            raise
        return connection

    def _info(self, address: Address) -> dict[str, str]:
        connection = self._open(address)
        try:
            return _ask_info(connection)
        finally:
            connection.disconnect()

    def _look(self) -> Slots:
        """Who serves which slots, by the URL's server or, if that does not answer, any node known."""
        for seed in (None, *self._known):
            try:
                slots = self._ask_slots(seed)
            except redis.RedisError as error:
                failure = error
            else:
                self._known[:] = list(dict.fromkeys(address for _, _, address in slots if address is not None))
                return slots
        raise failure

    def _ask_slots(self, seed: Address) -> Slots:
        connection = self._open(seed)
        try:
            if _ask_info(connection, "cluster").get("cluster_enabled") != "1":
                return [(0, redis.crc.REDIS_CLUSTER_HASH_SLOTS - 1, None)]
            connection.send_command("CLUSTER", "SLOTS")
            here = seed[0] if seed else str(getattr(connection, "host", "127.0.0.1"))
            ranges = [
                (int(first), int(last), _node(master, here)) for first, last, master, *_ in connection.read_response()
            ]
        finally:
            connection.disconnect()
        if not ranges:
            raise ClusterDownError("CLUSTERDOWN no node serves any slot", status_code="CLUSTERDOWN")
        return ranges


def parse_info(info: bytes) -> dict[str, str]:
    """The fields of a reply to INFO."""
    lines = (line.partition(":") for line in info.decode().splitlines())
    return {name: value for name, colon, value in lines if colon}


def _ask_info(connection: Any, *section: str) -> dict[str, str]:
    connection.send_command("INFO", *section)
    return parse_info(connection.read_response())


def _require_master(name: str, info: Mapping[str, str]) -> None:
    if info.get("role") != "master":
        raise ReadOnlyError(f"READONLY {name} is a replica now", status_code="READONLY")


def _node(node: list[Any], here: str) -> Address:
    """Host and port of a node; one that does not know its own host is where it was asked."""
    host = "" if node[0] is None else node[0].decode()
    return (here if host in ("", "?") else host), int(node[1])


def _slot(key: str) -> int:
    return int(key_slot(key.encode()))


def _home(slots: Slots, key: str) -> Address:
    slot = _slot(key)
    for first, last, address in slots:
        if first <= slot <= last:
            return address
    raise ClusterDownError(f"CLUSTERDOWN no node serves slot {slot}", status_code="CLUSTERDOWN")

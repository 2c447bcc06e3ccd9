"""One thread's connection to Redis, with several rounds of calls under way at once.

Guarantees: a round's replies are those to its own calls, and rounds are answered in the order in which
they were sent. Where a connection breaks or a call is refused in passing, everything unanswered on it is
sent again, in order: so every call must bear repetition, also after later ones of its pipe were served.
Failure: `RedisError`, after which the round still stands and `collect` may be called again; `TallyError`
of a connection that is not to be trusted. Retries and their bound are the caller's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from redis.exceptions import RedisError

Argument = str | int | bytes
Command = Sequence[Argument]


class Connection(Protocol):
    """What is used of redis-py's connections."""

    def send_packed_command(self, command: list[bytes], check_health: bool = True) -> None: ...

    def read_response(self) -> Any: ...

    def pack_command(self, *args: Argument) -> list[bytes]: ...

    def disconnect(self) -> None: ...


class Round:
    """Calls sent together; `replies` are complete once `waiting` is 0."""

    __slots__ = ("replies", "waiting")

    def __init__(self, calls: int) -> None:
        self.replies: list[Any] = [None] * calls
        self.waiting = calls


class Lane:
    """The calls on their way to one server, and the connection to it, if there is one."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._connection: Connection | None = None
        self._unanswered: deque[tuple[Round, int, Command]] = deque()

    def add(self, calls: Sequence[tuple[Round, int, Command]]) -> None:
        """Send calls, if what was sent before is on its way as well; else `collect` will do it.

        A connection that breaks shows in `collect`; here only what `connect` refuses for good is raised.
        """
        idle = not self._unanswered
        self._unanswered.extend(calls)
        try:
            if self._connection is not None:
                self._transmit(self._connection, calls)
            elif idle:
                self._resend()
        except RedisError:
            self.disconnect()

    def collect(self, wanted: Round) -> None:
        """Read replies until a round has all that it waits for here."""
        unanswered = self._unanswered
        while unanswered and unanswered[0][0] is wanted:
            connection = self._connection or self._resend()
            try:
                reply = connection.read_response()
            except BaseException:
                self.disconnect()
                raise
            _, index, _ = unanswered.popleft()
            wanted.replies[index] = reply
            wanted.waiting -= 1

    def disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def _resend(self) -> Connection:
        """A new connection, on which everything unanswered was sent."""
        connection = self._connect()
        self._connection = connection
        try:
            self._transmit(connection, self._unanswered)
        except BaseException:
            self.disconnect()
            raise
        return connection

    @staticmethod
    def _transmit(connection: Connection, calls: Sequence[tuple[Round, int, Command]]) -> None:
        packed = [piece for _, _, command in calls for piece in connection.pack_command(*command)]
        connection.send_packed_command(packed, check_health=False)


class Pipe:
    """Lanes by server; not for several threads at once, except `disconnect`."""

    def __init__(self, connect: Callable[[Any], Connection]) -> None:
        self._connect = connect
        self._lanes: dict[Any, Lane] = {}
        self.rounds: deque[Round] = deque()
        """Those not yet received, the oldest first."""

    def send(self, calls: Sequence[tuple[Any, Command]]) -> Round:
        """Write calls, each to the server named with it, and return without waiting for replies."""
        sent = Round(len(calls))
        by_server: dict[Any, list[tuple[Round, int, Command]]] = {}
        for index, (server, command) in enumerate(calls):
            by_server.setdefault(server, []).append((sent, index, command))
        self.rounds.append(sent)
        for server, part in by_server.items():
            if server not in self._lanes:
                self._lanes[server] = Lane(lambda server=server: self._connect(server))  # type: ignore[misc]
            self._lanes[server].add(part)
        return sent

    def collect(self) -> Round:
        """Wait for the oldest round. On `RedisError` it stays the oldest, and another `collect` goes on."""
        oldest = self.rounds[0]
        if oldest.waiting:
            for lane in self._lanes.values():
                lane.collect(oldest)
        self.rounds.popleft()
        return oldest

    def disconnect(self) -> None:
        for lane in list(self._lanes.values()):
            lane.disconnect()

    def abandon(self) -> None:
        """Forget what is under way, and its connections."""
        self.disconnect()
        self._lanes.clear()
        self.rounds.clear()

"""One holder of a place in a deployment at a time: a lease in Redis, renewed by a thread.

Guarantees: `acquire` succeeds for one process of a number only, while that one renews; the second is told
who holds it. A lease that is merely left over (its process was killed) is waited for until it expires, or
taken at once where it is certain that its process is dead. A holder that could not renew in time, because it was
paused or cut off, learns it: `held` is False from the moment at which another could have taken the lease.
Failure: losing a lease calls `lost` once, from the lease's thread. What a paused process may still do until it
learns of it is made harmless by the claims' fencing token, not by the lease.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from domain.ports import ClaimsUnavailable, Fenced, TallyError
from stores.pipe import Argument
from stores.redis_link import RedisLink
from stores.servers import Address

POLL_SECONDS = 0.1
RENEWALS = 3
"""How often a lease is renewed within its time."""
MARGIN_SECONDS = 1.0
"""How long a left-over lease may outlive the time it has left."""


class Holder(NamedTuple):
    """Who holds a lease. No two are equal: the nonce is drawn for each."""

    host: str
    pid: int
    since: str
    machine: str
    """Boot and process namespace in which the pid has its meaning; empty where that is not known."""
    started: str
    """When the process started, in kernel ticks."""
    nonce: str

    def text(self) -> str:
        return json.dumps(self)

    def is_dead(self) -> bool:
        """Whether it is certain that the process has ended; of another machine's process nothing is."""
        return bool(self.machine) and self.machine == _machine() and self.started != _started(self.pid)


class Lease:
    """The place of one process of a deployment; for one thread, besides its own.

    Args:
        url: of the Redis that has the claims.
        process: this process's number, from 0.
        seconds: for how long the lease holds without being renewed.
        wait_seconds: for how long an unreachable Redis is tried again, before the lease is held.
        namespace: begins every Redis key.
        lost: called once when the lease, or the start that this process belongs to, is over.
        options: what redis-py takes beside the address: user, password, TLS files.
    """

    def __init__(
        self,
        url: str,
        *,
        process: int,
        seconds: float,
        wait_seconds: float,
        namespace: str = "tally",
        lost: Callable[[TallyError], None] = lambda error: None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        script = files("stores").joinpath("start.lua").read_bytes()
        nodes: list[Address] = []
        self._link = RedisLink(url, script=script, wait_seconds=wait_seconds, options=options, known=nodes)
        self._renewals = RedisLink(url, script=script, wait_seconds=seconds / RENEWALS, options=options, known=nodes)
        self._key = f"{{{namespace}:start}}"
        self.process = process
        self._seconds = seconds
        self._lost = lost
        self.holder = Holder(
            socket.gethostname(),
            os.getpid(),
            datetime.now(UTC).isoformat(timespec="seconds"),
            _machine(),
            _started(os.getpid()),
            secrets.token_hex(8),
        )
        self._me = self.holder.text()
        self._until = -1.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.verify: Callable[[Mapping[str, str]], None] = lambda start: None
        """Called with the start's hash at each renewal; what it raises ends the lease."""

    def acquire(self) -> None:
        """Take the lease and begin to renew it.

        Raises:
            TallyError: it is held, and by whom.
            ClaimsUnavailable: no answer from Redis.
        """
        assert self._thread is None, "acquire() once"
        seen: tuple[str, int] | None = None
        dead, give_up = "", 0.0
        while True:
            asked = time.monotonic()
            reply = self._link.evaluate([self._call("acquire", self._milliseconds, dead)])[0]
            if reply[0] == 1:
                break
            found, left_ms = reply[1].decode(), int(reply[2])
            if seen is None:
                give_up = asked + max(left_ms, 0) / 1000 + MARGIN_SECONDS
            elif found != seen[0] or left_ms > seen[1] or asked > give_up:
                raise self._held_by(found)
            seen = found, left_ms
            dead = found if _holder(found).is_dead() else ""
            if not dead:
                time.sleep(POLL_SECONDS)
        self._until = asked + self._seconds
        self._thread = threading.Thread(target=self._renew_until_ended, name="lease", daemon=True)
        self._thread.start()

    @property
    def held(self) -> bool:
        """Whether nobody else can have taken the lease by now."""
        return not self._ended.is_set() and time.monotonic() < self._until

    def call(self, mode: str, *arguments: Argument) -> list[Any]:
        """One step of `start.lua` as the holder; its answer behind the 1.

        Raises:
            Fenced: the lease is another's by now.
            ClaimsUnavailable: no answer from Redis.
        """
        return self._done(self._link.evaluate([self._call(mode, *arguments)])[0])

    def close(self) -> None:
        """Stop renewing and let the next one in; raises nothing, may be called again."""
        self._ended.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if time.monotonic() < self._until:
            self._until = -1.0
            with suppress(TallyError):  # else it expires by itself
                self._renewals.evaluate([self._call("release")])
        self._link.close()
        self._renewals.close()

    def _done(self, reply: list[Any]) -> list[Any]:
        if reply[0] != 1:
            raise self._taken_by(reply[1].decode())
        return reply[1:]

    @property
    def _milliseconds(self) -> int:
        return max(1, int(self._seconds * 1000))

    def _call(self, mode: str, *arguments: Argument) -> tuple[str, list[Argument]]:
        return self._key, [mode, self.process, self._me, *arguments]

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(self._seconds / RENEWALS):
            try:
                self._renew()
            except ClaimsUnavailable as error:
                if time.monotonic() < self._until:
                    continue
                self._end(error)
            except TallyError as error:
                self._end(error)

    def _renew(self) -> None:
        asked = time.monotonic()
        (fields,) = self._done(self._renewals.evaluate([self._call("renew", self._milliseconds)])[0])
        texts = [field.decode() for field in fields]
        self.verify(dict(zip(texts[::2], texts[1::2], strict=True)))
        self._until = asked + self._seconds

    def _end(self, error: TallyError) -> None:
        self._until = -1.0
        self._ended.set()
        self._lost(error)

    def _held_by(self, found: str) -> TallyError:
        return TallyError(
            f"process {self.process} of this deployment runs already ({_describe(found)}): stop it first, or use "
            "another Redis for another deployment"
        )

    def _taken_by(self, found: str) -> Fenced:
        now = f"it is now held by {_describe(found)}" if found else "nobody holds it now"
        return Fenced(
            f"the lease of process {self.process} is lost (not renewed for {self._seconds:g} s because of a pause or "
            f"of Redis out of reach, or Redis was emptied); {now}: this instance stops"
        )


def _holder(text: str) -> Holder:
    try:
        return Holder(*json.loads(text))
    except (ValueError, TypeError):
        return Holder("an unknown host", 0, "an unknown time", "", "", "")


def _describe(text: str) -> str:
    holder = _holder(text)
    return f"process id {holder.pid} on {holder.host}, since {holder.since}"


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in kernel ticks; empty if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]

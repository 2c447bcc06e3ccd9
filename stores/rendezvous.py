"""The processes of a deployment start together: one prepares, all learn from it what holds for this start.

Process 0 leads. It waits until every process waits for the start, prepares (takes the claims over, brings
them up to the ledger), and publishes a record that names each member; the others go on once a record names
them. So none of them reads before the claims are complete, and each knows the start's fencing token.

Guarantees: a record is seen by the processes it names only; a process that was started again, or that belongs
to an earlier start, is in none. Once started, each process notices at its next renewal of the lease that a
member was replaced or that a new start was called for, and ends: a start lives and dies as a whole. It is
also asked to end there, once one of them was told to: none could close an epoch without it.
Failure: whoever does not come within the bound is named in a `TallyError`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from domain.ports import Fenced, TallyError
from stores.lease import POLL_SECONDS, Lease

Content = dict[str, Any]
"""What the leader tells the others; must be JSON."""


class Rendezvous:
    """One process's part in one start; the lease is acquired.

    Args:
        lease: names the process.
        processes: how many start together.
        wait_seconds: how long the others are waited for; not how long the leader may take to prepare.
        stopping: called, from the lease's thread, with the number of a process that was told to stop.
    """

    def __init__(
        self,
        lease: Lease,
        *,
        processes: int,
        wait_seconds: float,
        stopping: Callable[[int], None] = lambda process: None,
    ) -> None:
        assert 0 <= lease.process < processes
        self._lease = lease
        self._processes = processes
        self._wait_seconds = wait_seconds
        self._stopping = stopping

    def meet(self, prepare: Callable[[], Content]) -> Content:
        """Start together; process 0 prepares while the others wait.

        Returns:
            What `prepare` returned in process 0.

        Raises:
            TallyError: a process did not come, or was started again meanwhile; or what `prepare` raised.
            Fenced: the lease was lost.
        """
        record = self._lead(prepare) if self._lease.process == 0 else self._join()

        def look(start: Mapping[str, str]) -> None:
            _verify(record, start)
            if "stop" in start:
                self._stopping(int(start["stop"]))

        self._lease.verify = look
        content: Content = json.loads(record)["content"]
        return content

    def stop(self) -> None:
        """Ask every process of the start to end; each sees it when it renews its lease.

        Raises:
            Fenced, ClaimsUnavailable: it cannot be asked for.
        """
        self._lease.call("stop")

    def _lead(self, prepare: Callable[[], Content]) -> str:
        self._lease.call("call")
        self._lease.call("join")
        members = self._await_members()
        record = json.dumps({"nonce": self._lease.holder.nonce, "members": members, "content": prepare()})
        (absent,) = self._lease.call("publish", self._processes, record, *members)
        if absent >= 0:
            raise TallyError(f"process {absent} ended or was started again during the start: start all of them again")
        return record

    def _await_members(self) -> list[str]:
        give_up = time.monotonic() + self._wait_seconds
        while True:
            members = [member.decode() for member in self._lease.call("waiting", self._processes)[0]]
            missing = [str(process) for process, member in enumerate(members) if not member]
            if not missing:
                return members
            if time.monotonic() > give_up:
                raise TallyError(
                    f"of {self._processes} processes, number {', '.join(missing)} did not come within "
                    f"{self._wait_seconds:g} s: start every process, with the same addresses and the same Redis"
                )
            time.sleep(POLL_SECONDS)

    def _join(self) -> str:
        """Wait for a record that names this process; as long as the leader takes, once it is there."""
        give_up = time.monotonic() + self._wait_seconds
        while True:
            leader, record = (text.decode() for text in self._lease.call("join"))
            members = json.loads(record)["members"] if record else []
            if self._lease.holder.text() in members:
                return str(record)
            now = time.monotonic()
            if leader and not record:
                give_up = now + self._wait_seconds
            elif now > give_up:
                raise self._not_led(leader, len(members))
            time.sleep(POLL_SECONDS)

    def _not_led(self, leader: str, members: int) -> TallyError:
        me = f"process {self._lease.process} of {self._processes}"
        if leader and members:
            return TallyError(
                f"{me} is not part of the start that runs with {members} processes, and no new one was called for "
                f"within {self._wait_seconds:g} s: start all processes with the same addresses"
            )
        return TallyError(
            f"{me} waited {self._wait_seconds:g} s for process 0, which leads the start: start it, with the same "
            "addresses and the same Redis"
        )


def _verify(record: str, start: Mapping[str, str]) -> None:
    """Whether the start still stands.

    Raises:
        Fenced: it does not.
    """
    if start.get("record") != record:
        raise Fenced("another start of this deployment was called for: this instance stops")
    for process, member in enumerate(json.loads(record)["members"]):
        now = start.get(f"m{process}")
        if now is None and "stop" not in start:
            raise Fenced(f"process {process} has ended: no process can go on without it, so this one stops")
        if now not in (None, member):
            raise Fenced(f"process {process} was started again: all processes have to, so this one stops")

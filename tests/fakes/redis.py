"""A Redis server in memory: what the flow keeps there, and how a server loses it.

Every call that writes is one acknowledged step. A failover promotes a replica that lags: the last steps are gone, and
another server process answers. `Link` is how fakes reach it: each call is bracketed by effects, and tried again a
few times where it fails in passing, as the real links do.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar

import redis

from domain.ports import TallyError
from tests.simulation.effects import Effects

T = TypeVar("T")

STEPS_KEPT_MAX = 1000
"""A replica lags by no more than so many steps."""
ATTEMPTS_MAX = 5
PAUSE_SECONDS = 0.5

_Change = tuple[Hashable, Hashable, Any]
"""A hash, a field of it, and what was there before; None for nothing."""


@dataclass
class RedisServer:
    """Hashes by key. `lock` is held by whoever reads or writes."""

    hashes: dict[Hashable, dict[Any, Any]] = field(default_factory=dict)
    published: list[tuple[str, bytes]] = field(default_factory=list)
    """(channel, message): what a subscriber was told cannot be lost."""
    run_id: int = 1
    lock: Any = field(default_factory=Lock)
    _steps: deque[list[_Change]] = field(default_factory=lambda: deque(maxlen=STEPS_KEPT_MAX))

    def fields(self, key: Hashable) -> dict[Any, Any]:
        """A hash, to be read only; empty where there is none."""
        return self.hashes.get(key, {})

    def put(self, key: Hashable, name: Hashable, value: Any) -> None:
        """Write a field of a hash; None removes it."""
        held = self.hashes.setdefault(key, {})
        if not self._steps:
            self._steps.append([])
        self._steps[-1].append((key, name, held.get(name)))
        _set(held, name, value)

    def drop(self, key: Hashable) -> None:
        for name in list(self.fields(key)):
            self.put(key, name, None)

    def step(self, act: Callable[[], T]) -> T:
        """One call: what it writes is acknowledged together."""
        with self.lock:
            self._steps.append([])
            return act()

    def flush(self) -> None:
        """Lose everything, as FLUSHALL does; the server process goes on."""
        with self.lock:
            self.hashes.clear()
            self._steps.clear()

    def fail_over(self, lost: int) -> None:
        """Another server process answers; the last acknowledged steps had not reached it."""
        with self.lock:
            for _ in range(min(lost, len(self._steps))):
                for key, name, before in reversed(self._steps.pop()):
                    _set(self.hashes.setdefault(key, {}), name, before)
            self.run_id += 1


def _set(held: dict[Any, Any], name: Hashable, value: Any) -> None:
    if value is None:
        held.pop(name, None)
    else:
        held[name] = value


class Link:
    """Calls of one process to a server.

    Args:
        effects: Brackets every call; None where nothing is to go wrong.
        unavailable: Makes what is raised when patience ends.
    """

    def __init__(self, server: RedisServer, effects: Effects | None, unavailable: Callable[[str], TallyError]) -> None:
        self.server = server
        self._effects = effects
        self._unavailable = unavailable

    def call(self, name: str, act: Callable[[], T]) -> T:
        """Do something on the server in one step; tried again, so `act` must bear repetition."""
        if self._effects is None:
            return self.server.step(act)
        for _ in range(ATTEMPTS_MAX):
            try:
                self._effects.before(name, redis.ConnectionError)
                done = self.server.step(act)
                self._effects.after(name, redis.ConnectionError)
                return done
            except redis.ConnectionError:
                self._effects.clock.advance(PAUSE_SECONDS)
        raise self._unavailable(f"{name}: Redis did not answer")


def quota_states(server: RedisServer) -> dict[tuple[str, str], dict[str, Any]]:
    """By subject and feature, the quota states that products read."""
    with server.lock:
        return {
            (key[1], name): json.loads(value)
            for key, held in server.hashes.items()
            if isinstance(key, tuple) and key[0] == "quota"
            for name, value in held.items()
        }

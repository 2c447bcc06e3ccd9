"""Quota hashes and channels in memory: passes the same contract suite as those on Redis."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from domain.ports import TallyError
from domain.signals_json import QuotaField, instant_text, quota_value
from sinks.redis_quotas import KEEP_US
from tests.fakes.redis import Link, RedisServer
from tests.simulation.effects import Effects

_MARKS = "quota marks"


class FakeQuotas:
    """In place of `sinks.redis_quotas.Quotas`."""

    def __init__(self, server: RedisServer, *, now_us: Callable[[], int], effects: Effects | None = None) -> None:
        self._server = server
        self._now_us = now_us
        self._link = Link(server, effects, TallyError)

    def write(self, fields: Sequence[QuotaField], *, live: bool) -> int:
        kept = [f for f in fields if f.period_end_us + KEEP_US > self._now_us()]
        return self._link.call("redis.quota", lambda: sum(self._write(f, live) for f in kept)) if kept else 0

    def publish(self, channel: str, messages: Sequence[bytes]) -> None:
        self._link.call(
            "redis.publish", lambda: self._server.published.extend((channel, message) for message in messages)
        )

    def adopt(self, ledger: str) -> int:
        def adopt() -> int:
            if self._server.fields(_MARKS).get("ledger") == ledger:
                return 0
            hashes = [key for key, held in self._server.hashes.items() if held and key[0] == "quota"]  # type: ignore[index]
            for key in hashes:
                self._server.drop(key)
            self._server.drop(_MARKS)
            self._server.put(_MARKS, "ledger", ledger)
            return len(hashes)

        return self._link.call("redis.quota", adopt)

    def was_restored(self) -> bool:
        return self._link.call(
            "redis.quota", lambda: bool(self._server.fields(_MARKS).get("restored") == self._server.run_id)
        )

    def note_restored(self) -> None:
        self._link.call("redis.quota", lambda: self._server.put(_MARKS, "restored", self._server.run_id))

    def give_up(self) -> None:
        pass

    def rest(self, seconds: float) -> None:
        pass

    def close(self) -> None:
        pass

    def _write(self, new: QuotaField, live: bool) -> int:
        key, value = ("quota", new.subject), quota_value(new)
        stored = self._server.fields(key).get(new.feature)
        if stored is not None and (stored == value or _keeps(json.loads(stored), new, live, self._now_us())):
            return 0
        self._server.put(key, new.feature, value)
        return 1


def _keeps(held: dict[str, object], new: QuotaField, live: bool, now_us: int) -> bool:
    """Whether what is stored is newer, or stays because only the live flow may change plans."""
    since = instant_text(new.since_us) if new.since_us else ""
    now = instant_text(now_us)
    before = (held["era"], str(held["period_end"]) > now, held.get("since", ""), held["period_start"])
    after = (new.era, instant_text(new.period_end_us) > now, since, instant_text(new.period_start_us))
    if before != after:
        return before > after
    if held["plan"] != new.plan:
        return not live
    return int(str(held["inputs"])) > new.inputs

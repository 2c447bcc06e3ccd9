"""`Quotas`: may this subject use that feature now? One round trip to Redis.

tallyflow keeps how a subject's metered entitlements stand in the Redis hash `quota:{SUBJECT}`, a
field a feature, behind the events by about a second. There is no state for a feature that the
subject has not used since it got it, nor for one that is not metered: `when_unknown` says what that
means. `when_unreachable` says what an answer is while Redis gives none within `timeout_seconds`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, Literal, cast, get_args

import orjson
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

When = Literal["allow", "deny", "raise"]
State = Literal["ok", "warning", "exceeded", "unknown", "unreachable"]


class QuotaUnknown(LookupError):
    """There is no quota state for the subject and feature, and `when_unknown` is `raise`."""


class QuotasUnreachable(Exception):
    """Redis gave no usable answer in time, and `when_unreachable` is `raise`."""


@dataclass(frozen=True)
class QuotaCheck:
    """How a quota stands, and what follows from it."""

    allowed: bool
    used: Decimal
    """What is used of the limit in the running period; 0 if it is not known."""
    limit: Decimal | None
    state: State
    """`exceeded` may still be allowed: where the entitlement's `on_exceed` is `allow`."""
    period_start: datetime | None
    """The running period; None if it is not known, or nothing was used since the last one ended."""
    period_end: datetime | None
    known: bool
    """False: `allowed` is what `when_unknown` or `when_unreachable` says."""


class Quotas:
    """Reads quota states. For any number of threads; connects at the first check.

    Args:
        redis_url: tallyflow's Redis: `redis://`, `rediss://` or `unix://`. Of a Redis Cluster, any node: that it is one
            is found out when a node first answers that the state is elsewhere.
        when_unreachable: what a check answers if Redis does not: `allow`, `deny`, or `raise` `QuotasUnreachable`.
        when_unknown: the same for a subject or feature without state: `allow`, `deny`, or `raise` `QuotaUnknown`.
        timeout_seconds: how long to wait for a connection, and for each reply. A check on an open connection
            takes one reply; one that has to connect first up to five (more in a cluster).

    Raises:
        ValueError: an argument is no use; says which.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        when_unreachable: When = "allow",
        when_unknown: When = "allow",
        timeout_seconds: float = 0.1,
    ) -> None:
        self._policy = _Policy(when_unreachable, when_unknown)
        self._url, self._options = redis_url, _options(timeout_seconds)
        self._client: Any = redis.Redis.from_url(redis_url, retry=Retry(NoBackoff(), 0), **self._options)

    def check(self, subject: str, feature: str) -> QuotaCheck:
        """How the subject's quota of the feature stands.

        Raises:
            QuotaUnknown, QuotasUnreachable: if the policies say `raise`.
        """
        try:
            raw = self._ask(subject, feature)
        except (redis.RedisError, OSError) as error:
            return self._policy.unreachable(error)
        return self._policy.answer(subject, feature, raw)

    def close(self) -> None:
        """Close the connections; a later check opens new ones."""
        self._client.close()

    def __enter__(self) -> Quotas:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, subject: str, feature: str) -> bytes | None:
        client = self._client
        try:
            return cast("bytes | None", client.hget(_key(subject), feature))
        except redis.ResponseError as error:
            if not _is_elsewhere(error) or isinstance(client, redis.RedisCluster):
                raise
        if self._client is client:  # another thread may still use it, so it is not closed
            self._client = redis.RedisCluster.from_url(self._url, retry=Retry(NoBackoff(), 1), **self._options)
        return cast("bytes | None", self._client.hget(_key(subject), feature))


class AsyncQuotas:
    """`Quotas` for asyncio; the same arguments, and `check` is awaited. For one event loop."""

    def __init__(
        self,
        redis_url: str,
        *,
        when_unreachable: When = "allow",
        when_unknown: When = "allow",
        timeout_seconds: float = 0.1,
    ) -> None:
        self._policy = _Policy(when_unreachable, when_unknown)
        self._url, self._options = redis_url, _options(timeout_seconds)
        self._switching = asyncio.Lock()
        self._client: Any = redis.asyncio.Redis.from_url(redis_url, retry=AsyncRetry(NoBackoff(), 0), **self._options)

    async def check(self, subject: str, feature: str) -> QuotaCheck:
        """How the subject's quota of the feature stands.

        Raises:
            QuotaUnknown, QuotasUnreachable: if the policies say `raise`.
        """
        try:
            raw = await self._ask(subject, feature)
        except (redis.RedisError, OSError) as error:
            return self._policy.unreachable(error)
        return self._policy.answer(subject, feature, raw)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def __aenter__(self) -> AsyncQuotas:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(self, subject: str, feature: str) -> bytes | None:
        client = self._client
        try:
            return cast("bytes | None", await client.hget(_key(subject), feature))
        except redis.ResponseError as error:
            if not _is_elsewhere(error) or isinstance(client, redis.asyncio.RedisCluster):
                raise
        async with self._switching:
            if self._client is client:  # another task may still use it, so it is not closed
                made: Any = redis.asyncio.RedisCluster.from_url(
                    self._url, retry=AsyncRetry(NoBackoff(), 1), **self._options
                )
                try:
                    await made.initialize()  # by one task: by several at once it fails
                except BaseException:
                    await made.aclose()
                    raise
                self._client = made
        return cast("bytes | None", await self._client.hget(_key(subject), feature))


class _Policy:
    """What an answer of Redis, or none, means."""

    def __init__(self, when_unreachable: When, when_unknown: When) -> None:
        for name, value in (("when_unreachable", when_unreachable), ("when_unknown", when_unknown)):
            if value not in get_args(When):
                raise ValueError(f"{name} is {value!r}: use allow, deny or raise")
        self._when_unreachable = when_unreachable
        self._when_unknown = when_unknown

    def answer(self, subject: str, feature: str, raw: bytes | None) -> QuotaCheck:
        if raw is None:
            if self._when_unknown == "raise":
                raise QuotaUnknown(f"no quota state of {feature!r} for {subject!r}")
            return _guess(self._when_unknown == "allow", "unknown")
        try:
            return read_state(raw, datetime.now(timezone.utc))
        except (ValueError, ArithmeticError, TypeError, KeyError) as error:
            return self.unreachable(ValueError(f"the quota state cannot be read: {error!r}"))

    def unreachable(self, error: Exception) -> QuotaCheck:
        if self._when_unreachable == "raise":
            raise QuotasUnreachable(str(error)) from error
        return _guess(self._when_unreachable == "allow", "unreachable")


def read_state(raw: bytes, now: datetime) -> QuotaCheck:
    """A quota state as tallyflow wrote it. One whose period is over means that nothing was used since."""
    found = orjson.loads(raw)
    limit = Decimal(found["limit"])
    start, end = _instant(found["period_start"]), _instant(found["period_end"])
    state = found["state"]
    if state not in ("ok", "warning", "exceeded"):
        raise ValueError(f"state {state!r}")
    if end <= now:
        return QuotaCheck(True, Decimal(0), limit, "ok", None, None, True)
    allowed = state != "exceeded" or found.get("on_exceed", "block") != "block"
    return QuotaCheck(allowed, Decimal(found["used"]), limit, state, start, end, True)


def _guess(allowed: bool, state: State) -> QuotaCheck:
    return QuotaCheck(allowed, Decimal(0), None, state, None, None, False)


def _is_elsewhere(error: redis.ResponseError) -> bool:
    """Whether a node of a cluster says that another one has the key."""
    return isinstance(error, redis.exceptions.MovedError) or str(error).startswith("MOVED ")


def _key(subject: str) -> str:
    return f"quota:{{{subject}}}"  # the braces are Redis Cluster's hash tag


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _options(timeout_seconds: float) -> dict[str, Any]:
    if not 0 < timeout_seconds <= 60:
        raise ValueError(f"timeout_seconds is {timeout_seconds}: use more than 0 and at most 60")
    # RESP 2: a new connection needs no HELLO, which is one round trip less.
    return {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds, "protocol": 2}

"""Claims on Redis: who claimed an idempotency key first.

For: deduplication that survives replays (a seen-set would call an event's own replay a duplicate).
Guarantees: an answer is given only by a Redis that still holds every claim it acknowledged, and only
to the youngest instance. Every call names an incarnation, a fencing token and the partition's start
offset; `claim.lua` checks them in the same atomic step that claims.
Failure: what is missing raises `ClaimsLost`; a younger instance, `Fenced`; no answer within the bound,
`ClaimsUnavailable`. Calls are repeated safely: a claim is idempotent per position.

Layout. A key is the xxh3-128 of `(source, id)`, seeded with a random number of the deployment. The
digest names a shard, a bucket and a field. All Redis keys of shard `i` share a hash tag:

    {tally:c0}                  meta hash: token, incarnation, seed, layout, p<partition>, g<generation>
    {tally:c0}:<g>:<bucket>     hash: field = 13 bytes of the digest, value = content and position (21 bytes)

Small hashes stay listpacks (ziplists before Redis 7): about 42 bytes an id instead of 155. A shard
takes 65,536 buckets of 512 ids a generation, 33 million, before its buckets turn into tables and cost
thrice the memory; a bucket is searched from its beginning, so calls slow down before that: use a shard
for every few million ids. Another number of shards, another `accept_within`, or another ledger is another
layout: the old claims are dropped and made again from the ledger.

A generation `g = log_time // (accept_within + future skew)` is looked up with both its neighbours, so
two events that may carry the same key and both be accepted by age always see each other.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from itertools import count
from typing import Any, NamedTuple

from domain.ports import TICKETS_MAX, Claim, ClaimRequests, ClaimsLost, Fenced, TallyError, Ticket
from domain.values import FUTURE_SKEW_US
from stores.claim_records import LAYOUT, Packed, bucket_names, pack, unpack
from stores.pipe import Argument
from stores.redis_link import RedisLink
from stores.servers import Server

REDIS_VERSION_MIN = (6, 2)
UNLINK_KEYS_MAX = 500
"""Buckets dropped by one command: bounds how long Redis serves nobody else."""


_Call = tuple[int, list[Argument]]
"""A shard, and the script's arguments but for mode and token."""


class Session(NamedTuple):
    """What the claims of one start have in common: `adopt` makes another process part of it."""

    tokens: list[int]
    """By shard."""
    seed: int
    incarnation: str
    servers: list[str]
    """By shard, the server process that the start met."""


class RedisClaims:
    """Implements `domain.ports.Claims` and `ClaimsAdmin` on one Redis or a cluster (6.2 or later).

    Order of use: `take_over`, `progress`, `restore`, `publish`; then `claim` and `forget`, from any
    number of threads. Another process of the same start calls `adopt` instead, with the first's `session`.
    Offsets must be below 2^48, indexes below 2^24.

    Args:
        url: `redis://`, `rediss://` or `unix://`; of a cluster, any of its nodes.
        shards: into how many hash tags the claims are spread; every batch calls each of them.
        accept_within_us: the deployment's age limit.
        wait_seconds: for how long an unreachable Redis is tried again.
        namespace: begins every Redis key.
        ledger: names the ledger that the claims were made for. Those of another are dropped at the start: their
            positions are of another log, and what they call repeats would be lost here.
        options: what redis-py takes beside the address: user, password, TLS files.
    """

    def __init__(
        self,
        url: str,
        *,
        shards: int,
        accept_within_us: int,
        wait_seconds: float,
        namespace: str = "tally",
        ledger: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", namespace):
            raise TallyError(f"claims namespace {namespace!r}: use letters, digits, '-' and '_' only")
        if shards < 1:
            raise TallyError(f"claims need at least 1 shard, not {shards}")
        script = files("stores").joinpath("claim.lua").read_bytes()
        self._link = RedisLink(url, script=script, wait_seconds=wait_seconds, options=options)
        self._generation_us = accept_within_us + FUTURE_SKEW_US
        self._tag = f"{{{namespace}:c"
        self._metas = [f"{self._tag}{shard}}}" for shard in range(shards)]
        self._layout = f"{LAYOUT}:{shards}:{self._generation_us}:{ledger}"
        self._tokens: list[int] = []
        self._seed = 0
        self._incarnation: str | None = None
        self._forgotten = -1
        self._numbers = count(1)
        self._sent = _Sent()

    def examine(self) -> str:
        """Look whether the server will do, changing nothing; returns its version and address.

        Raises:
            TallyError: the server is too old or may evict keys.
            ClaimsUnavailable: no answer within the bound.
        """
        met = self._meet()
        versions = ", ".join(sorted({server.info["redis_version"] for server in met}))
        masters = "" if met[0].address is None else f", a cluster with {len(met)} masters,"
        return f"version {versions}{masters} at {self._link.address}"

    def take_over(self) -> int:
        """Take the next fencing token on every shard, and learn or make the deployment's seed.

        If seed or layout are missing on any shard, all claims are dropped: `progress()` is then empty.

        Raises:
            TallyError: the server is too old or may evict keys.
            ClaimsUnavailable: no answer within the bound.
        """
        self._incarnation, self._forgotten = None, -1
        self._meet()
        self._tokens = [int(self._link.do("HINCRBY", meta, "token", 1)) for meta in self._metas]
        known = {tuple(self._link.do("HMGET", meta, "seed", "layout")) for meta in self._metas}
        seed, layout = known.pop()
        lost = known or seed is None or layout != self._layout.encode()
        self._seed = self._begin_anew() if lost else int(seed)
        return max(self._tokens)

    def progress(self) -> Mapping[int, int]:
        """By partition, the offset up to which every shard holds every claim; empty: all are to be remade."""
        shards = [self._link.fields(meta) for meta in self._metas]
        if not all(b"incarnation" in shard and shard.get(b"seed") == b"%d" % self._seed for shard in shards):
            return {}
        names = {name for shard in shards for name in shard if name.startswith(b"p")}
        return {int(name[1:]): min(int(shard.get(name, 0)) for shard in shards) for name in names}

    def restore(self, partition: int, requests: ClaimRequests) -> None:
        """Record the claims of rows already in the ledger (content 0: unknown); others' claims give way.

        A claim of the same position in a neighbouring generation stays where it is.

        Raises:
            Fenced, ClaimsLost, ClaimsUnavailable.
        """
        packed = self._pack(partition, requests)
        self._evaluate("restore", [(item.shard, ["", partition, 0, 0, item.runs, item.records]) for item in packed])

    def publish(self, progress: Mapping[int, int]) -> None:
        """Store a new incarnation, and where each partition stands: never lower than what is stored.

        `progress` must name each partition that does not begin at offset 0.

        Raises:
            Fenced, ClaimsLost, ClaimsUnavailable.
        """
        incarnation = secrets.token_hex(8)
        offsets = [number for item in progress.items() for number in item]
        self._evaluate("publish", [(shard, [incarnation, *offsets]) for shard in range(len(self._metas))])
        self._incarnation = incarnation

    def session(self) -> Session:
        """What another process needs to be part of this start; after `publish`."""
        assert self._incarnation is not None, "session() before publish()"
        return Session(self._tokens, self._seed, self._incarnation, self._servers())

    def adopt(self, session: Session) -> None:
        """Become part of a start whose claims another process has taken over, restored and published.

        Raises:
            ClaimsLost: here other server processes answer than there.
            TallyError: the server is too old or may evict keys.
            ClaimsUnavailable: no answer within the bound.
        """
        assert len(session.tokens) == len(self._metas), "the processes of a start have the same number of claim shards"
        self._meet()
        if self._servers() != session.servers:
            raise ClaimsLost(
                f"Redis at {self._link.address} is another server process than the one that the leader of this start "
                "met: give every process the same TALLY_REDIS_URL, and start again"
            )
        self._tokens, self._seed, self._incarnation = session.tokens, session.seed, session.incarnation
        self._forgotten = -1

    def claim(self, partition: int, start_offset: int, next_offset: int, requests: ClaimRequests) -> dict[int, Claim]:
        """Claim each key for its position, see `domain.ports.Claims.claim`."""
        return self.receive(self.send(partition, start_offset, next_offset, requests))

    def send(self, partition: int, start_offset: int, next_offset: int, requests: ClaimRequests) -> Ticket:
        """Write a claim to the socket; see `domain.ports.Claims.send`."""
        assert self._incarnation is not None, "claim() before publish()"
        assert 0 <= start_offset <= next_offset < 2**48, "offsets take 6 bytes"
        sent = self._sent.tickets
        assert len(sent) < TICKETS_MAX, f"at most {TICKETS_MAX} tickets of a thread are under way: receive one"
        packed = self._pack(partition, requests)
        calls: list[_Call] = []
        for item in packed:  # only the last call of a shard may say that the batch is claimed
            about: list[Argument] = [self._incarnation, partition, start_offset]
            end = next_offset if item.last else start_offset
            calls.append((item.shard, [*about, end, item.runs, item.records]))
        ticket = Ticket(next(self._numbers))
        sent.append((ticket, packed))
        with self._forgetting():
            self._link.send(self._calls("claim", calls))
        return ticket

    def receive(self, ticket: Ticket) -> dict[int, Claim]:
        """Wait for a claim's answer; see `domain.ports.Claims.receive`."""
        sent = self._sent.tickets
        assert sent and sent[0][0] == ticket, "tickets are received in the order and by the thread of their sending"
        with self._forgetting():
            replies = self._accepted(self._link.receive())
        _, packed = sent.popleft()
        firsts: dict[int, Claim] = {}
        for item, (_, indexes, values) in zip(packed, replies, strict=True):
            firsts |= unpack(item, indexes, values)
        return firsts

    def forget(self, log_time_us: int) -> None:
        """Drop the generations at least two before that of `log_time_us`, a bounded number of keys at a time.

        A replay still asks for the generation before its own: give the slowest partition's log time
        at the offsets from which a restart would resume, not at those just read.
        """
        newest = self.kept_since_us(log_time_us) // self._generation_us - 1
        if newest <= self._forgotten:
            return
        for meta, token in zip(self._metas, self._tokens, strict=True):
            self._fenced("keep", meta, token, newest + 1)
            generations = [int(name[1:]) for name in self._link.fields(meta) if name.startswith(b"g")]
            for generation in generations:
                if generation <= newest:
                    self._drop_generation(meta, token, generation)
        self._forgotten = newest

    def kept_since_us(self, log_time_us: int) -> int:
        """The log time from which claims are kept when `forget` is called with another one."""
        return max(0, log_time_us // self._generation_us - 1) * self._generation_us

    def forgotten_until_us(self) -> int:
        """The log time until which this Redis was told to forget claims of this ledger; 0 if it was not."""
        held = [self._link.do("HMGET", meta, "layout", "kept") for meta in self._metas]
        kept = [int(kept or 0) for layout, kept in held if layout == self._layout.encode()]
        return max(kept, default=0) * self._generation_us

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._link.close()

    def _pack(self, partition: int, requests: ClaimRequests) -> list[Packed]:
        return pack(partition, requests, seed=self._seed, shards=len(self._metas), generation_us=self._generation_us)

    def _evaluate(self, mode: str, calls: Sequence[_Call]) -> list[Any]:
        """Make the calls; raise what any shard refused."""
        return self._accepted(self._link.evaluate(self._calls(mode, calls)))

    def _calls(self, mode: str, calls: Sequence[_Call]) -> list[tuple[str, list[Argument]]]:
        """For every call: its shard's meta hash, and the script's arguments."""
        return [(self._metas[shard], [mode, self._tokens[shard], *arguments]) for shard, arguments in calls]

    def _accepted(self, replies: list[Any]) -> list[Any]:
        """The replies; raises what any shard refused, first of all that this instance is too old."""
        refused: list[Any] = sorted((reply for reply in replies if reply[0] != 0), key=lambda reply: int(reply[0]))
        if refused:
            raise self._refusal(refused[0])
        return replies

    @contextmanager
    def _forgetting(self) -> Iterator[None]:
        """After an error none of the thread's tickets is under way any more."""
        try:
            yield
        except BaseException:
            self._sent.tickets.clear()
            self._link.abandon()
            raise

    def _refusal(self, reply: Sequence[Any]) -> TallyError:
        found = reply[-1].decode()
        if reply[0] == 1:
            return Fenced(
                f"a younger instance (fencing token {found}) has taken over the claims at {self._link.address}: "
                "this one stops; see to it that only one runs"
            )
        return ClaimsLost(
            f"Redis at {self._link.address} lost claims ({reply[1].decode()}: found {found}): "
            "restart, so that they are rebuilt from the ledger"
        )

    def _meet(self) -> list[Server]:
        """Meet every master, and refuse those that would not keep claims."""
        met = self._link.meet(self._metas)
        for server in met:
            self._refuse_unfit(server)
        return met

    def _servers(self) -> list[str]:
        return [self._link.identity(meta) for meta in self._metas]

    def _refuse_unfit(self, server: Server) -> None:
        info = server.info
        version, where = info["redis_version"], f"Redis at {self._link.name(server.address)}"
        if tuple(int(part) for part in version.split(".")[:2]) < REDIS_VERSION_MIN:
            raise TallyError(f"{where} is version {version}: claims need 6.2 or later, upgrade it")
        policy = info.get("maxmemory_policy", "noeviction")
        if int(info.get("maxmemory", 0)) != 0 and policy != "noeviction":
            raise TallyError(
                f"{where} may evict claims (maxmemory-policy {policy}), and usage would be counted twice: "
                "set maxmemory-policy noeviction, or give the claims a Redis of their own"
            )

    def _begin_anew(self) -> int:
        """Drop all claims, then make a new seed. The tokens stay.

        The seeds go first: if this breaks off, the next start begins anew as well. Each step is refused
        once a younger instance has taken over, whose claims it would drop.
        """
        tokens = dict(zip(self._metas, self._tokens, strict=True))
        for meta, token in tokens.items():
            self._fenced("clear", meta, token)
        for keys in self._link.scan(f"{self._tag}*"):
            by_shard: dict[str, list[str]] = {}
            for key in keys:
                by_shard.setdefault(key.partition("}")[0] + "}", []).append(key)
            for meta, names in by_shard.items():
                if meta not in tokens:  # a shard of another layout
                    tokens[meta] = int(self._link.do("HINCRBY", meta, "token", 1))
                self._fenced("unlink", meta, tokens[meta], "", *(name for name in names if name != meta))
        for meta in tokens.keys() - set(self._metas):
            self._fenced("unlink", meta, tokens[meta], "", meta)
        seed = secrets.randbits(64)
        for meta in self._metas:
            self._fenced("seed", meta, tokens[meta], seed, self._layout)
        return seed

    def _drop_generation(self, meta: str, token: int, generation: int) -> None:
        """Unlink every bucket that the generation can have, and only then its mark of living."""
        keys = [f"{meta}:{generation}:{name}" for name in bucket_names()]
        for begin in range(0, len(keys), UNLINK_KEYS_MAX):
            part = keys[begin : begin + UNLINK_KEYS_MAX]
            last = begin + UNLINK_KEYS_MAX >= len(keys)
            self._fenced("unlink", meta, token, f"g{generation}" if last else "", *part)

    def _fenced(self, mode: str, meta: str, token: int, *arguments: Argument) -> None:
        self._accepted(self._link.evaluate([(meta, [mode, token, *arguments])]))


class _Sent(threading.local):
    """A thread's tickets that are not received yet, the oldest first, with what was sent."""

    def __init__(self) -> None:
        self.tickets: deque[tuple[Ticket, list[Packed]]] = deque()

"""What is done once for all processes of a start, before any reads: process 0 does it, the others go on with it.

Checks that state and ledger belong together, opens the source, applies the catalog, takes the claim store over and
brings it up to the ledger, and copies the saved state. Every refusal is a `TallyError` that says why and what to do;
what can be refused comes before the catalog is applied, so that a start that fails leaves the old one in force.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from clickhouse_connect.driver.client import Client

from config.kafka_client import kafka_options
from config.redis_client import redis_options
from config.settings import Settings
from domain.catalog import History
from domain.instants import to_text
from domain.ports import TallyError
from domain.totals import STATE_VERSION
from engines.data_directory import DataDirectory
from flows import recovery
from flows.catalogs import Applied, apply_catalog, judge_catalog, sha256_of
from flows.forget import SLACK_US, Forgotten
from flows.inputs import Input, open_input, topic_of
from flows.rebuild import Rebuild, goes_on, is_over, plan, samples_of, told, under_way
from flows.reclaim import Reclaimed, ledger_of, reclaim
from flows.recovery import Saved
from flows.saved_state import REBUILD, first_counted, judge, needs_claims_since_us
from sinks.kafka import ensure_topic
from sources.ledger import Ledger, LedgerSource
from stores.claims import RedisClaims, Session
from stores.rendezvous import Rendezvous


class Prepared(NamedTuple):
    """What holds for one start, in each process."""

    applied: Applied
    input: Input
    claims: RedisClaims
    reclaimed: Reclaimed
    store: Path
    told: frozenset[str]
    """Ids of signals that must not be published again, where state is rebuilt."""


@dataclass(frozen=True, slots=True)
class Opening:
    """The part of a start that process 0 does for all, and how the others go on with it."""

    settings: Settings
    directory: DataDirectory
    admin: Client
    client: Callable[[], Client]
    redis_url: str
    catalog: str | None
    source: str
    rebuilds: bool
    workers: int
    stop: threading.Event
    opened: ExitStack

    def prepare(self, rendezvous: Rendezvous | None, process: int) -> Prepared:
        """Take this process's part; without a rendezvous it is alone."""
        if rendezvous is None:
            return self._lead()
        if process:
            return self._follow(process, rendezvous.meet(dict))
        led: list[Prepared] = []

        def lead() -> dict[str, Any]:
            led.append(self._lead())
            return self._announced(led[0])

        rendezvous.meet(lead)
        return led[0]

    def _lead(self) -> Prepared:
        """Check, apply, re-claim and copy."""
        identity = self._identity()
        rebuild, begins = self._rebuild(identity)
        saved = judge(self.directory, identity, self.admin, self._topic) if rebuild is None else None
        has_state = rebuild is not None or saved is not None
        catalog = judge_catalog(self.admin, self.catalog).history.versions[0].catalog
        source = self._input(catalog.accept_within_us, rebuild)
        if self.settings.kafka_brokers is not None:
            _ensure_signals_topic(self.settings)
        applied = apply_catalog(self.admin, self.catalog, source.logged_until_us)
        if not has_state:
            self.directory.write("deployment", identity)
        if rebuild is not None and begins:
            self.directory.write("rebuild", rebuild.record())
        claims = self._claims(applied.history)
        if saved is not None and source.monotone:
            self._check_claims(claims, saved)
        kept_since_us = max(self.forgotten(claims).kept_since_us, _asked_since_us(claims, source, rebuild))
        reclaimed = reclaim(claims, self.admin, source.topic, source.partitions, kept_since_us)
        store = recovery.begin(self.directory.recovery, self.settings.recovery_partitions, anew=begins)
        if begins:
            self.directory.write("deployment", identity)
        return Prepared(applied, source, claims, reclaimed, store, self._told(rebuild))

    def _rebuild(self, identity: Mapping[str, Any]) -> tuple[Rebuild | None, bool]:
        """What is rebuilt, if anything is, and whether that begins now: one that was killed goes on by itself."""
        newest = recovery.newest(self.directory.recovery)
        number = 0 if newest is None else int(newest.name)
        going_on = under_way(self.directory, number, self._topic)
        if going_on is not None:
            try:
                saved = judge(self.directory, identity, self.admin, self._topic)
            except TallyError:
                if not self.rebuilds:
                    raise
            else:
                assert saved is not None, "the store was found"
                if goes_on(going_on, saved) and not (self.rebuilds and is_over(going_on, saved)):
                    return going_on, False
        if not self.rebuilds:
            return None, False
        doubt_seconds = self.settings.epoch_seconds + max(
            self.settings.kafka_wait_seconds, self.settings.redis_wait_seconds, self.settings.clickhouse_wait_seconds
        )
        rebuild = plan(self.admin, self._topic, number + 1, doubt_seconds)
        return (rebuild, True) if rebuild.counted else (None, False)

    def _check_claims(self, claims: RedisClaims, saved: Saved) -> None:
        """Refuse state that is so old that repeats of what it lacks could not be recognised any more."""
        since_us = needs_claims_since_us(saved, self.admin, self._topic)
        forgotten_us = max(self.forgotten(claims).kept_since_us, claims.forgotten_until_us())
        if since_us is not None and claims.kept_since_us(since_us) < forgotten_us:
            raise TallyError(
                f"the saved state in {self.directory.recovery} is of {to_text(since_us)} by the log's time, and claims "
                f"before {to_text(forgotten_us)} were forgotten since: repeats of what it has to read again might "
                f"count twice. Restore the newest state, or {REBUILD}"
            )

    def _told(self, rebuild: Rebuild | None) -> frozenset[str]:
        return frozenset() if rebuild is None else told(self.admin, rebuild)

    def _announced(self, prepared: Prepared) -> dict[str, Any]:
        """What the others must know."""
        return {
            "alike": self._alike(),
            "catalog": prepared.applied.history.versions[-1].sha256,
            "claims": prepared.claims.session(),
            "store": prepared.store.name,
            "rebuilds": prepared.input.share_rebuilt is not None,
        }

    def _follow(self, process: int, content: dict[str, Any]) -> Prepared:
        """Go on with what process 0 prepared."""
        for key, value in self._alike().items():
            if content["alike"].get(key) != value:
                raise TallyError(
                    f"process 0 runs with {key}={content['alike'].get(key)}, process {process} with {value}: "
                    "give all processes of a deployment the same"
                )
        applied = judge_catalog(self.admin, None)
        current = applied.history.versions[-1]
        if current.sha256 != content["catalog"] or (self.catalog and sha256_of(self.catalog) != current.sha256):
            raise TallyError(f"process {process} has another catalog than process 0: give all processes the same")
        store = self.directory.recovery / content["store"]
        if not store.is_dir():
            raise TallyError(f"{store} is not there: all processes of a deployment must share TALLY_DATA_DIR")
        rebuild = under_way(self.directory, int(store.name), self._topic) if content["rebuilds"] else None
        source = self._input(None, rebuild)
        claims = self._claims(applied.history)
        claims.adopt(Session(*content["claims"]))
        return Prepared(applied, source, claims, Reclaimed(0), store, self._told(rebuild))

    def _input(self, accept_within_us: int | None, rebuild: Rebuild | None) -> Input:
        log = open_input(
            self.source,
            self.settings,
            self.directory,
            self.stop,
            accept_within_us=accept_within_us,
            counted=None if rebuild is None else lambda: samples_of(self.client, rebuild),
            first_counted=self._first_counted,
        )
        self.opened.callback(log.close)
        return log if rebuild is None else self._behind_ledger(log, rebuild)

    def _first_counted(self, partition: int) -> int | None:
        with self.client() as client:
            return first_counted(client, self._topic, partition)

    def _behind_ledger(self, log: Input, rebuild: Rebuild) -> Input:
        """The ledger, then the log."""
        gone = sorted(rebuild.counted.keys() - set(log.partitions))
        if gone and log.monotone:
            raise TallyError(
                f"the ledger has partition {gone[0]} of {log.topic}, and the topic has {len(log.partitions)} "
                "partitions: this is another topic or cluster. Point TALLY_KAFKA_BROKERS and TALLY_KAFKA_TOPIC at the "
                "one that was counted"
            )
        ledger = LedgerSource(
            log.source,
            rebuild.counted,
            lambda partition: log.state_at(partition, rebuild.counted[partition]),
            lambda partition: Ledger(self.client(), log.topic, partition, rows_max=self.settings.batch_rows_max),
            topic=log.topic,
            monotone=log.monotone,
            stop=self.stop,
        )
        return replace(
            log,
            source=ledger,
            partitions=sorted({*log.partitions, *rebuild.counted}),
            events_read=lambda: ledger.events_rebuilt() + log.events_read(),
            share_rebuilt=ledger.share_rebuilt,
        )

    def _claims(self, history: History) -> RedisClaims:
        claims = RedisClaims(
            self.redis_url,
            shards=self.settings.claim_shards,
            accept_within_us=history.versions[0].catalog.accept_within_us,
            wait_seconds=self.settings.redis_wait_seconds,
            ledger=self._ledger(),
            options=redis_options(self.settings),
        )
        self.opened.callback(claims.close)
        return claims

    def forgotten(self, claims: RedisClaims) -> Forgotten:
        return Forgotten(self.directory, self._ledger(), claims)

    def _ledger(self) -> str:
        return ledger_of(self.admin, self._topic)

    @property
    def _topic(self) -> str:
        return topic_of(self.source, self.settings)

    def _identity(self) -> dict[str, Any]:
        """What saved state depends on."""
        return {"topic": self._topic, "shards": self.settings.shards, "state_version": STATE_VERSION}

    def _alike(self) -> dict[str, Any]:
        """What must be the same in every process."""
        more = {"workers": self.workers, "claim_shards": self.settings.claim_shards, "version": version("tallyflow")}
        return {**self._identity(), **more}


def _asked_since_us(claims: RedisClaims, source: Input, rebuild: Rebuild | None) -> int:
    """The log time from which claims can be asked for behind the ledger; 0 where that cannot be told."""
    if rebuild is None or not source.monotone or not set(source.partitions) <= rebuild.counted.keys():
        return 0
    return claims.kept_since_us(max(0, min(row.log_time_us for row in rebuild.counted.values()) - SLACK_US))


def _ensure_signals_topic(settings: Settings) -> None:
    ensure_topic(
        kafka_options(settings),
        settings.signals_topic,
        partitions=settings.kafka_partitions,
        replication=settings.kafka_replication,
        wait_seconds=settings.kafka_wait_seconds,
    )

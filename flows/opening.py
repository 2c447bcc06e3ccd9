"""What is done once for all processes of a start, before any reads: process 0 does it, the others go on with it.

Checks that state and ledger belong together, opens the source, applies the catalog, takes the claim store over and
brings it up to the ledger, and copies the saved state. Every refusal is a `TallyError` that says why and what to do;
what can be refused comes before the catalog is applied, so that a start that fails leaves the old one in force.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from clickhouse_connect.driver.client import Client

from config.kafka_client import kafka_options
from config.redis_client import redis_options
from config.settings import Settings
from domain.catalog import History
from domain.ports import TallyError
from domain.totals import STATE_VERSION
from engines.data_directory import DataDirectory
from flows import recovery
from flows.catalogs import Applied, apply_catalog, judge_catalog, sha256_of
from flows.forget import Forgotten
from flows.inputs import Input, open_input, topic_of
from flows.reclaim import Reclaimed, ledger_of, reclaim
from sinks.kafka import ensure_topic
from stores.claims import RedisClaims, Session
from stores.rendezvous import Rendezvous


class Prepared(NamedTuple):
    """What holds for one start, in each process."""

    applied: Applied
    input: Input
    claims: RedisClaims
    reclaimed: Reclaimed
    store: Path


@dataclass(frozen=True, slots=True)
class Opening:
    """The part of a start that process 0 does for all, and how the others go on with it."""

    settings: Settings
    directory: DataDirectory
    admin: Client
    redis_url: str
    catalog: str | None
    source: str
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
        has_state = _check_deployment(self.directory, identity, self.admin)
        catalog = judge_catalog(self.admin, self.catalog).history.versions[0].catalog
        source = self._input(catalog.accept_within_us)
        if self.settings.kafka_brokers is not None:
            _ensure_signals_topic(self.settings)
        applied = apply_catalog(self.admin, self.catalog)
        if not has_state:
            self.directory.write("deployment", identity)
        claims = self._claims(applied.history)
        kept_since_us = self.forgotten(claims).kept_since_us
        reclaimed = reclaim(claims, self.admin, source.topic, source.partitions, kept_since_us)
        store = recovery.begin(self.directory.recovery, self.settings.recovery_partitions)
        return Prepared(applied, source, claims, reclaimed, store)

    def _announced(self, prepared: Prepared) -> dict[str, Any]:
        """What the others must know."""
        return {
            "alike": self._alike(),
            "catalog": prepared.applied.history.versions[-1].sha256,
            "claims": prepared.claims.session(),
            "store": prepared.store.name,
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
        source = self._input(None)
        claims = self._claims(applied.history)
        claims.adopt(Session(*content["claims"]))
        return Prepared(applied, source, claims, Reclaimed(0), store)

    def _input(self, accept_within_us: int | None) -> Input:
        source = open_input(self.source, self.settings, self.directory, self.stop, accept_within_us=accept_within_us)
        self.opened.callback(source.close)
        return source

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
        return ledger_of(self.admin, topic_of(self.source, self.settings))

    def _identity(self) -> dict[str, Any]:
        """What saved state depends on."""
        topic = topic_of(self.source, self.settings)
        return {"topic": topic, "shards": self.settings.shards, "state_version": STATE_VERSION}

    def _alike(self) -> dict[str, Any]:
        """What must be the same in every process."""
        more = {"workers": self.workers, "claim_shards": self.settings.claim_shards, "version": version("tallyflow")}
        return {**self._identity(), **more}


def _ensure_signals_topic(settings: Settings) -> None:
    ensure_topic(
        kafka_options(settings),
        settings.signals_topic,
        partitions=settings.kafka_partitions,
        replication=settings.kafka_replication,
        wait_seconds=settings.kafka_wait_seconds,
    )


def _check_deployment(directory: DataDirectory, identity: dict[str, Any], client: Client) -> bool:
    """Refuse to go on with state that does not belong to this deployment or this ledger.

    Returns:
        Whether there is saved state to go on from.
    """
    if recovery.newest(directory.recovery) is None:
        if int(client.query("SELECT count() FROM events").result_rows[0][0]):
            raise TallyError(
                f"the ledger holds events, but {directory.recovery} has no saved state: going on would count "
                "from zero. Restore that directory, or start with a new data directory and run the files again."
            )
        return False
    made = directory.read("deployment")
    if made is None:
        raise TallyError(
            f"{directory.recovery} has saved state, but the record of what made it is missing from {directory.path}: "
            "restore deployment.json, or start with a new data directory and run the files again"
        )
    for key, value in identity.items():
        if made.get(key) != value:
            raise TallyError(
                f"this deployment was made with {key}={made.get(key)}, now it is {value}: go on with the old "
                "value, or start with a new data directory"
            )
    return True

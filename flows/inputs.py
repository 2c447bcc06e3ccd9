"""What a run reads: the source, and what the rest of a start and its user need to know about it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bytewax.inputs import FixedPartitionedSource

from config.kafka_client import kafka_options
from config.settings import Settings
from domain.ports import TallyError
from domain.values import DAY_US, RawBatch
from engines.data_directory import DataDirectory
from sources import files
from sources.file_places import Wanted, match, place
from sources.kafka import KafkaSource, KafkaState, check_counted, parse_accepted_loss
from sources.kafka_feed import Lag
from sources.kafka_topic import Plan, Topic, check_known, open_topic
from sources.ledger import Counted
from sources.paths import write_registry

KAFKA = "kafka"
RETENTION_SPARE_US = 7 * DAY_US
"""A topic that tally makes keeps messages this much longer than they are accepted: time to recompute."""


def _nothing() -> None:
    """What there is to close of most inputs."""


def _unknown() -> int:
    return 0


def _nowhere(partition: int, counted: Counted) -> Any:
    """The snapshots of most inputs cannot be made."""
    raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Input:
    """An opened source."""

    source: FixedPartitionedSource[RawBatch, Any]
    """Its partitions are named by their numbers."""
    topic: str
    """The log topic of its positions."""
    partitions: Collection[int]
    """Every partition that it reads."""
    monotone: bool
    """Whether log times never fall within a partition, so that windows may be forgotten."""
    share_read: Callable[[], float] | None
    """How much of the input is read, from 0 to 1; None if it has no end."""
    events_read: Callable[[], int]
    """How many events were read in this run."""
    ends: Callable[[], Iterable[tuple[int, int]]] | None = None
    """Asks where partitions end now: pairs of a number and the offset after the last message that can be read. By a
    client of its own and from another thread: health is judged by it. None where there is no such end."""
    lags: Callable[[], Mapping[int, Lag]] | None = None
    """By partition of this process, how far it is behind; None if the input has an end. Any thread may ask."""
    silent_seconds: Callable[[], float] | None = None
    """Since the log last answered; None if nobody has to."""
    logged_until_us: Callable[[], int] = _unknown
    """Asks for the newest log time in the log; 0 where that is not known."""
    close: Callable[[], None] = _nothing
    """Called once the flow is over."""
    state_at: Callable[[int, Counted], Any] = _nowhere
    """The snapshot of a partition's source that is counted so far."""
    share_rebuilt: Callable[[], float] | None = None
    """How much of the ledger is read, from 0 to 1, by this process; None where state is not rebuilt from it."""


def chosen(source: str | None, settings: Settings) -> str:
    """The source to read: the one given, else Kafka if there is one.

    Raises:
        TallyError: there is none, or it is of an unknown kind.
    """
    if source is None:
        if settings.kafka_brokers is None:
            raise TallyError(
                "nothing to read: give --source 'file:GLOB', for instance --source 'file:events/*.ndjson', or set "
                "TALLY_KAFKA_BROKERS"
            )
        return KAFKA
    if source != KAFKA:
        file_pattern(source)
    return source


def file_pattern(source: str) -> str:
    """The glob of a `file:GLOB` source.

    Raises:
        TallyError: it is another kind of source.
    """
    kind, colon, pattern = source.partition(":")
    if colon and kind == "file" and pattern:
        return pattern
    if os.path.lexists(source):
        raise TallyError(f"--source {source!r} says no kind: write --source 'file:{source}'")
    if colon and kind == KAFKA:
        raise TallyError(f"--source {source!r}: write --source kafka; TALLY_KAFKA_TOPIC names the topic")
    if colon and kind and kind != "file":
        raise TallyError(
            f"--source {source!r}: this version reads no {kind!r}, only files and Kafka. "
            "Write file:GLOB, for instance --source 'file:events/*.ndjson', or kafka"
        )
    raise TallyError(f"--source {source!r}: write file:GLOB, for instance --source 'file:events/*.ndjson', or kafka")


def topic_of(source: str, settings: Settings) -> str:
    """The log topic of a source, known before it is opened."""
    return settings.kafka_topic if source == KAFKA else files.TOPIC


def open_input(
    source: str,
    settings: Settings,
    directory: DataDirectory,
    stop: threading.Event,
    *,
    accept_within_us: int | None,
    counted: Callable[[], Mapping[int, Wanted]] | None = None,
    first_counted: Callable[[int], int | None] = lambda partition: None,
) -> Input:
    """Open `kafka` or `file:GLOB`.

    Args:
        source: As `chosen` gave it.
        settings: Of this run.
        directory: Where it is recorded what was read.
        stop: Set to end the source.
        accept_within_us: Of the catalog; None in a process that follows another, which has recorded what is read.
        counted: Tells what the ledger has of each partition, if state is rebuilt from it.
        first_counted: By partition, the least offset that the ledger has; None if it has none.

    Raises:
        TallyError: it is another kind of source, or cannot be read.
    """
    if source == KAFKA:
        return _open_kafka(settings, directory, stop, accept_within_us, first_counted, counted)
    registry = directory.path / "files.json"
    known = None if counted is None else counted()
    if known and not registry.exists():
        write_registry(registry, match(files.matching(file_pattern(source)), known))
    opened = files.FileSource(file_pattern(source), registry, batch_rows_max=settings.batch_rows_max, stop=stop)
    return Input(
        opened,
        files.TOPIC,
        opened.partitions,
        False,
        opened.share_read,
        opened.events_read,
        state_at=lambda partition, _: place(opened.partitions[partition], (known or {})[partition]),
    )


def _open_kafka(
    settings: Settings,
    directory: DataDirectory,
    stop: threading.Event,
    accept_within_us: int | None,
    first_counted: Callable[[int], int | None],
    counted: Callable[[], Mapping[int, Wanted]] | None,
) -> Input:
    known = directory.read("topic")
    topic = examine(settings, directory, make_for_us=accept_within_us if counted is None else None)
    if known is None and counted is not None:
        check_counted(kafka_options(settings), topic, counted(), settings.kafka_wait_seconds)
    if accept_within_us is not None:
        before = 0 if known is None else int(known["partitions"])
        record = {"id": topic.id, "partitions": topic.partitions, "partitions_before": before}
        if record != known:
            directory.write("topic", record)
    else:
        before = 0 if known is None else int(known["partitions_before"])
    source = KafkaSource(
        kafka_options(settings),
        topic,
        batch_rows_max=settings.batch_rows_max,
        stop=stop,
        wait_seconds=settings.kafka_wait_seconds,
        group=settings.kafka_group,
        accepted_loss=parse_accepted_loss(settings.kafka_accept_loss),
        known_partitions=before,
        first_counted=first_counted,
    )
    return Input(
        source,
        topic.name,
        source.partitions,
        True,
        None,
        source.events_read,
        ends=source.ends,
        lags=source.lags,
        silent_seconds=source.silent_seconds,
        logged_until_us=source.logged_until_us,
        close=source.close,
        state_at=lambda _, counted: KafkaState(topic.id, *counted),
    )


def examine(
    settings: Settings, directory: DataDirectory, *, make_for_us: int | None, seconds_max: float | None = None
) -> Topic:
    """The topic, if it can be counted from and is the one that was read before.

    Args:
        settings: Of this run.
        directory: Has the record of what was read before, if anything was.
        make_for_us: How long events are accepted, to make a missing topic of a new deployment; None: it is not made.
        seconds_max: How long to wait for Kafka, if not as long as the settings say.

    Raises:
        TallyError: it cannot, or is not; says what to do.
    """
    known = directory.read("topic")
    plan = None
    if known is None and make_for_us is not None:
        retention_ms = (make_for_us + RETENTION_SPARE_US) // 1000
        plan = Plan(settings.kafka_partitions, settings.kafka_replication, retention_ms)
    topic = open_topic(
        kafka_options(settings), settings.kafka_topic, plan=plan, seconds_max=seconds_max or settings.kafka_wait_seconds
    )
    if known is not None:
        check_known(topic, str(known["id"]), int(known["partitions"]))
    return topic

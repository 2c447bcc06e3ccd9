"""Which ids of the log count, and whether the ledger has each of them once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tests.audit.evidence import Message
from tests.oracle import Tables
from tests.oracle.catalogs import History
from tests.oracle.events import FUTURE_SKEW_US, Event, Position, Rejected, attributes_of, payloads, read
from tests.oracle.subscriptions import TYPE, Register

REPEATS = ("duplicate", "conflict")


@dataclass
class Log:
    """The log's events by position, each judged alone."""

    valid: dict[Position, Event] = field(default_factory=dict)
    invalid: dict[Position, Rejected] = field(default_factory=dict)
    payloads: dict[Position, bytes] = field(default_factory=dict)
    messages: dict[int, int] = field(default_factory=dict)
    """By partition, how many."""
    events: dict[int, int] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    """By partition, the offset after the last message."""
    log_time_reached: int | None = None
    """The latest log time; None where log times are not the broker's."""

    @property
    def positions(self) -> set[Position]:
        return self.valid.keys() | self.invalid.keys()

    @classmethod
    def judged(cls, topic: str, messages: Sequence[Message], history: History) -> Log:
        log = cls()
        for message in messages:
            value, partition = message.value or b"", message.partition
            attributes = attributes_of(message.headers)
            parts = [value] if attributes else payloads(value)
            for index, payload in enumerate(parts):
                position = (topic, partition, message.offset, index)
                log.payloads[position] = payload
                outcome = read(payload, history, message.log_time_us, attributes)
                if isinstance(outcome, Event):
                    log.valid[position] = outcome
                else:
                    log.invalid[position] = outcome
            log.messages[partition] = log.messages.get(partition, 0) + 1
            log.events[partition] = log.events.get(partition, 0) + len(parts)
            log.ends[partition] = max(log.ends.get(partition, 0), message.offset + 1)
            if message.log_time_us is not None:
                log.log_time_reached = max(log.log_time_reached or 0, message.log_time_us)
        return log


@dataclass
class Findings:
    """What is wrong, and how many ids were lost or counted twice."""

    violations: list[str] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0

    def say(self, text: str) -> None:
        self.violations.append(text)


def check_positions(log: Log, topic: str, tables: Tables, findings: Findings) -> None:
    """Each event read is accepted or rejected, never both, and `progress` has counted them all."""
    events, rejects = tables.events.keys(), tables.rejects.keys()
    for name, positions in (
        ("neither accepted nor rejected", log.positions - events - rejects),
        ("both accepted and rejected", events & rejects),
        ("accepted, but not in the log", events - log.positions),
        ("rejected, but not in the log", rejects - log.positions),
    ):
        for position in sorted(positions):
            findings.say(f"events, rejects: {position} is {name}")
    for partition in sorted(log.messages.keys() | {key[1] for key in tables.progress}):
        row = tables.progress.get((topic, partition), {})
        read = {"messages": log.messages.get(partition, 0), "events": log.events.get(partition, 0)}
        for name, wanted in read.items():
            if row.get(name, 0) != wanted:
                findings.say(f"progress: partition {partition} has {row.get(name, 0)} {name} for {wanted} in the log")
        if row.get("next_offset", 0) < log.ends.get(partition, 0):
            findings.say(f"progress: partition {partition} is at {row.get('next_offset', 0)} of {log.ends[partition]}")
        judged = sum(1 for key in events | rejects if key[1] == partition)
        if judged != row.get("events", 0):
            findings.say(f"progress: partition {partition} has {row.get('events', 0)} events, {judged} were judged")


def check_ids(log: Log, tables: Tables, findings: Findings) -> None:
    """The ids counted are the valid ids of the log, each once; what was refused was refused rightly."""
    for position, judged in log.invalid.items():
        row = tables.rejects.get(position)
        if row is not None and row["reason"] != judged.reason:
            findings.say(f"rejects: {position} is {judged.reason}, not {row['reason']}")
        if position in tables.events:
            findings.doubled += 1
            findings.say(f"events: {position} counts, but is {judged.reason}")
    for position, row in tables.events.items():
        event = log.valid.get(position)
        if event is not None and not _is_of(row, event, log.payloads[position]):
            findings.say(f"events: {position} is not what stands in the log: {row}")
    by_id: dict[tuple[str, str], list[Position]] = {}
    for position, event in log.valid.items():
        by_id.setdefault((event.source, event.id), []).append(position)
    for key, positions in by_id.items():
        if len(positions) == 1 and positions[0] in tables.events:
            continue
        _check_id(key, sorted(positions), log, tables, findings)


def _check_id(key: tuple[str, str], positions: list[Position], log: Log, tables: Tables, findings: Findings) -> None:
    """Of the valid events of one id, those that count are far apart, and each of the others repeats one."""
    holders = [p for p in positions if p in tables.events or _reason(tables, p) == "subscription_invalid"]
    for number, position in enumerate(holders):
        if any(_are_near(log.valid[position], log.valid[other]) for other in holders[:number]):
            findings.doubled += 1
            findings.say(f"events: the id {key} counts more than once: {holders}")
    for position in positions:
        if position in holders:
            continue
        event, row = log.valid[position], tables.rejects.get(position)
        near = [other for other in holders if _are_near(event, log.valid[other])]
        if not near:
            findings.lost += 1
            findings.say(f"events: the id {key} at {position} is valid and counts nowhere")
        elif row is not None:
            _check_repeat(position, row, near, log, findings)


def _check_repeat(position: Position, row: dict[str, object], near: list[Position], log: Log, found: Findings) -> None:
    first = row["first_position"]
    reason = row["reason"]
    if first not in near:
        found.say(f"rejects: {position} ({reason}) repeats {first}, but {near} counts")
        return
    assert isinstance(first, tuple)
    alike = log.valid[first].content == log.valid[position].content
    if reason != ("duplicate" if alike else "conflict"):
        found.say(f"rejects: {position} is a {'duplicate' if alike else 'conflict'} of {first}, not {reason}")
    if first[1] == position[1] and first > position:
        found.say(f"rejects: {position} repeats {first}, which comes later")


def _are_near(one: Event, other: Event) -> bool:
    """Whether one finds the other's claim: of the same or a neighbouring generation of log time."""
    generations = [event.log_time // (event.catalog.accept_within + FUTURE_SKEW_US) for event in (one, other)]
    return abs(generations[0] - generations[1]) <= 1


def _reason(tables: Tables, position: Position) -> object:
    return tables.rejects.get(position, {}).get("reason")


def _is_of(row: dict[str, object], event: Event, payload: bytes) -> bool:
    said = ("source", "id", "type", "subject", "time", "log_time")
    return row["payload"] == payload and all(row[name] == getattr(event, name) for name in said)


def counted(log: Log, tables: Tables, findings: Findings) -> dict[Position, Event]:
    """The ledger's events, each under the subscription that the ledger's earlier ones have made.

    A subscription event is in the ledger iff it fits those before it; `subscriptions` has a row of each.
    """
    register, out = Register(), {}
    refused = {p for p in tables.rejects if _reason(tables, p) == "subscription_invalid"}
    for position in sorted(p for p in tables.events.keys() | refused if p in log.valid):
        event = log.valid[position]
        if event.type == TYPE:
            fits = register.take(position[1], event) is not None
            if fits != (position in tables.events) or fits != (position in tables.subscriptions):
                findings.say(f"subscriptions: {position} {'fits' if fits else 'does not fit'} the ones before it")
        elif position in refused:
            findings.say(f"rejects: {position} is no subscription event")
        else:
            event = replace(event, terms=register.terms(position[1], event))
        if position in tables.events:
            out[position] = event
    return out

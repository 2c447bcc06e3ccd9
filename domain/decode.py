"""From raw bytes to events and rejects: a pure function of a batch and the catalog history.

The fast path is one msgspec call an event: a tagged union on `type` parses and validates envelope
and data together. Whatever that refuses, or cannot be trusted with (invalid UTF-8 in skipped
fields, deep nesting, size), is looked at again by `domain.classify`, which names the reason. An event
that the fast path refuses never becomes an event: at worst its reason is less precise.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import xxhash
from msgspec import UNSET, Meta, UnsetType
from numpy.typing import NDArray

from domain import classify, envelope
from domain.catalog import Catalog, CatalogVersion, EventType, History
from domain.instants import INVALID, parse_many
from domain.values import (
    EVENT_BYTES_MAX,
    FUTURE_SKEW_US,
    JSON_DEPTH_MAX,
    Batch,
    Events,
    Position,
    RawBatch,
    Reason,
    Refusal,
    Rejects,
)

_Text = Annotated[str, Meta(min_length=1)]
_FAULTS = (msgspec.DecodeError, RecursionError, ValueError, InvalidOperation)
_pack = msgspec.msgpack.Encoder().encode


class _Times(msgspec.Struct):
    time: str | UnsetType = UNSET
    logtime: str | UnsetType = UNSET


class _NoEvent(msgspec.Struct, tag_field="type", tag=""):
    """Fits nothing. msgspec does not ask for the tag of a union of one, and a catalog may have one type."""

    specversion: Literal["none"]


_decode_times = msgspec.json.Decoder(_Times).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode


def content_hash(type_name: str, subject: str, time_us: int, canonical: bytes) -> int:
    """64 bits over what can be billed. Never 0, which stands for an unknown content."""
    return xxhash.xxh3_64_intdigest(_pack((type_name, subject, time_us)) + canonical) or 1


class _Version:
    """One catalog version, compiled: a decoder for each kind of source."""

    def __init__(self, version: CatalogVersion) -> None:
        self.number = version.version
        self.catalog = version.catalog
        types = self.catalog.event_types
        self.from_files = _decoder(self.catalog, with_logtime=True)
        self.from_broker = _decoder(self.catalog, with_logtime=False)
        self.refines = [t for t in types.values() if t.schema.refine is not None]
        self.canonical = {name: t.schema.canonical for name, t in types.items()}


def decoder_of(catalog: Catalog) -> Callable[[bytes], Any]:
    """msgspec's part of the work alone: one file event parsed and validated, or an exception (for benchmarks)."""
    return _decoder(catalog, with_logtime=True)


def _decoder(catalog: Catalog, *, with_logtime: bool) -> Callable[[bytes], Any]:
    union: Any = _NoEvent
    for i, event_type in enumerate(catalog.event_types.values()):
        union = union | _envelope(i, event_type, with_logtime)
    return msgspec.json.Decoder(union, float_hook=Decimal).decode


def _envelope(number: int, event_type: EventType, with_logtime: bool) -> Any:
    """The CloudEvents envelope of one event type as a msgspec struct, tagged by `type`."""
    fields: list[Any] = [
        ("specversion", Literal["1.0"]),
        ("id", _Text),
        ("source", _Text),
        ("subject", _Text),
        ("data", event_type.schema.type),
        ("time", str | UnsetType, UNSET),
    ]
    if with_logtime:
        fields.append(("logtime", str | UnsetType, UNSET))
    namespace = {"event_type": event_type.name}
    return msgspec.defstruct(f"Event{number}", fields, namespace=namespace, tag_field="type", tag=event_type.name)


class BatchDecoder:
    """Decodes batches under a catalog history. Holds no state between batches."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._versions = {v.version: _Version(v) for v in history.versions}
        self._only = self._versions[history.versions[0].version] if len(history.versions) == 1 else None

    def decode(self, raw: RawBatch) -> Batch:
        """Split a batch into events (with their columns) and rejects, one of each for every event in it."""
        run = _Run(raw, self._history)
        payloads = run.plain_payloads()
        versions = self._versions_of(raw, payloads)
        run.decode(payloads, versions)
        run.refine(versions)
        run.place_in_time(self._versions)
        return Batch(raw, run.events(self._versions), run.rejects)

    def _versions_of(self, raw: RawBatch, payloads: list[bytes | None]) -> list[_Version | None]:
        """The version in force at each event's log time; None where that cannot be read."""
        if self._only is not None:
            return [self._only] * len(payloads)
        if raw.log_times_us is not None:
            return [self._versions[self._history.at(us).version] for us in raw.log_times_us]
        times = [_file_time(p) if p is not None else "" for p in payloads]
        known = parse_many(times)
        return [None if us == INVALID else self._versions[self._history.at(int(us)).version] for us in known]


def _file_time(payload: bytes) -> str:
    """The text that says a file event's log time; empty if it cannot be read."""
    try:
        times = _decode_times(payload)
    except _FAULTS:
        return _last_file_time(payload)
    text = times.time if times.logtime is UNSET else times.logtime
    return "" if text is UNSET else text


def _last_file_time(payload: bytes) -> str:
    """The same where a time is repeated and was no text at first: of repeated keys the last wins."""
    try:
        fields = _decode_fields(payload)
        return _decode_text(fields["logtime"] if "logtime" in fields else fields["time"])
    except (*_FAULTS, KeyError):
        return ""


class _Run:
    """One batch being decoded; `kept` are the indexes of the events still standing, in order."""

    def __init__(self, raw: RawBatch, history: History) -> None:
        self.raw = raw
        self.rejects = Rejects()
        self._history = history
        self._kept: list[int] = []
        self._decoded: list[Any] = []
        self._numbers: list[int] = []
        self._times: NDArray[np.int64] = np.empty(0, np.int64)
        self._log_times: NDArray[np.int64] = np.empty(0, np.int64)

    def plain_payloads(self) -> list[bytes | None]:
        """Each event as structured JSON; None for one that is refused unread."""
        payloads: list[bytes | None] = list(self.raw.payloads)
        if self.raw.attributes is not None:
            for i, attributes in enumerate(self.raw.attributes):
                if attributes is not None:
                    payloads[i] = _structured(attributes, self.raw.payloads[i])
        if not all(map(bytes.isascii, self.raw.payloads)):
            for i, payload in enumerate(payloads):
                if payload is not None and not payload.isascii() and not _is_utf8(payload):
                    payloads[i] = None
        if max(map(len, self.raw.payloads), default=0) > JSON_DEPTH_MAX:
            for i, (payload, received) in enumerate(zip(payloads, self.raw.payloads, strict=True)):
                if payload is not None and len(received) > JSON_DEPTH_MAX and _refused_unread(payload, received):
                    payloads[i] = None
        return payloads

    def decode(self, payloads: list[bytes | None], versions: list[_Version | None]) -> None:
        """Decode what can be decoded; hand the rest to `classify`."""
        from_files = self.raw.log_times_us is None
        kept, decoded, numbers = self._kept, self._decoded, self._numbers
        for i, (payload, version) in enumerate(zip(payloads, versions, strict=True)):
            event = None
            if payload is not None and version is not None:
                decoder = version.from_files if from_files else version.from_broker
                try:
                    event = decoder(payload)
                except _FAULTS:
                    event = self._second_look(i, decoder)
            else:
                self._second_look(i, None)
            if event is not None and version is not None:
                kept.append(i)
                decoded.append(event)
                numbers.append(version.number)

    def refine(self, versions: list[_Version | None]) -> None:
        """Check what msgspec cannot express, and turn numbers into scaled integers."""
        refines = {(v.number, t.name): t.schema.refine for v in {*versions} - {None} if v for t in v.refines}
        if not refines:
            return
        drop = set()
        for k, (event, number) in enumerate(zip(self._decoded, self._numbers, strict=True)):
            refine = refines.get((number, event.event_type))
            if refine is not None and refine(event.data) is not None:
                drop.add(k)
                self._second_look(self._kept[k], None)
        self._drop(drop)

    def place_in_time(self, versions: dict[int, _Version]) -> None:
        """Read times and log times, and refuse what has none or lies outside the accepted span."""
        self._read_times()
        ahead = self._times - self._log_times > FUTURE_SKEW_US
        limits = {number: versions[number].catalog.accept_within_us for number in set(self._numbers)}
        within = np.array([limits[n] for n in self._numbers], np.int64)
        late = self._log_times - self._times > within
        drop = set()
        for k in np.flatnonzero(ahead | late).tolist():
            drop.add(k)
            gap = classify.gap_text(int(self._times[k]), int(self._log_times[k]))
            reason = Reason.TIME_IN_FUTURE if ahead[k] else Reason.TOO_LATE
            self._reject(self._kept[k], Refusal(reason, gap, int(self._log_times[k]), *_key(self._decoded[k])))
        self._drop(drop)

    def _read_times(self) -> None:
        """Times and log times of what stands; an event without a usable one is refused."""
        own = [e.time for e in self._decoded]
        times = parse_many([t or "" for t in own])
        absent = np.array([t is UNSET for t in own], np.bool_)
        if self.raw.log_times_us is not None:
            given = self.raw.log_times_us
            log_times = np.array([given[i] for i in self._kept], np.int64)
        else:
            marks = [e.logtime for e in self._decoded]
            unmarked = np.array([m is UNSET for m in marks], np.bool_)
            log_times = times
            if not unmarked.all():
                log_times = np.where(unmarked, times, parse_many([m or "" for m in marks]))
        times = np.where(absent, log_times, times)
        bad = np.flatnonzero((times == INVALID) | (log_times == INVALID)).tolist()
        self._times, self._log_times = times, log_times
        for k in bad:
            self._second_look(self._kept[k], None)
        self._drop(set(bad))

    def events(self, versions: dict[int, _Version]) -> Events:
        """The columns of what stands."""
        raw, kept, decoded = self.raw, self._kept, self._decoded
        times = self._times.tolist()
        canonicals = {number: versions[number].canonical for number in set(self._numbers)}
        whole = len(kept) == len(raw.payloads)

        def pick(column: list[Any]) -> list[Any]:
            return column if whole else [column[i] for i in kept]

        return Events(
            offsets=pick(raw.offsets),
            indexes=pick(raw.indexes),
            log_times_us=self._log_times.tolist(),
            times_us=times,
            sources=[e.source for e in decoded],
            ids=[e.id for e in decoded],
            types=[e.event_type for e in decoded],
            subjects=[e.subject for e in decoded],
            payloads=pick(raw.payloads),
            attributes=None if raw.attributes is None else pick(raw.attributes),
            data=[e.data for e in decoded],
            contents=[
                content_hash(e.event_type, e.subject, us, canonicals[n][e.event_type](e.data))
                for e, us, n in zip(decoded, times, self._numbers, strict=True)
            ],
            catalog_versions=list(self._numbers),
        )

    def _second_look(self, i: int, decoder: Callable[[bytes], Any] | None) -> Any:
        """Reject event `i` with the reason found; else what `decoder` makes of its plain form."""
        raw = self.raw
        attributes = raw.attributes[i] if raw.attributes is not None else None
        log_time_us = raw.log_times_us[i] if raw.log_times_us is not None else None
        found = classify.examine(raw.payloads[i], attributes, log_time_us, self._history)
        if isinstance(found, Refusal):
            self._reject(i, found)
            return None
        try:
            assert decoder is not None, "refused unread, yet without fault"
            return decoder(found)
        except (*_FAULTS, AssertionError) as error:
            self._reject(i, Refusal(Reason.SCHEMA_VIOLATION, f"not readable: {error}"))
            return None

    def _reject(self, i: int, refusal: Refusal) -> None:
        raw = self.raw
        self.rejects.add(Position(raw.partition, raw.offsets[i], raw.indexes[i]), raw.payloads[i], refusal)

    def _drop(self, drop: set[int]) -> None:
        """Remove the given places from everything that is parallel to `_kept`."""
        if not drop:
            return
        keep = [k for k in range(len(self._kept)) if k not in drop]
        self._kept = [self._kept[k] for k in keep]
        self._decoded = [self._decoded[k] for k in keep]
        self._numbers = [self._numbers[k] for k in keep]
        if len(self._times):
            self._times, self._log_times = self._times[keep], self._log_times[keep]


def _structured(attributes: dict[str, str], payload: bytes) -> bytes | None:
    try:
        return envelope.structured(attributes, payload)
    except ValueError:
        return None


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _refused_unread(payload: bytes, received: bytes) -> bool:
    """Whether an event is too large (as it was received) or too deeply nested, whatever else it says."""
    return len(received) > EVENT_BYTES_MAX or envelope.too_deep(payload)


def _key(event: Any) -> tuple[str, str, str]:
    return event.source, event.id, event.subject

"""From raw bytes to events and rejects: a pure function of a batch and the catalog history.

The fast path is one msgspec call an event: a tagged union on `type` parses and validates envelope
and data together. Whatever that refuses, or cannot be trusted with (invalid UTF-8 in skipped
fields, deep nesting, size), is looked at again by `domain.classify`, which names the reason. An event
that the fast path refuses never becomes an event: at worst its reason is less precise.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from itertools import compress, groupby
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import xxhash
from msgspec import UNSET, Meta, UnsetType
from numpy.typing import NDArray

from domain import classify, envelope
from domain.catalog import Catalog, CatalogVersion, EventType, History
from domain.instants import INVALID, parse_many
from domain.schema import canonical
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


class _Times(msgspec.Struct):
    time: str | UnsetType = UNSET
    logtime: str | UnsetType = UNSET


class _NoEvent(msgspec.Struct, tag_field="type", tag=""):
    """Fits nothing. msgspec does not ask for the tag of a union of one, and a catalog may have one type."""

    specversion: Literal["none"]


_type_of = attrgetter("event_type")
_decode_times = msgspec.json.Decoder(_Times).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode


def content_hashes(decoded: list[Any], times_us: list[int]) -> list[int]:
    """Of each event, 64 bits over what can be billed. Never 0, which stands for an unknown content."""
    digest, encode = xxhash.xxh3_64_intdigest, canonical
    return [digest(encode((e.event_type, e.subject, us, e.data))) or 1 for e, us in zip(decoded, times_us, strict=True)]


class _Version:
    """One catalog version, compiled: a decoder for each kind of source."""

    def __init__(self, version: CatalogVersion) -> None:
        self.number = version.version
        self.catalog = version.catalog
        types = self.catalog.event_types
        self.from_files = _decoder(self.catalog, with_logtime=True)
        self.from_broker = _decoder(self.catalog, with_logtime=False)
        self.refines = [t for t in types.values() if t.schema.refine is not None]


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
    return msgspec.defstruct(
        f"Event{number}",
        fields,
        namespace={"event_type": event_type.name},
        tag_field="type",
        tag=event_type.name,
        gc=False,
    )


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
        return Batch(raw, run.events(), run.rejects)

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
        received, count = self.raw.payloads, len(payloads)
        ascii_only = np.fromiter(map(bytes.isascii, received), np.bool_, count)
        for i in np.flatnonzero(~ascii_only).tolist():
            payload = payloads[i]
            if payload is not None and not _is_utf8(payload):
                payloads[i] = None
        sizes = np.fromiter(map(len, received), np.int64, count)
        for i in np.flatnonzero(sizes > JSON_DEPTH_MAX).tolist():
            payload = payloads[i]
            if payload is not None and _refused_unread(payload, received[i]):
                payloads[i] = None
        return payloads

    def decode(self, payloads: list[bytes | None], versions: list[_Version | None]) -> None:
        """Decode what can be decoded; look at the rest again, one by one."""
        start = 0
        for version, run in groupby(versions):
            end = start + sum(1 for _ in run)
            if version is None:
                for i in range(start, end):
                    self._second_look(i, None)
            else:
                self._decode_run(payloads, version, start, end)
            start = end

    def _decode_run(self, payloads: list[bytes | None], version: _Version, start: int, end: int) -> None:
        """Decode neighbours under one version; a faulty event ends a stride, and the next begins behind it."""
        decoder = version.from_files if self.raw.log_times_us is None else version.from_broker
        kept, decoded, first = self._kept, self._decoded, len(self._decoded)
        rest = iter(payloads[start:end])
        i = start
        while True:
            held = len(decoded)
            try:
                decoded.extend(map(decoder, rest))  # type: ignore[arg-type]  # None is refused as any fault
            except (*_FAULTS, TypeError):
                stride = len(decoded) - held
                kept.extend(range(i, i + stride))
                i += stride
                event = self._second_look(i, None if payloads[i] is None else decoder)
                if event is not None:
                    kept.append(i)
                    decoded.append(event)
                i += 1
            else:
                kept.extend(range(i, end))
                break
        self._numbers.extend([version.number] * (len(decoded) - first))

    def refine(self, versions: list[_Version | None]) -> None:
        """Check what msgspec cannot express, and turn numbers into scaled integers."""
        refines = {(v.number, t.name): t.schema.refine for v in {*versions} - {None} if v for t in v.refines}
        if {name for _, name in refines}.isdisjoint(map(_type_of, self._decoded)):
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
        unread = self._read_times()
        times, log_times = self._times, self._log_times
        ahead = times - log_times > FUTURE_SKEW_US
        numbers = np.array(self._numbers, np.int64)
        within = np.zeros(len(numbers), np.int64)
        for number in set(self._numbers):
            within[numbers == number] = versions[number].catalog.accept_within_us
        late = log_times - times > within
        drop = np.flatnonzero(ahead | late | unread).tolist()
        for k in drop:
            if unread[k]:
                self._second_look(self._kept[k], None)
                continue
            gap = classify.gap_text(int(times[k]), int(log_times[k]))
            reason = Reason.TIME_IN_FUTURE if ahead[k] else Reason.TOO_LATE
            self._reject(self._kept[k], Refusal(reason, gap, int(log_times[k]), *_key(self._decoded[k])))
        self._drop(set(drop))

    def _read_times(self) -> NDArray[np.bool_]:
        """Read times and log times of what stands; returns where one of them cannot be read."""
        times, absent = _instants([e.time for e in self._decoded])
        if self.raw.log_times_us is not None:
            given = self.raw.log_times_us
            log_times = np.array([given[i] for i in self._kept], np.int64)
        else:
            marked, unmarked = _instants([e.logtime for e in self._decoded])
            log_times = np.where(unmarked, times, marked)
        times = np.where(absent, log_times, times)
        self._times, self._log_times = times, log_times
        unread: NDArray[np.bool_] = (times == INVALID) | (log_times == INVALID)
        return unread

    def events(self) -> Events:
        """The columns of what stands."""
        raw, kept, decoded = self.raw, self._kept, self._decoded
        times = self._times.tolist()
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
            contents=content_hashes(decoded, times),
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
        keep = [True] * len(self._kept)
        for k in drop:
            keep[k] = False
        self._kept = list(compress(self._kept, keep))
        self._decoded = list(compress(self._decoded, keep))
        self._numbers = list(compress(self._numbers, keep))
        if len(self._times):
            mask = np.array(keep, np.bool_)
            self._times, self._log_times = self._times[mask], self._log_times[mask]


def _instants(texts: list[str | UnsetType]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The instants of an attribute, and where it is absent (`INVALID` stands there)."""
    present = [i for i, text in enumerate(texts) if text is not UNSET]
    if len(present) == len(texts):
        return parse_many(texts), np.zeros(len(texts), np.bool_)  # type: ignore[arg-type]
    result = np.full(len(texts), INVALID, np.int64)
    absent = np.ones(len(texts), np.bool_)
    result[present] = parse_many([texts[i] for i in present])  # type: ignore[misc]
    absent[present] = False
    return result, absent


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

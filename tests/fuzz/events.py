"""What a message may say, judged by the product and by the oracle."""

from __future__ import annotations

from pathlib import Path

from config.catalog import load_history
from domain.decode import BatchDecoder
from domain.envelope import split
from sources.kafka_messages import attributes_of
from tests.batches import NOON, raw, us
from tests.oracle import events as oracle
from tests.oracle.catalogs import History, load

_SINCE = us("2026-03-10T12:00:00.000001Z")
_CATALOG = (Path(__file__).parent.parent / "kitchen_sink.yaml").read_text()
_STRICTER = _CATALOG.replace("required: [user]", "required: [user, device]")
_VERSIONS = [(1, 0, _CATALOG), (2, _SINCE, _STRICTER)]
_DECODER = BatchDecoder(load_history(_VERSIONS))
_ORACLE = History([load(*version) for version in _VERSIONS])
_STAMP_US = us(NOON)


def line(data: bytes) -> None:
    """A line of a file, or a message without headers: the same events, the same verdicts."""
    for stamp in (None, _STAMP_US):
        events = split(data)
        assert events == oracle.payloads(data)
        _agree(events, None, stamp)


def binary(data: bytes) -> None:
    """A message in binary mode: lines `name: value` as its headers, an empty line, its value."""
    head, _, value = data.partition(b"\n\n")
    headers = []
    for each in head.split(b"\n"):
        name, _, text = each.partition(b": ")
        headers.append((name.decode("ascii", "ignore"), text))
    attributes = attributes_of(headers)
    if attributes is None:
        return
    if any(map(_has_no_utf8, attributes.values())):  # the oracle has no notion of it
        assert _verdicts([value], [attributes], _STAMP_US)[0][0] == "malformed"
    else:
        _agree([value], attributes, _STAMP_US)


def _has_no_utf8(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def _agree(events: list[bytes], attributes: dict[str, str] | None, stamp: int | None) -> None:
    found = _verdicts(events, None if attributes is None else [attributes] * len(events), stamp)
    for event, verdict in zip(events, found, strict=True):
        expected = oracle.read(event, _ORACLE, stamp, attributes)
        if isinstance(expected, oracle.Event):
            assert verdict == ("accepted", expected.source, expected.id, expected.subject, expected.log_time)
        else:
            wanted = (expected.reason, expected.source, expected.id, expected.subject, expected.log_time)
            assert verdict == wanted, (verdict, wanted)


def _verdicts(
    events: list[bytes], attributes: list[dict[str, str]] | None, stamp: int | None
) -> list[tuple[str, str, str, str, int]]:
    """Of each event what became of it, with its key and log time."""
    stamps = None if stamp is None else [stamp] * len(events)
    batch = _DECODER.decode(raw(events, attributes=attributes, log_times_us=stamps))
    found = {
        offset: ("accepted", source, id_, subject, us)
        for offset, source, id_, subject, us in zip(
            batch.events.offsets,
            batch.events.sources,
            batch.events.ids,
            batch.events.subjects,
            batch.events.log_times_us,
            strict=True,
        )
    }
    rejects = batch.rejects
    for i, offset in enumerate(rejects.offsets):
        assert offset not in found, "accepted and rejected"
        key = (rejects.sources[i], rejects.ids[i], rejects.subjects[i], rejects.log_times_us[i])
        found[offset] = (str(rejects.reasons[i]), *key)
        assert rejects.details[i].encode() is not None, "a detail that no sink could take"
    return [found[offset] for offset in range(len(events))]

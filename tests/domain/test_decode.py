"""Decoding: every kind of bad input is one reject with its reason, and harms nobody else."""

from __future__ import annotations

import json
from dataclasses import fields
from itertools import combinations
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from domain.decode import BatchDecoder
from domain.instants import to_text
from domain.values import DAY_US, DETAIL_CHARS_MAX, EVENT_BYTES_MAX, FUTURE_SKEW_US, Events, RawBatch, Reason, Rejects
from tests.batches import NOON, event, history, payload, raw, timed, us
from tests.oracle.catalogs import History as OracleHistory
from tests.oracle.catalogs import load
from tests.oracle.events import Event, read

CATALOG = """
version: 1
timezone: UTC
currency: USD
accept_within: 35d
event_types:
  call:
    schema:
      type: object
      required: [n]
      properties:
        n: {type: integer, minimum: 0}
        x: {type: number}
        who: {type: string, maxLength: 20}
        tags: {type: array, items: {type: string}}
        note: {type: string, nullable: true}
        client: {type: object, properties: {os: {type: string}}}
  ping: {schema: {type: object}}
"""
SINCE = "2026-03-10T12:00:00.000001Z"
STRICTER = CATALOG.replace("[n]", "[n, who]").replace("  ping:", "  pong:")
ONE = BatchDecoder(history(CATALOG))
TWO = BatchDecoder(history(CATALOG, (SINCE, STRICTER)))
PAST = 35 * DAY_US


def with_data(text: str) -> bytes:
    return payload(data="%").replace(b'"%"', text.encode())


def with_text(old: str, new: bytes) -> bytes:
    return payload(id="%", source="?").replace(old.encode(), new)


BAD: list[tuple[bytes, Reason, str]] = [
    # broken JSON
    (b"", Reason.MALFORMED, "empty"),
    (b" \t\r", Reason.MALFORMED, "empty"),
    (b"{", Reason.MALFORMED, "truncated"),
    (payload()[:-1], Reason.MALFORMED, "truncated"),
    (payload() + b"x", Reason.MALFORMED, "trailing"),
    (b"\xef\xbb\xbf" + payload(), Reason.MALFORMED, "malformed"),
    (b"null", Reason.MALFORMED, "null is no event"),
    (b"[ ]", Reason.MALFORMED, "[] is no event"),
    (with_data('{"n": NaN}'), Reason.MALFORMED, "invalid character"),
    (with_data('{"n": 1, "x": Infinity}'), Reason.MALFORMED, "invalid character"),
    (with_data('{"n": 1, "skipped": -Infinity}'), Reason.MALFORMED, "invalid"),
    (with_data('{"n": 01}'), Reason.MALFORMED, "invalid"),
    # not Unicode, in a used and in a skipped field, and as escapes
    (with_text("%", b"\xff"), Reason.MALFORMED, "not UTF-8: byte 0xff at 30"),
    (payload(skipped="%").replace(b"%", b"a\xc0\xaf"), Reason.MALFORMED, "not UTF-8: byte 0xc0"),
    (with_text("%", b"\xed\xa0\x80"), Reason.MALFORMED, "not UTF-8: byte 0xed"),
    (with_text("%", b"\\ud800"), Reason.MALFORMED, "surrogate"),
    (payload(skipped="%").replace(b"%", b"\\udfff"), Reason.MALFORMED, "surrogate"),
    (payload(skipped="%").replace(b"%", b"\x01"), Reason.MALFORMED, "invalid character (byte 143)"),
    # deep and large
    (with_data('{"n": 1, "skipped": ' + "[" * 499 + "]" * 499 + "}"), Reason.MALFORMED, "nested deeper than 500"),
    (with_data("[" * 100_000 + "]" * 100_000), Reason.MALFORMED, "nested deeper than 500"),
    (payload(skipped="x" * EVENT_BYTES_MAX), Reason.OVERSIZED, "at most 1048576"),
    (payload() + b" " * EVENT_BYTES_MAX, Reason.OVERSIZED, "at most 1048576"),
    # JSON, but no CloudEvent
    (b"42", Reason.NOT_CLOUDEVENT, "expected an object, got int"),
    (b'"text"', Reason.NOT_CLOUDEVENT, "expected an object, got str"),
    (b"[1]", Reason.NOT_CLOUDEVENT, "expected an object, got list"),
    (b"{}", Reason.NOT_CLOUDEVENT, 'specversion: expected "1.0"'),
    (payload(specversion="0.3"), Reason.NOT_CLOUDEVENT, 'specversion: expected "1.0", got \'0.3\''),
    (payload(specversion=1.0), Reason.NOT_CLOUDEVENT, "specversion"),
    (payload(id=None), Reason.NOT_CLOUDEVENT, "id: required"),
    (payload(id=""), Reason.NOT_CLOUDEVENT, "id: expected a non-empty string, got ''"),
    (payload(source=7), Reason.NOT_CLOUDEVENT, "source: expected a non-empty string, got 7"),
    (payload(subject=["a" * 500]), Reason.NOT_CLOUDEVENT, "..."),
    (payload(type=None), Reason.NOT_CLOUDEVENT, "type: required"),
    (payload(time="yesterday"), Reason.NOT_CLOUDEVENT, "time: expected an RFC 3339 time with offset, 2000 to 2100"),
    (payload(time="2026-03-10T12:00:60Z"), Reason.NOT_CLOUDEVENT, "time:"),
    (payload(time="1999-12-31T23:59:59Z"), Reason.NOT_CLOUDEVENT, "time:"),
    (payload(time="2101-01-01T00:00:00Z"), Reason.NOT_CLOUDEVENT, "time:"),
    (payload(time=1772359200), Reason.NOT_CLOUDEVENT, "time:"),
    (payload().replace(f'"{NOON}"'.encode(), b"null"), Reason.NOT_CLOUDEVENT, "time: expected"),
    (payload(logtime="2026-03-10"), Reason.NOT_CLOUDEVENT, "logtime: expected"),
    (payload(time=None), Reason.NOT_CLOUDEVENT, "time: required in a file (or logtime)"),
    # a CloudEvent, but none of ours
    (payload(type="no.such"), Reason.UNKNOWN_TYPE, "type: 'no.such' is not in the catalog"),
    (payload(type="Call"), Reason.UNKNOWN_TYPE, "'Call'"),
    # wrong data
    (payload(data=None), Reason.SCHEMA_VIOLATION, "data: required"),
    (payload(data=[]), Reason.SCHEMA_VIOLATION, "data: must be an object, not an array"),
    (payload(data={}), Reason.SCHEMA_VIOLATION, "data.n: is missing"),
    (payload(data={"n": "1"}), Reason.SCHEMA_VIOLATION, "data.n: must be an integer, not a string"),
    (payload(data={"n": True}), Reason.SCHEMA_VIOLATION, "data.n: must be an integer, not a boolean"),
    (payload(data={"n": -1}), Reason.SCHEMA_VIOLATION, "data.n: must be at least 0"),
    (payload(data={"n": 1.0}), Reason.SCHEMA_VIOLATION, "without fraction or exponent"),
    (payload(data={"n": 10**15}), Reason.SCHEMA_VIOLATION, "data.n: must be less than 10^15"),
    (payload(data={"n": 2**64}), Reason.SCHEMA_VIOLATION, "data.n: must be less than 10^15"),
    (with_data('{"n": ' + "9" * 5000 + "}"), Reason.SCHEMA_VIOLATION, "data.n: must be"),
    (with_data('{"n": 1, "x": 1e15}'), Reason.SCHEMA_VIOLATION, "data.x: must be less than 10^15"),
    (with_data('{"n": 1, "x": -1e999999999999}'), Reason.SCHEMA_VIOLATION, "data.x: must be less than 10^15"),
    (with_data('{"n": 1, "x": 1e-13}'), Reason.SCHEMA_VIOLATION, "data.x: has more than 12 decimals"),
    (with_data('{"n": 1, "x": 0.' + "0" * 300 + "1}"), Reason.SCHEMA_VIOLATION, "data.x: has more than 12 decimals"),
    (with_data('{"n": 1, "x": "NaN"}'), Reason.SCHEMA_VIOLATION, "data.x: must be a number, not a string"),
    (payload(data={"n": 1, "who": "x" * 21}), Reason.SCHEMA_VIOLATION, "data.who: has 21 characters"),
    (payload(data={"n": 1, "tags": ["a", 1]}), Reason.SCHEMA_VIOLATION, "data.tags[1]: must be a string"),
    (payload(data={"n": 1, "client": {"os": 5}}), Reason.SCHEMA_VIOLATION, "data.client.os: must be a string"),
    # at the wrong time
    (payload(**timed(us(NOON) + FUTURE_SKEW_US + 1, us(NOON))), Reason.TIME_IN_FUTURE, "300.000001 s after"),
    (payload(time="2100-12-31T23:59:59Z", logtime=NOON), Reason.TIME_IN_FUTURE, "after the log time 2026-03-10T12"),
    (payload(**timed(us(NOON) - PAST - 1, us(NOON))), Reason.TOO_LATE, "3024000.000001 s before"),
    (payload(time="2000-01-01T00:00:00Z", logtime=NOON), Reason.TOO_LATE, "before the log time 2026-03-10T12"),
]  # fmt: skip
KEYED = {Reason.UNKNOWN_TYPE, Reason.SCHEMA_VIOLATION, Reason.TIME_IN_FUTURE, Reason.TOO_LATE}
SMALL = [row for row in BAD if len(row[0]) < 10_000]
GOOD = [
    payload(),
    payload(id="é😀\0", data={"n": 0, "x": 1e-12, "tags": [], "note": None}),
    payload(type="ping", data={"any": {"deep": [None, 1e300]}}),
    payload(time=None, logtime=NOON),
    payload(**timed(us(NOON) + FUTURE_SKEW_US, us(NOON))),
    payload(**timed(us(NOON) - PAST, us(NOON))),
    with_data('{"n": "x", "n": 2}'),
    with_data('{"n": 1, "skipped": ' + "[" * 498 + "]" * 498 + "}"),
]


def decode(batch: RawBatch, decoder: BatchDecoder = ONE) -> tuple[Events, Rejects]:
    done = decoder.decode(batch)
    assert done.raw is batch
    for part in (done.events, done.rejects):
        columns = [getattr(part, f.name) for f in fields(part)]
        assert {len(column) for column in columns if column is not None} == {len(part)}
    places = [*zip(done.events.offsets, done.events.indexes, strict=True)]
    assert places == sorted(places)
    places += zip(done.rejects.offsets, done.rejects.indexes, strict=True)
    assert sorted(places) == sorted(zip(batch.offsets, batch.indexes, strict=True))
    return done.events, done.rejects


def row(part: Events | Rejects, i: int) -> dict[str, Any]:
    """One event or reject, but for its position."""
    names = [f.name for f in fields(part) if f.name not in ("offsets", "indexes")]
    return {name: column[i] for name in names if (column := getattr(part, name)) is not None}


def comparable(part: Events | Rejects) -> list[dict[str, Any]]:
    return [{name: str(value) for name, value in row(part, i).items()} for i in range(len(part))]


@pytest.mark.parametrize(("bad", "reason", "detail"), BAD, ids=[f"{r}-{d[:40]}" for _, r, d in BAD])
@pytest.mark.parametrize("decoder", [ONE, TWO], ids=["one version", "two versions"])
def test_bad_input_is_one_reject(decoder: BatchDecoder, bad: bytes, reason: Reason, detail: str) -> None:
    events, rejects = decode(raw([payload(), bad, payload()], start=7), decoder)
    assert events.offsets == [7, 9]
    assert (rejects.offsets, rejects.indexes, rejects.payloads) == ([8], [0], [bad])
    assert rejects.reasons == [reason]
    assert detail in rejects.details[0]
    assert 0 < len(rejects.details[0]) <= DETAIL_CHARS_MAX
    known = (rejects.log_times_us, rejects.sources, rejects.ids, rejects.subjects)
    assert known == (([us(NOON)], ["s"], ["1"], ["a"]) if reason in KEYED else ([0], [""], [""], [""]))
    assert (rejects.firsts, rejects.first_contents) == ([None], [0])


def test_a_message_of_10_mb_is_one_reject() -> None:
    nested = payload(data={"n": 1, "skipped": "%"}).replace(b'"%"', b"[" * 5_000_000 + b"]" * 5_000_000)
    for large, reason in (
        (payload(skipped="é" * 5_000_000), Reason.OVERSIZED),
        (with_data('{"n": ' + "1" * 10_000_000 + "}"), Reason.OVERSIZED),
        (b"x" * 10_000_000, Reason.MALFORMED),
        (nested, Reason.MALFORMED),
    ):
        events, rejects = decode(raw([payload(), large, payload()]))
        assert (events.offsets, rejects.offsets, rejects.reasons) == ([0, 2], [1], [reason])


@pytest.mark.parametrize("good", GOOD)
def test_what_is_just_right_is_accepted(good: bytes) -> None:
    for decoder in (ONE, TWO):
        events, _ = decode(raw([good]), decoder)
        assert events.payloads == [good]


@given(st.lists(st.one_of(st.sampled_from(GOOD), st.sampled_from(SMALL)), max_size=12), st.sampled_from([ONE, TWO]))
def test_neighbours_are_unaffected(mixed: list[bytes | tuple[bytes, Reason, str]], decoder: BatchDecoder) -> None:
    good = [item for item in mixed if isinstance(item, bytes)]
    bad = [item for item in mixed if not isinstance(item, bytes)]
    events, rejects = decode(raw([item if isinstance(item, bytes) else item[0] for item in mixed]), decoder)
    assert events.payloads == good
    assert sorted(zip(rejects.payloads, rejects.reasons, strict=True)) == sorted(item[:2] for item in bad)
    alone, _ = decode(raw(good), decoder)
    assert comparable(events) == comparable(alone)


FAULTS: tuple[tuple[Reason, dict[str, Any]], ...] = (
    (Reason.MALFORMED, {"skipped": "%"}),
    (Reason.OVERSIZED, {"large": "x" * EVENT_BYTES_MAX}),
    (Reason.NOT_CLOUDEVENT, {"specversion": "0.3"}),
    (Reason.UNKNOWN_TYPE, {"type": "no.such"}),
    (Reason.SCHEMA_VIOLATION, {"data": {"n": -1}}),
    (Reason.TIME_IN_FUTURE, {"logtime": "2026-01-01T00:00:00Z"}),
    (Reason.TOO_LATE, {"logtime": "2027-01-01T00:00:00Z"}),
)


def test_of_several_faults_the_first_is_the_reason() -> None:
    times = {Reason.TIME_IN_FUTURE, Reason.TOO_LATE}
    chosen = [
        faults
        for count in range(1, len(FAULTS))
        for faults in combinations(FAULTS, count)
        if not times <= {reason for reason, _ in faults}
    ]
    for faults in chosen:
        changes = {name: value for _, change in faults for name, value in change.items()}
        for broken in (b"\\ud800", b"\xff"):
            _, rejects = decode(raw([payload(**changes).replace(b"%", broken)]))
            assert rejects.reasons == [faults[0][0]], [reason for reason, _ in faults]


TEXTS = st.text(st.characters(codec=None), min_size=1, max_size=6)


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS, st.booleans()), min_size=1, max_size=4))
@example([("\ud800", "s", "a", True)])
@example([("😀", "\0", "\u2028", True), ("1", "s", "\udc00\ud800", False)])
def test_what_is_accepted_can_be_stored(keys: list[tuple[str, str, str, bool]]) -> None:
    """Lone surrogates can be written as escapes; no sink could take them."""
    whole = [event(id=i, source=s, subject=a, data={"n": 1, "who": "x"}, skipped=i + a) for i, s, a, _ in keys]
    payloads = [
        json.dumps(e, ensure_ascii=escaped or not _is_text(e)).encode()
        for e, (*_, escaped) in zip(whole, keys, strict=True)
    ]
    events, rejects = decode(raw(payloads))
    assert rejects.reasons == [Reason.MALFORMED] * len(rejects)
    assert events.offsets == [n for n, e in enumerate(whole) if _is_text(e)]
    for part in (events, rejects):
        for column in (getattr(part, f.name) for f in fields(part)):
            for value in column or ():
                assert not isinstance(value, str) or value.encode() is not None


def _is_text(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


# Binary mode ----------------------------------------------------------------------------------------------------

ATTRIBUTES = {"specversion": "1.0", "id": "1", "source": "s", "type": "call", "subject": "a", "time": NOON}


def binary(value: bytes, **changes: str | None) -> tuple[Events, Rejects]:
    """Decode a binary-mode message between two structured ones."""
    attributes = {name: text for name, text in (ATTRIBUTES | changes).items() if text is not None}
    batch = raw([payload(), value, payload()], attributes=[None, attributes, None], log_times_us=[us(NOON)] * 3)
    return decode(batch)


def test_binary_mode_is_the_same_event() -> None:
    events, rejects = binary(b' {"n": 1} ')
    assert not len(rejects)
    assert events.attributes == [None, ATTRIBUTES, None]
    assert events.payloads[1] == b' {"n": 1} '
    same = {name: column for name, column in row(events, 1).items() if name not in ("payloads", "attributes", "data")}
    assert same.items() <= row(events, 0).items()


@pytest.mark.parametrize(
    ("value", "changes", "reason"),
    [
        (b"", {}, Reason.MALFORMED),
        (b"null", {}, Reason.SCHEMA_VIOLATION),
        (b'{"n": 1}, "subject": "somebody else"', {}, Reason.MALFORMED),
        (b'{"n": 1}, "subject": "b", "x": {"y": 1', {}, Reason.MALFORMED),
        (b'{"n": 1}} {', {}, Reason.MALFORMED),
        (b'{"n": "\xff"}', {}, Reason.MALFORMED),
        (b'{"n": 1, "skipped": "\\ud800"}', {}, Reason.MALFORMED),
        (b"[" * 500 + b"]" * 500, {}, Reason.MALFORMED),
        (b'{"n": 1}', {"id": "\udcff"}, Reason.MALFORMED),
        (b'{"n": 1}', {"data": "\udcff"}, Reason.MALFORMED),
        (b'{"n": 1}', {"e\udcff": "1"}, Reason.MALFORMED),
        (b'{"n": 1}' + b" " * EVENT_BYTES_MAX, {}, Reason.OVERSIZED),
        (b'{"n": 1}', {"specversion": None}, Reason.NOT_CLOUDEVENT),
        (b'{"n": 1}', {"subject": ""}, Reason.NOT_CLOUDEVENT),
        (b'{"n": 1}', {"time": "noon"}, Reason.NOT_CLOUDEVENT),
        (b'{"n": 1}', {"type": "no.such"}, Reason.UNKNOWN_TYPE),
        (b'{"n": -1}', {}, Reason.SCHEMA_VIOLATION),
        (b'{"n": -1}', {"data": '{"n": 1}'}, Reason.SCHEMA_VIOLATION),
        (b'{"n": 1}', {"time": "2026-03-10T12:05:00.000001Z"}, Reason.TIME_IN_FUTURE),
        (b'{"n": 1}', {"time": "2026-01-01T00:00:00Z"}, Reason.TOO_LATE),
    ],
)  # fmt: skip
def test_bad_binary_input_is_one_reject(value: bytes, changes: dict[str, str | None], reason: Reason) -> None:
    events, rejects = binary(value, **changes)
    assert (events.offsets, events.subjects) == ([0, 2], ["a", "a"])
    assert (rejects.offsets, rejects.reasons, rejects.payloads) == ([1], [reason], [value])
    assert rejects.details[0].encode()


def test_nothing_in_a_binary_value_becomes_an_attribute() -> None:
    smuggled = b'{"n": 1, "subject": "b", "type": "ping", "time": "2000-01-01T00:00:00Z", "\\u0069d": "2"}'
    events, _ = binary(smuggled, data='{"n": 7}', quoted='","subject":"b"')
    assert (events.subjects[1], events.types[1], events.ids[1], events.times_us[1]) == ("a", "call", "1", us(NOON))
    assert events.contents[1] == events.contents[0]


def test_size_is_that_of_the_binary_value_as_received() -> None:
    largest = b'{"n": 1}' + b" " * (EVENT_BYTES_MAX - 8)
    assert binary(largest)[0].offsets == [0, 1, 2]
    skipped = b'{"n": 1, "skipped": "%s"}'
    full = skipped % (b"x" * (EVENT_BYTES_MAX - len(skipped) + 2))
    assert len(full) == EVENT_BYTES_MAX
    assert binary(full)[0].offsets == [0, 1, 2]


# Log times of the broker ----------------------------------------------------------------------------------------


def test_without_time_the_brokers_log_time_is_the_time() -> None:
    log_times = [us(NOON), us(NOON) + 1]
    events, rejects = decode(raw([payload(time=None)] * 2, log_times_us=log_times))
    assert not len(rejects)
    assert events.times_us == events.log_times_us == log_times


@pytest.mark.parametrize("logtime", ["2020-01-01T00:00:00Z", "yesterday", 7, [], {"logtime": 1}])
def test_in_a_broker_logtime_is_any_extension(logtime: object) -> None:
    events, _ = decode(raw([payload(logtime=logtime)], log_times_us=[us(NOON)]))
    assert events.log_times_us == [us(NOON)]


def test_a_reject_of_a_broker_always_has_its_log_time() -> None:
    for decoder in (ONE, TWO):
        _, rejects = decode(raw([bad for bad, _, _ in SMALL], log_times_us=[us(NOON)] * len(SMALL)), decoder)
        assert set(rejects.log_times_us) == {us(NOON)}


# Catalog versions -----------------------------------------------------------------------------------------------

CANDIDATES = [
    {},
    {"data": {"n": 1, "who": "w"}},
    {"type": "ping", "data": {}},
    {"type": "pong", "data": {}},
    {"data": {"n": -1}},
    {"specversion": "0.3"},
]
moments = st.integers(-2, 2).map(lambda n: us(SINCE) + n) | st.just(us(SINCE) + DAY_US) | st.just(us(SINCE) - DAY_US)


@given(st.lists(st.tuples(st.sampled_from(CANDIDATES), moments, moments), max_size=8), st.booleans())
def test_the_version_in_force_at_the_log_time_decides(
    rows: list[tuple[dict[str, Any], int, int]], in_broker: bool
) -> None:
    """A batch under two versions is each of its events under its own."""
    stricter = BatchDecoder(history(STRICTER))
    log_times = [log_time for *_, log_time in rows] if in_broker else None
    written = [payload(**change, **timed(time, None if in_broker else log_time)) for change, time, log_time in rows]
    events, rejects = decode(raw(written, log_times_us=log_times), TWO)
    for i, (_, _, log_time) in enumerate(rows):
        one = raw([written[i]], start=i, log_times_us=None if log_times is None else [log_time])
        number = 2 if log_time >= us(SINCE) else 1
        alone, refused = decode(one, stricter if number == 2 else ONE)
        if len(alone):
            k = events.offsets.index(i)
            assert (
                row(events, k).items()
                >= {
                    **{
                        name: value for name, value in row(alone, 0).items() if name not in ("data", "catalog_versions")
                    },
                    "catalog_versions": number,
                }.items()
            )
        else:
            assert row(rejects, rejects.offsets.index(i)) == row(refused, 0)


@pytest.mark.parametrize(
    "times",
    [
        '"time": 5, "time": "AT"',
        '"time": "x", "time": "AT"',
        '"logtime": null, "logtime": "AT", "time": "AT"',
        '"time": {}, "logtime": "AT", "time": "AT"',
        '"\\u0074ime": [], "time": "AT"',
    ],
)  # fmt: skip
def test_a_repeated_time_is_the_last_under_any_number_of_versions(times: str) -> None:
    for number, at in ((1, us(SINCE) - 1), (2, us(SINCE))):
        text = times.replace("AT", to_text(at))
        whole = payload(time="%", data={"n": 1, "who": "w"}).replace(b'"time": "%"', text.encode())
        events, rejects = decode(raw([whole]), TWO)
        assert not len(rejects), rejects.details
        assert (events.times_us, events.catalog_versions) == ([at], [number])


# Repeated keys, and what is billed ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "column", "value"),
    [
        ('"id": "1"', '"id": 5, "id": "2"', "ids", "2"),
        ('"subject": "a"', '"subject": "", "subject": "b"', "subjects", "b"),
        ('"type": "call"', '"type": "ping", "type": "call"', "types", "call"),
        ('"type": "call"', '"type": "call", "type": "ping"', "types", "ping"),
        ('"type": "call"', '"type": 1, "t\\u0079pe": "ping"', "types", "ping"),
        ('"specversion": "1.0"', '"specversion": "0.3", "specversion": "1.0"', "ids", "1"),
        ('"data": {"n": 1}', '"data": 1, "data": {"n": -1}, "data": {"n": 3, "n": 1}', "ids", "1"),
    ],
)
def test_of_repeated_keys_the_last_wins(old: str, new: str, column: str, value: str) -> None:
    written = payload().replace(old.encode(), new.encode())
    assert written != payload()
    for decoder in (ONE, TWO):
        events, rejects = decode(raw([written]), decoder)
        assert not len(rejects), rejects.details
        assert getattr(events, column) == [value]


def test_of_repeated_keys_the_last_may_be_the_wrong_one() -> None:
    _, rejects = decode(raw([with_data('{"n": 1, "n": "x"}'), payload().replace(b'"id": "1"', b'"id": "1", "id": 1')]))
    assert dict(zip(rejects.offsets, rejects.reasons, strict=True)) == {
        0: Reason.SCHEMA_VIOLATION,
        1: Reason.NOT_CLOUDEVENT,
    }


NUMBERS = {
    "x": ["1.5", "1.50", "15e-1", "0.15E+1", "1.500000000000000000"],
    "y": ["0", "-0", "0.0", "-0.0e5", "0e-999"],
    "z": ["100", "1e2", "100.000", "10E1"],
}


@st.composite
def spellings(draw: st.DrawFn, x: str, who: str) -> bytes:
    """One of the ways to write an event down."""
    space = draw(st.sampled_from(["", " ", "\t", "\r"]))

    def text(value: str) -> str:
        escaped = draw(st.sampled_from(["", "e", "é", "t"]))
        return json.dumps(value, ensure_ascii=False).replace(escaped or "\0", f"\\u{ord(escaped or ' '):04x}")

    def members(pairs: list[tuple[str, str]]) -> str:
        return "{" + f",{space}".join(f"{text(k)}{space}:{v}{space}" for k, v in draw(st.permutations(pairs))) + "}"

    data = [
        ("n", "7"),
        ("x", draw(st.sampled_from(NUMBERS[x]))),
        ("who", text(who)),
        ("client", members([("os", '"l"')])),
    ]
    data += draw(st.lists(st.sampled_from([("note", "null"), ("undeclared", "[1e999]")]), unique=True))
    time = draw(st.sampled_from([NOON, "2026-03-10T13:00:00.0000000009+01:00", "2026-03-10t12:00:00.000z"]))
    names = {"specversion": "1.0", "id": "1", "source": "s", "type": "call", "subject": "a", "time": time}
    attributes = [(name, text(value)) for name, value in names.items()]
    attributes += draw(st.lists(st.sampled_from([("traceparent", '"t"'), ("logtime", f'"{NOON}"')]), unique=True))
    return members([*attributes, ("data", members(data))]).encode()


@given(st.data())
def test_the_content_hash_is_equal_iff_what_is_billed_is(data: st.DataObject) -> None:
    kinds = [(data.draw(st.sampled_from("xyz")), data.draw(st.sampled_from(["e", "é"]))) for _ in range(2)]
    events, rejects = decode(raw([data.draw(spellings(*kind)) for kind in kinds]))
    assert not len(rejects), rejects.details
    assert (events.contents[0] == events.contents[1]) == (kinds[0] == kinds[1])


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"id": "2", "source": "t", "extension": "e"}, True),
        ({"logtime": "2026-03-10T13:00:00Z"}, True),
        ({"data": {"n": 1, "undeclared": 5}}, True),
        ({"data": {"n": 1, "note": None}}, True),
        ({"subject": "b"}, False),
        ({"time": "2026-03-10T12:00:00.000001Z"}, False),
        ({"type": "ping"}, False),
        ({"data": {"n": 2}}, False),
        ({"data": {"n": 1, "x": 0}}, False),
        ({"data": {"n": 1, "who": ""}}, False),
    ],
)
def test_what_counts_as_content(changes: dict[str, Any], same: bool) -> None:
    events, _ = decode(raw([payload(), payload(**changes)]))
    assert (events.contents[0] == events.contents[1]) is same
    assert 0 not in events.contents


# All of it, against the oracle ----------------------------------------------------------------------------------

ORACLE = {
    ONE: OracleHistory([load(1, 0, CATALOG)]),
    TWO: OracleHistory([load(1, 0, CATALOG), load(2, us(SINCE), STRICTER)]),
}
SCRAPS = [
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"null", b"1e5", b"-", b".", b"0", b"\xff", b"\\u0000", b"\\ud83d",
    b"\\ude00", b" ", b"\n", b"\x0b", b'"time":5,', b'"n":1,', b'"type":"ping",', b"true", b"NaN", b"1.0",
    "é".encode(), b'"data":{},', b'"logtime":"2026-03-10T12:00:01Z",',
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good event with some bytes cut out and some put in, mostly where that still makes JSON."""
    written = draw(st.sampled_from(GOOD[:7]))
    for _ in range(draw(st.integers(0, 2))):
        edges = [i + 1 for i, byte in enumerate(written) if byte in b'{,: "']
        low = draw(st.sampled_from(edges))
        high = low + draw(st.sampled_from([0, 0, 0, 1, 3]))
        written = written[:low] + draw(st.sampled_from(SCRAPS)) + written[high:]
    return written


@settings(max_examples=300)
@given(st.lists(damaged(), min_size=1, max_size=6), st.sampled_from([ONE, TWO]))
def test_damaged_events_are_judged_as_the_oracle_does(payloads: list[bytes], decoder: BatchDecoder) -> None:
    events, rejects = decode(raw(payloads), decoder)
    for i, written in enumerate(payloads):
        expected = read(written, ORACLE[decoder])
        if isinstance(expected, Event):
            found = row(events, events.offsets.index(i))
            assert (found["times_us"], found["log_times_us"], found["types"], found["catalog_versions"]) == (
                expected.time, expected.log_time, expected.type, expected.catalog.version,
            )  # fmt: skip
        else:
            refused = row(rejects, rejects.offsets.index(i))
            found_key = (refused["sources"], refused["ids"], refused["subjects"], refused["log_times_us"])
            assert (refused["reasons"], found_key) == (
                expected.reason, (expected.source, expected.id, expected.subject, expected.log_time),
            )  # fmt: skip

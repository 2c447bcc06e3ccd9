"""The CloudEvents HTTP binding: content types, batches, lines, and attributes in headers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.cloudevents import (
    EVENTS_MAX,
    BadRequest,
    Mode,
    TooMany,
    Unsupported,
    attribute_value,
    attributes_of,
    divide,
    mode_of,
)


@pytest.mark.parametrize(
    ("content_type", "binary", "expected"),
    [
        ("application/cloudevents+json", False, Mode.STRUCTURED),
        ("Application/CloudEvents+JSON; charset=UTF-8", True, Mode.STRUCTURED),
        ("application/cloudevents-batch+json;charset=utf-8", False, Mode.BATCH),
        ("application/x-ndjson", False, Mode.LINES),
        ("application/json", True, Mode.BINARY),
        ("application/vnd.acme+json", True, Mode.BINARY),
        ("", True, Mode.BINARY),
    ],
)
def test_content_types(content_type: str, binary: bool, expected: Mode) -> None:
    headers = [(b"content-type", content_type.encode())] if content_type else []
    assert mode_of(headers + ([(b"ce-specversion", b"1.0")] if binary else [])) is expected


@pytest.mark.parametrize(
    ("content_type", "binary"),
    [
        ("application/json", False),
        ("", False),
        ("text/plain", True),
        ("application/cloudevents+xml", True),
        ("application/cloudevents+json; charset=latin-1", False),
        ("multipart/form-data; boundary=x", False),
    ],
)
def test_other_content_types_are_refused(content_type: str, binary: bool) -> None:
    with pytest.raises(Unsupported):
        mode_of([(b"content-type", content_type.encode()), *([(b"ce-specversion", b"1.0")] if binary else [])])


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (b"plain", "plain"),
        (b"Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),  # the example of the binding's text
        ("Jürgen".encode(), "Jürgen"),  # not encoded, as some clients send it
        (rb'"quoted \"text\" here"', 'quoted "text" here'),
        (b'"one sided', '"one sided'),
        (b"100%", "100%"),
        (b"%zz%4", "%zz%4"),
        (b"%2541", "%41"),  # decoded once only
        (b"", ""),
    ],
)
def test_values_of_headers(header: bytes, value: str) -> None:
    assert attribute_value(header) == value


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_whatever_is_percent_encoded_comes_back(text: str) -> None:
    """Encoded as the binding says: everything outside U+0021 to U+007E, and space, quote and percent."""
    encoded = "".join(
        c if "!" <= c <= "~" and c not in '"%' else "".join(f"%{byte:02X}" for byte in c.encode()) for c in text
    )
    assert attribute_value(encoded.encode()) == text


def test_attributes_of_a_binary_event() -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"ce-specversion", b"1.0"),
        (b"ce-subject", b"J%C3%BCrgen"),
        (b"authorization", b"Bearer x"),
    ]
    assert attributes_of(headers) == {
        "datacontenttype": "application/json",
        "specversion": "1.0",
        "subject": "Jürgen",
    }


@pytest.mark.parametrize(
    "headers",
    [
        [(b"ce-id", b"1"), (b"ce-id", b"2")],
        [(b"ce-id", b"%FF")],
        [(b"ce-my_id", b"1")],
        [(b"ce-", b"1")],
        [(b"ce-data", b"{}")],
    ],
)
def test_attributes_that_cannot_be_read(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(BadRequest):
        attributes_of(headers)


def test_elements_and_lines_keep_their_bytes() -> None:
    elements = [b'{"a": 1.50}', b"null", b'{ "b":"\\u00e9,]" }']
    batch = divide(Mode.BATCH, [], b" [ " + b" ,\n ".join(elements) + b"\t] ")
    assert (batch.indexes, batch.payloads) == ([0, 1, 2], elements)
    lines = divide(Mode.LINES, [], b'\n{"a": 1.50}\r\n\n{"b":2}')
    assert (lines.indexes, lines.payloads) == ([1, 3], [b'{"a": 1.50}', b'{"b":2}'])
    one = divide(Mode.STRUCTURED, [], b' {"a":1}\n')
    assert one.payloads == [b' {"a":1}\n']


@pytest.mark.parametrize("body", [b"", b"{}", b"[1,", b'[{"a":1}', b"\xff[]", b"7"])
def test_a_batch_that_is_none_is_one_event(body: bytes) -> None:
    assert divide(Mode.BATCH, [], body).payloads == [body]


@pytest.mark.parametrize("body", [b"[]", b" [ ] ", b"[\n]"])
def test_an_empty_batch_has_no_events(body: bytes) -> None:
    assert divide(Mode.BATCH, [], body).payloads == []


def test_more_events_than_a_request_may_have() -> None:
    at_most = json.dumps([{"a": [1, 2]}] * EVENTS_MAX).encode()
    assert len(divide(Mode.BATCH, [], at_most).payloads) == EVENTS_MAX
    for mode, body in (
        (Mode.BATCH, b"[" + b"1," * EVENTS_MAX + b"1]"),
        (Mode.BATCH, b"[" + b"1," * 1_000_000 + b"1]"),
        (Mode.LINES, b"1\n" * (EVENTS_MAX + 1)),
        (Mode.LINES, b"\n" * 1_000_000),
    ):
        with pytest.raises(TooMany):
            divide(mode, [], body)


def test_one_event_with_many_numbers_is_one_event() -> None:
    event = b'{"a":[' + b"1," * 500_000 + b"1]}"
    assert divide(Mode.BATCH, [], b"[" + event + b"]").payloads == [event]


def test_ten_thousand_events_of_twenty_properties_are_not_too_much() -> None:
    event = {f"property{i}": "value" for i in range(20)}
    assert len(divide(Mode.BATCH, [], json.dumps([event] * EVENTS_MAX).encode()).payloads) == EVENTS_MAX


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("part", [b"[,", b"[]", b"{}", b'""', b"["])
def test_a_body_of_nothing_but_structure_is_refused_at_once(mode: Mode, part: bytes) -> None:
    with pytest.raises(TooMany, match="values"):
        divide(mode, [], b"[" + part * (8 * 1024 * 1024 // len(part)))

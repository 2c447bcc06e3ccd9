"""Splitting messages into events, and putting binary-mode events together."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.envelope import depth, split, structured, too_deep
from domain.values import JSON_DEPTH_MAX

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
SPACE = st.text(alphabet=" \t\r\n", max_size=3)


@pytest.mark.parametrize(
    ("message", "events"),
    [
        (b'{"a": 1}', [b'{"a": 1}']),
        (b'[{"a": 1}]', [b'{"a": 1}']),
        (b'\r\n [ {"a" : [1 , 2]} ,\t{"b":2}]\r', [b'{"a" : [1 , 2]}', b'{"b":2}']),
        (b"[1, null, [2]]", [b"1", b"null", b"[2]"]),
        (b'["],[", 1e999999999]', [b'"],["', b"1e999999999"]),
        ('["é"]'.encode(), ['"é"'.encode()]),
    ],
)
def test_a_batch_gives_the_exact_bytes_of_each_element(message: bytes, events: list[bytes]) -> None:
    assert split(message) == events


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"   ",
        b"[]",
        b" [ ] ",
        b"[1,]",
        b"[1",
        b"[1] 2",
        b"[01]",
        b"[tru]",
        b'["\xff"]',
        b'["\xed\xa0\x80"]',
        b'["\\ud800"',
        b"\xef\xbb\xbf[1]",
        b"\x0b[1]",
        b"[" * 100_000,
        b"[" + b"[" * 1000 + b"}" * 1000 + b"}",
        b"null",
    ],
)
def test_everything_else_is_one_event_as_it_stands(message: bytes) -> None:
    assert split(message) == [message]


def test_depth_decides_not_the_stack() -> None:
    deepest = b"[" * JSON_DEPTH_MAX + b"]" * JSON_DEPTH_MAX
    assert split(deepest) == [deepest[1:-1]]
    assert split(b"[" + deepest + b"]") == [deepest]
    deeper = b"[" * 100_000 + b"]" * 100_000
    assert split(b"[1, " + deeper + b', "a]"]') == [b"1", deeper, b'"a]"']


def test_a_lone_surrogate_harms_its_own_element_only() -> None:
    assert split(b'[1, "\\ud800" ,[",\\\\ud800"]]') == [b"1", b'"\\ud800"', b'[",\\\\ud800"]']
    assert split(b'["\\ud800", tru]') == [b'["\\ud800", tru]']
    assert split(b'["\\ud800",]') == [b'["\\ud800",]']


def test_many_shallow_elements_are_not_deep() -> None:
    shallow = b"[" + b",".join([b"[]"] * JSON_DEPTH_MAX * 2) + b"]"
    assert len(split(shallow)) == JSON_DEPTH_MAX * 2


@given(st.lists(st.tuples(SPACE, JSON, SPACE), min_size=1, max_size=5), SPACE, SPACE)
def test_splitting_undoes_joining(elements: list[tuple[str, object, str]], before: str, after: str) -> None:
    texts = [json.dumps(value, ensure_ascii=False) for _, value, _ in elements]
    inner = ",".join(left + text + right for (left, _, right), text in zip(elements, texts, strict=True))
    assert split(f"{before}[{inner}]{after}".encode()) == [text.encode() for text in texts]


@given(st.binary(max_size=40) | st.text(alphabet='[]{}",:\\ 1a', max_size=40).map(str.encode))
def test_no_message_is_lost_and_none_raises(message: bytes) -> None:
    events = split(message)
    assert events
    assert events == [message] or json.loads(message) == [json.loads(event) for event in events]


@given(JSON)
def test_depth_is_that_of_the_value(value: object) -> None:
    def nested(value: object) -> int:
        match value:
            case list():
                return 1 + max(map(nested, value), default=0)
            case dict():
                return 1 + max(map(nested, value.values()), default=0)
            case _:
                return 0

    assert depth(json.dumps(value).encode()) == nested(value)


@pytest.mark.parametrize(
    ("message", "expected"), [(b'"[[[', 0), (b'"\\"[["[', 1), (b"]]][[", 0), (b"[{[", 3), (b'["\\\\"[', 2), (b"", 0)]
)
def test_depth_of_what_is_not_json(message: bytes, expected: int) -> None:
    assert depth(message) == expected


def test_too_deep() -> None:
    assert not too_deep(b"[" * JSON_DEPTH_MAX)
    assert too_deep(b"[" * (JSON_DEPTH_MAX + 1))
    assert not too_deep(b"[]" * (JSON_DEPTH_MAX + 1))


def test_binary_mode_becomes_a_structured_event() -> None:
    event = structured({"id": 'a"b', "type": "api.request", "data": "x"}, b' {"bytes": 1.50} ')
    assert event == b'{"id":"a\\"b","type":"api.request","data":{"bytes": 1.50}}'


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b'1, "subject": "somebody else"',
        b'1}, {"a": 2',
        b'"\xff"',
        b'{"a": }',
        b"[" * JSON_DEPTH_MAX + b"]" * JSON_DEPTH_MAX,
        b"[" * 100_000 + b"]" * 100_000,
    ],
)
def test_a_value_that_is_not_one_json_value_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the text is for the reject's detail
        structured({"id": "1"}, value)


def test_an_attribute_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        structured({"id": "\udcff"}, b"1")

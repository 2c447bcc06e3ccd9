"""Headers by the CloudEvents Kafka binding; what a broker delivers of them is in test_kafka.py."""

from __future__ import annotations

import pytest

from domain.envelope import structured
from sources.kafka_messages import Header, attributes_of
from sources.kafka_records import BAD_NAME


@pytest.mark.parametrize(
    ("headers", "attributes"),
    [
        ([], None),
        ([("trace", b"1"), ("content-type", b"application/json")], None),
        ([("ce_id", b"1")], {"id": "1"}),
        ([("ce_id", b"1"), ("ce_id", b"2")], {"id": "2"}),
        ([("ce_id", b"1"), ("ce_id", None)], None),
        ([("ce_id", None), ("ce_id", b"1")], {"id": "1"}),
        ([("ce_id", b"%41+b")], {"id": "%41+b"}),
        ([("ce_id", b"1"), ("Content-Type", b"text/json")], {"id": "1", "datacontenttype": "text/json"}),
        ([("ce_id", b"1"), ("content-type", None)], {"id": "1"}),
        ([("ce_id", b"1"), ("content-type", b" APPLICATION/cloudevents+json; charset=utf-8")], None),
        ([("ce_id", b"1"), ("content-type", b"application/cloudevents-batch+json")], None),
        ([("CE_id", b"1")], None),
        ([("trace" + BAD_NAME, b"1"), ("ce_id", b"1")], {"id": "1"}),
    ],
)
def test_headers_are_attributes_of_binary_mode(headers: list[Header], attributes: dict[str, str] | None) -> None:
    assert attributes_of(headers) == attributes


@pytest.mark.parametrize("header", [("ce_id", b"\xff"), ("ce_" + BAD_NAME, b"1"), ("content-type", b"\xc3\x28")])
def test_what_is_not_utf8_cannot_become_an_event(header: Header) -> None:
    attributes = attributes_of([("ce_source", b"s"), header])
    assert attributes is not None
    with pytest.raises(ValueError, match="surrogates"):
        structured(attributes, b"{}")

"""`tally ingest` as its clients meet it: a real server process over a real Kafka."""

from __future__ import annotations

import gzip
import json
import random
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka.partitioner.default import murmur2

from api.metrics import METRICS
from cli._broken import BROKEN
from domain.values import EVENT_BYTES_MAX, Reason
from tests.api.serving import Ingesting, await_ready, event, hurried, ingesting, stored
from tests.docs.markdown import ROOT
from tests.services.kafka import Kafka
from tests.services.ports import free_ports

TOPIC = "ingest"
PARTITIONS = 3
READ_SECONDS = 2.0
BODY_MAX = 3 * 1024 * 1024
WAIT_SECONDS = 3
(METRICS_PORT,) = free_ports(1)


@pytest.fixture(scope="module")
def server(kafka: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingesting]:
    """One server with small bounds, for all tests of this module."""
    kafka.create_topic(TOPIC, PARTITIONS, message_timestamp_type="LogAppendTime", max_message_bytes=2_000_000)
    settings = {
        "TALLY_INGEST_READ_SECONDS": str(READ_SECONDS),
        "TALLY_INGEST_BODY_BYTES_MAX": str(BODY_MAX),
        "TALLY_INGEST_INFLIGHT_BYTES_MAX": str(BODY_MAX),
        "TALLY_INGEST_CONNECTIONS_MAX": "40",
        "TALLY_INGEST_KAFKA_WAIT_SECONDS": str(WAIT_SECONDS),
        "TALLY_METRICS_PORT": str(METRICS_PORT),
    }
    with ingesting(
        tmp_path_factory.mktemp("ingest"), kafka.bootstrap, TOPIC, "--catalog", "api", **settings
    ) as running:
        await_ready(running)
        yield running


def as_json(*events: object) -> bytes:
    return json.dumps(events[0] if len(events) == 1 else events).encode()


def test_one_event_is_stored_as_it_was_sent(server: Ingesting, kafka: Kafka) -> None:
    body = (
        b' {"specversion":"1.0", "id":"spaces \\u00e9", "source":"/a","type":"api.request","subject":"J\xc3\xbcrgen",'
        b'"extension":"kept","data":{"region":"eu","bytes":12, "more":1.50}}\n'
    )
    answer = server.send(body)
    assert (answer.status, answer.json) == (
        202,
        {"accepted": 1, "rejected": 0, "events": [{"index": 0, "id": "spaces é", "status": "accepted"}]},
    )
    (message,) = [m for m in stored(kafka.bootstrap, TOPIC) if m.value == body]
    assert message.key == "Jürgen".encode()
    assert message.partition == (murmur2(message.key) & 0x7FFFFFFF) % PARTITIONS
    assert message.headers == {"content-type": b"application/cloudevents+json; charset=UTF-8"}


def test_a_batch_is_accepted_event_by_event(server: Ingesting, kafka: Kafka) -> None:
    elements = [as_json(event(f"batch-{i}", f"cust-{i}")) for i in range(20)]
    elements[3] = b'{"id":"batch-3"}'
    elements[5] = as_json(event("batch-5", bytes=-1))
    elements[7] = b"[" * 600 + b"]" * 600
    answer = server.send(b"[" + b" ,".join(elements) + b"]", "application/cloudevents-batch+json")
    assert answer.status == 207
    assert (answer.json["accepted"], answer.json["rejected"]) == (17, 3)
    refused = {e["index"]: e for e in answer.json["events"] if e["status"] == "rejected"}
    assert {i: e["reason"] for i, e in refused.items()} == {3: "not_cloudevent", 5: "schema_violation", 7: "malformed"}
    assert refused[5]["detail"] == "data.bytes: must be at least 0"
    assert [e["index"] for e in answer.json["events"]] == list(range(20))
    values = {message.value for message in stored(kafka.bootstrap, TOPIC)}
    assert values >= {e for i, e in enumerate(elements) if i not in refused}
    assert not values & {elements[i] for i in refused}


def test_lines(server: Ingesting, kafka: Kafka) -> None:
    lines = [as_json(event("line-0")), b"", as_json(event("line-2", region=7)), as_json(event("line-3"))]
    answer = server.send(b"\n".join(lines), "application/x-ndjson")
    assert (answer.status, answer.outcomes) == (207, ["accepted", "schema_violation", "accepted"])
    assert [e["index"] for e in answer.json["events"]] == [0, 2, 3]
    assert {lines[0], lines[3]} <= {message.value for message in stored(kafka.bootstrap, TOPIC)}


def test_binary_mode_becomes_the_binary_mode_of_kafka(server: Ingesting, kafka: Kafka) -> None:
    data = b'{"bytes": 5, "region": "eu"}'
    attributes = {
        "ce_specversion": "1.0",
        "ce_id": "%22binary%22%20%E2%82%AC",
        "ce_source": "/a",
        "ce_type": "api.request",
    }
    answer = server.send(data, "application/json", ce_subject="J%C3%BCrgen", ce_extension="kept", **attributes)
    assert (answer.status, answer.json["events"][0]["id"]) == (202, '"binary" €')
    (message,) = [m for m in stored(kafka.bootstrap, TOPIC) if m.headers.get("ce_id") == '"binary" €'.encode()]
    assert (message.key, message.value) == ("Jürgen".encode(), data)
    assert message.headers == {
        "content-type": b"application/json",
        "ce_specversion": b"1.0",
        "ce_id": '"binary" €'.encode(),
        "ce_source": b"/a",
        "ce_type": b"api.request",
        "ce_subject": "Jürgen".encode(),
        "ce_extension": b"kept",
    }
    forged = server.send(
        b'{"bytes":1,"region":"eu"},"subject":"other"', "application/json", ce_subject="me", **attributes
    )
    assert (forged.status, forged.outcomes) == (400, ["malformed"])
    repeated = server.send(data, "application/json", ce_subject="%FF", **attributes)
    assert (repeated.status, repeated.json["error"]) == (400, "bad_request")


def test_gzip(server: Ingesting) -> None:
    answer = server.send(gzip.compress(as_json(event("gzip"))), content_encoding="gzip")
    assert answer.status == 202
    assert server.send(b"x", content_encoding="gzip").json["error"] == "bad_encoding"
    assert server.send(b"x", content_encoding="br").status == 415
    bomb = gzip.compress(bytes(50 * BODY_MAX))
    assert len(bomb) < BODY_MAX
    assert server.send(bomb, content_encoding="gzip").status == 413


def test_what_is_counted_can_be_asked_for(server: Ingesting) -> None:
    def metrics() -> Counter[str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics", timeout=10) as answer:
            lines = [line for line in answer.read().decode().splitlines() if line.startswith("tally_ingest_")]
        return Counter({name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)})

    before = metrics()
    body = as_json(event("counted-1"), event("counted-2", bytes=-1))
    assert server.send(body, "application/cloudevents-batch+json").status == 207
    assert server.send(b"", "text/plain").status == 415
    grown = metrics() - before
    assert grown.pop("tally_ingest_store_seconds_total") > 0
    assert grown == {
        'tally_ingest_requests_total{status="207"}': 1,
        'tally_ingest_requests_total{status="415"}': 1,
        'tally_ingest_events_total{outcome="accepted"}': 1,
        'tally_ingest_events_total{outcome="schema_violation"}': 1,
        'tally_ingest_accepted_total{key="all"}': 1,
        "tally_ingest_body_bytes_total": len(body),
        "tally_ingest_stores_total": 1,
    }
    assert metrics()["tally_ingest_inflight_bytes"] == 0
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/readyz", timeout=10) as answer:
        assert json.load(answer)["status"] == "ok"
    page = (ROOT / "docs" / "ingest.md").read_text(encoding="utf-8")
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        assert f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |" in page


def test_what_the_flow_refuses_is_refused_here_with_its_reason(server: Ingesting, kafka: Kafka) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = (
        '{"specversion":"1.0","id":"broken","source":"/gateway","type":"api.request","subject":"cust-1001",'
        f'"time":"{now}",'
        '"data":{"bytes":1024,"region":"eu-west-1","method":"GET","status":200,"endpoint":"/v1"}}'
    )
    assert server.send(line.encode()).status == 202
    before = Counter(message.value for message in stored(kafka.bootstrap, TOPIC))
    for reason, edit in BROKEN:
        body = edit(line).encode("utf-8", "surrogateescape")
        if server_says_the_time(reason, body):
            continue
        answer = server.send(body)
        assert (answer.status, answer.outcomes) == (400, [reason]), body[:200]
    for shift, name in ((3600, "time_in_future"), (-40 * 86400, "too_late")):
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + shift))
        assert server.send(as_json(event("when") | {"time": moment})).outcomes == [name]
    assert Counter(message.value for message in stored(kafka.bootstrap, TOPIC)) == before


def server_says_the_time(reason: Reason, body: bytes) -> bool:
    """Whether an event is broken only in a file, where it has to say its log time itself."""
    return reason is Reason.NOT_CLOUDEVENT and (b"logtime" in body or (b'"data"' in body and b'"time"' not in body))


def test_an_event_and_a_body_that_are_too_large(server: Ingesting) -> None:
    def padded(size: int) -> bytes:
        empty = as_json(event("large", endpoint=""))
        return as_json(event("large", endpoint="x" * (size - len(empty))))

    assert server.send(padded(EVENT_BYTES_MAX)).status == 202
    answer = server.send(padded(EVENT_BYTES_MAX + 1))
    assert (answer.status, answer.outcomes) == (413, ["oversized"])
    assert server.send(bytes(BODY_MAX + 1)).json["error"] == "body_too_large"
    with server.raw() as client:  # chunked, without an end: answered in the midst of it
        client.send(server.head("transfer-encoding: chunked"))
        for _ in range(BODY_MAX // 100_000 + 1):
            client.send(b"%x\r\n" % 100_000 + b"x" * 100_000 + b"\r\n")
        assert client.answer().status == 413
    many = b"[" + b"1," * 20_000 + b"1]"
    assert server.send(many, "application/cloudevents-batch+json").json["error"] == "too_many_events"


def test_an_answer_to_a_body_that_nobody_wants_is_received(server: Ingesting) -> None:
    """The connection stays open while the rest is sent, for so long; then the next request may follow."""
    with server.raw() as client:
        body = bytes(BODY_MAX + 1)
        client.send(server.head(f"content-length: {len(body)}"))
        client.send(body)
        assert client.answer().status == 413
        good = as_json(event("after-413"))
        client.send(server.head(f"content-length: {len(good)}") + good)
        assert client.answer().status == 202
    with server.raw() as client:
        client.send(server.head("content-length: 99999999"))
        assert client.answer().status == 413
        assert client.closed(3 * READ_SECONDS)


def test_keys(server: Ingesting) -> None:
    body = as_json(event("keys"))
    for authorization in (
        "",
        "Bearer",
        "Bearer wrong",
        f"Basic {server.keys['all']}",
        server.keys["all"],
        "Bearer \xff",
    ):
        named = {"content-type": "application/cloudevents+json"} | (
            {"authorization": authorization} if authorization else {}
        )
        answer = server.request("POST", "/v1/events", body, named)
        assert (answer.status, answer.json["error"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    server.add_key("some", types=["api.request"], sources=["/tests"], subject_prefix="cust-")
    hurried(server)
    deadline = time.monotonic() + 10
    while server.send(body, key="some").status == 401:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert server.send(body, key="some").status == 202
    assert server.send(as_json(event("k", "other")), key="some").status == 403
    mixed = as_json(event("k1"), event("k2", "other"), event("k3") | {"source": "/else"}, event("k4", bytes="1"))
    answer = server.send(mixed, "application/cloudevents-batch+json", key="some")
    assert (answer.status, answer.outcomes) == (207, ["accepted", "forbidden", "forbidden", "schema_violation"])


def test_other_paths_methods_and_types(server: Ingesting) -> None:
    for method, path, status in (
        ("GET", "/", 404),
        ("POST", "/v1/event", 404),
        ("GET", "/v1/events", 405),
        ("DELETE", "/v1/events", 405),
        ("POST", "/healthz", 405),
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
    ):
        answer = server.request(method, path)
        assert answer.status == status
        assert isinstance(answer.json, dict)
    assert server.request("GET", "/v1/events").headers["allow"] == "POST"
    for content_type in ("application/json", "text/plain", "application/cloudevents+avro", ""):
        answer = server.send(as_json(event("type")), content_type)
        assert (answer.status, answer.json["error"]) == (415, "unsupported_media_type")
    assert server.send(b"{").outcomes == ["malformed"]
    assert server.send(b"[]", "application/cloudevents-batch+json").status == 202


@pytest.mark.parametrize(
    "nonsense", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: x"]
)
def test_what_is_not_http_gets_a_400(server: Ingesting, nonsense: bytes) -> None:
    with server.raw() as client:
        client.send(nonsense + b"\r\n\r\n")
        answer = client.answer()
        assert (answer.status, answer.json["error"]) == (400, "bad_request")
        assert client.closed(5)


def test_headers_without_an_end_get_a_400(server: Ingesting) -> None:
    with server.raw() as client:
        client.send(server.head(f"x-large: {'x' * 100_000}"))
        assert client.answer().status == 400


def test_slow_clients_are_not_waited_for(server: Ingesting) -> None:
    with (
        server.raw() as silent,
        server.raw() as headers,
        server.raw() as body,
        server.raw() as drip,
        server.raw() as idle,
    ):
        good = as_json(event("slow"))
        idle.send(server.head(f"content-length: {len(good)}") + good)
        assert idle.answer().status == 202
        headers.send(server.head()[:-4])
        body.send(server.head("content-length: 500") + b"{")
        drip.send(server.head("transfer-encoding: chunked"))

        def dripping() -> None:
            for _ in range(int(READ_SECONDS * 20)):
                try:
                    drip.send(b"1\r\nx\r\n")
                except OSError:
                    return
                time.sleep(0.1)

        dripper = threading.Thread(target=dripping)
        dripper.start()
        began = time.monotonic()
        for client in (headers, body, drip):
            answer = client.answer()
            assert (answer.status, answer.json["error"]) == (408, "request_timeout")
        assert silent.closed(2 * READ_SECONDS)
        idle.send(server.head(f"content-length: {len(good)}") + good)  # between requests there is more time
        assert idle.answer().status == 202
        assert READ_SECONDS / 2 < time.monotonic() - began < 5 * READ_SECONDS
        dripper.join()


def test_what_is_held_in_memory_is_bounded(server: Ingesting) -> None:
    part = bytes(BODY_MAX * 2 // 3)
    with server.raw() as one, server.raw() as two:
        for client in (one, two):
            client.send(server.head("transfer-encoding: chunked") + b"%x\r\n" % len(part) + part)
        answer = next(client.answer() for client in (two, one) if client.answers(READ_SECONDS / 4))
        assert (answer.status, answer.json["error"]) == (503, "busy")
        assert answer.headers["retry-after"].isdigit()
    deadline = time.monotonic() + 10
    while server.send(as_json(event("after busy"))).status != 202:  # what was held is free again
        assert time.monotonic() < deadline
    for _ in range(5):
        assert server.send(bytes(BODY_MAX - 1000)).status == 400


def test_connections_are_bounded(server: Ingesting) -> None:
    clients = [server.raw() for _ in range(45)]
    try:
        time.sleep(0.1)
        with server.raw() as late:
            answer = late.answer()
            assert (answer.status, answer.json["error"]) == (503, "busy")
    finally:
        for client in clients:
            client.__exit__()
    deadline = time.monotonic() + 10
    while True:
        try:
            if server.ready():
                break
        except OSError:
            pass
        assert time.monotonic() < deadline


def test_every_acknowledged_event_is_in_the_topic_over_a_broker_that_stops_and_starts(
    server: Ingesting, kafka: Kafka
) -> None:
    seed = random.randrange(2**32)
    acknowledged: list[bytes] = []
    answers: Counter[int] = Counter()
    longest = [0.0]
    over = threading.Event()

    def client(number: int) -> None:
        draw = random.Random(seed + number)
        sent = 0
        while not over.is_set():
            events = [
                as_json(event(f"{number}-{sent + i}", f"cust-{draw.randrange(50)}", endpoint="x" * draw.randrange(500)))
                for i in range(draw.choice([1, 1, 2, 50]))
            ]
            sent += len(events)
            began = time.monotonic()
            answer = server.send(b"[" + b",".join(events) + b"]", "application/cloudevents-batch+json")
            longest[0] = max(longest[0], time.monotonic() - began)
            answers[answer.status] += 1
            if "events" in answer.json:
                acknowledged.extend(
                    e for e, told in zip(events, answer.json["events"], strict=True) if told["status"] == "accepted"
                )
            if answer.status == 503:
                assert answer.headers["retry-after"].isdigit()
                time.sleep(0.2)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in clients:
        thread.start()
    time.sleep(1)
    kafka.kill()
    deadline = time.monotonic() + 30
    while server.ready():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "kafka" in server.request("GET", "/readyz").json["faults"]
    assert server.request("GET", "/healthz").status == 200
    before = len(acknowledged)
    kafka.start()
    await_ready(server)
    time.sleep(1)
    over.set()
    for thread in clients:
        thread.join(30)
    assert not any(thread.is_alive() for thread in clients)
    assert set(answers) == {202, 503}
    assert 0 < before < len(acknowledged)
    assert longest[0] < 4 * WAIT_SECONDS
    found = Counter(message.value for message in stored(kafka.bootstrap, TOPIC))
    missing = [e for e in acknowledged if not found[e]]
    assert not missing, f"seed {seed}: {len(missing)} of {len(acknowledged)} acknowledged events are not stored"


def test_a_missing_topic_and_a_refusing_one(kafka: Kafka, tmp_path: Path) -> None:
    with ingesting(tmp_path / "a", kafka.bootstrap, "ingest-none", "--catalog", "api") as running:
        answer = running.send(as_json(event("1")))
        assert (answer.status, answer.json["error"]) == (503, "unavailable")
        deadline = time.monotonic() + 20
        while "ingest-none" not in running.request("GET", "/readyz").json["faults"]["kafka"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        kafka.create_topic("ingest-none", max_message_bytes=2000)
        await_ready(running)
        body = as_json(event("1"), event("2", endpoint="x" * 3000), event("3"))
        answer = running.send(body, "application/cloudevents-batch+json")
        assert (answer.status, answer.outcomes) == (207, ["accepted", "oversized", "accepted"])


def test_a_stop_finishes_what_is_on_its_way(kafka: Kafka, tmp_path: Path) -> None:
    kafka.create_topic("ingest-stop")
    with ingesting(tmp_path / "a", kafka.bootstrap, "ingest-stop", "--catalog", "api") as running:
        await_ready(running)
        body = as_json(event("1"))
        with running.raw() as client, running.raw() as idle:
            client.send(running.head(f"content-length: {len(body)}") + body[:10])
            time.sleep(0.2)
            running.process.send_signal(signal.SIGTERM)
            assert idle.closed(5)
            with pytest.raises(ConnectionRefusedError):
                running.raw()
            client.send(body[10:])
            assert client.answer().status == 202
    assert [message.value for message in stored(kafka.bootstrap, "ingest-stop")] == [body]

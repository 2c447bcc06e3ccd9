"""Deliveries with real requests: retried, given up, and each ended once."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from domain.ports import TallyError
from tests.webhooks.receiver import SECRET, Received, Receiver, Reply
from webhooks import deliverer
from webhooks.deliverer import DeadLetter, Deliverer
from webhooks.endpoints import Endpoint, Endpoints
from webhooks.lanes import Delivery, Ending
from webhooks.signing import read_secret

_BODY = b"{}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


class Scene:
    """A deliverer, what became of its deliveries, and what it stored."""

    def __init__(
        self, *endpoints: Endpoint, pauses: tuple[float, ...] = (0.05, 0.05), undelivered_max: int = 100
    ) -> None:
        self.ended: list[tuple[str, str, Ending | None]] = []
        self.stored: list[DeadLetter] = []
        self.fail_to_store = False
        self.deliverer = Deliverer(
            Endpoints(endpoints, pauses), store=self._store, ended=self._ended, undelivered_max=undelivered_max
        )

    def add(self, *ids: str, subject: str = "s", endpoint: str = "e") -> None:
        for one in ids:
            self.deliverer.add(Delivery(endpoint, one, "quota.exceeded", subject, 0, _BODY))

    def run(self, until: Callable[[], bool] | None = None, seconds_max: float = 20) -> None:
        deadline = time.monotonic() + seconds_max
        while not (until() if until else not len(self.deliverer)):
            assert time.monotonic() < deadline, (len(self.deliverer), self.ended)
            self.deliverer.step()
            self.deliverer.wait(0.01)

    def _store(self, letters: list[DeadLetter]) -> None:
        if self.fail_to_store:
            raise TallyError("ClickHouse is away")
        self.stored.extend(letters)

    def _ended(self, delivery: Delivery, ending: Ending | None) -> None:
        self.ended.append((delivery.endpoint, delivery.id, ending))


def endpoint(url: str, name: str = "e", **given: float) -> Endpoint:
    timeout, size = given.get("timeout", 5), int(given.get("concurrency", 4))
    return Endpoint(name, url, (read_secret(SECRET),), internal=True, timeout_seconds=timeout, concurrency=size)


def test_order_is_kept_through_failures(receiver: Receiver) -> None:
    failed: dict[str, int] = {}

    def reply(request: Received) -> Reply:
        failed[request.id] = failed.get(request.id, 0) + 1
        return Reply(500 if failed[request.id] <= int(request.id[1:]) % 3 else 200)

    receiver.reply = reply
    scene = Scene(endpoint(receiver.url))
    for number in range(12):
        scene.add(f"a{number}", subject="a")
        scene.add(f"b{number}", subject="b")
    scene.run()
    for subject in "ab":
        delivered = [one for one in receiver.ids(200) if one[0] == subject]
        assert delivered == [f"{subject}{number}" for number in range(12)]
    assert scene.stored == []
    assert (scene.deliverer.total.delivered, scene.deliverer.total.failed_attempts) == (24, 24)


def test_a_failing_subject_holds_back_only_itself(receiver: Receiver) -> None:
    receiver.reply = lambda request: Reply(500 if request.id == "bad" else 200)
    scene = Scene(endpoint(receiver.url), pauses=(0.3,))
    scene.add("bad", "behind", subject="x")
    scene.add("free", subject="y")
    scene.run()
    assert [one[1:] for one in scene.ended] == [("free", None), ("bad", Ending.EXHAUSTED), ("behind", None)]
    (letter,) = scene.stored
    assert (letter.delivery.attempts, letter.delivery.last_status) == (2, 500)
    assert 0.25e6 < letter.dead_us - letter.first_attempt_us < 5e6


def test_gone(receiver: Receiver) -> None:
    receiver.reply = lambda request: Reply(410 if request.id == "1" else 200)
    with Receiver() as other:
        scene = Scene(endpoint(receiver.url), endpoint(other.url, "other"))
        scene.add("1", "2", subject="x")
        scene.add("3", endpoint="other")
        scene.run()
        scene.add("4", subject="y")
        scene.run()
    assert sorted(scene.ended) == [
        ("e", "1", Ending.GONE), ("e", "2", Ending.GONE), ("e", "4", Ending.GONE), ("other", "3", None),
    ]  # fmt: skip
    assert receiver.ids() == ["1"]
    assert [(one.delivery.id, one.first_attempt_us > 0) for one in scene.stored] == [
        ("1", True),
        ("2", False),
        ("4", False),
    ]


def test_dead_letters_wait_for_clickhouse(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliverer, "STORE_PAUSE_SECONDS", 0.05)
    receiver.reply = lambda _: Reply(500)
    scene = Scene(endpoint(receiver.url), pauses=())
    scene.fail_to_store = True
    scene.add("1")
    scene.run(until=lambda: len(receiver.requests) == 1)
    for _ in range(20):
        scene.deliverer.step()
        scene.deliverer.wait(0.01)
    assert (scene.ended, len(scene.deliverer)) == ([], 1)
    scene.fail_to_store = False
    scene.run()
    assert scene.ended == [("e", "1", Ending.EXHAUSTED)]


def test_overflow_gives_up_what_has_failed_for_long(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliverer, "OVERFLOW_FAILING_SECONDS", 0.1)
    receiver.reply = lambda _: Reply(500)
    scene = Scene(endpoint(receiver.url), pauses=(1000,), undelivered_max=10)
    scene.add(*map(str, range(30)))
    scene.run(until=lambda: len(scene.deliverer) < 10)
    assert [one.ending for one in scene.stored] == [Ending.OVERFLOW] * 21
    assert [one.delivery.id for one in scene.stored] == [str(number) for number in range(21)]


def test_a_receiver_that_never_ends_its_answer_takes_its_own_place_only(receiver: Receiver) -> None:
    """It sends a byte at a time, so that no wait of the client is too long."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        over = threading.Event()

        def drip() -> None:
            while not over.is_set():
                client, _ = server.accept()
                threading.Thread(target=send, args=(client,), daemon=True).start()

        def send(client: socket.socket) -> None:
            with client:
                client.sendall(b"HTTP/1.1 500 No\r\nx: ")
                while not over.wait(0.05):
                    client.sendall(b"x")

        threading.Thread(target=drip, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        scene = Scene(endpoint(url, timeout=0.1, concurrency=1), endpoint(receiver.url, "other"), pauses=(0.05,))
        scene.add("1")
        scene.add("2", endpoint="other")
        scene.run(until=lambda: len(scene.ended) == 1)
        assert scene.ended == [("other", "2", None)]
        scene.run(until=lambda: scene.deliverer.total.failed_attempts == 1)
        over.set()
        scene.run()
    assert scene.ended[-1] == ("e", "1", Ending.EXHAUSTED)

"""Which delivery is due: in order, within bounds, none forgotten. The clock is a number."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from webhooks.endpoints import Endpoint
from webhooks.lanes import JITTER, Answer, Delivery, Ending, Lanes

_OK, _DOWN = Answer(204), Answer(500, "down")


def lanes(pauses: Sequence[float] = (5, 60), jitter: float = 0, **endpoints: int) -> Lanes:
    """Lanes of endpoints with their concurrency."""
    made = [
        Endpoint(name, "https://example.com", (b"",), concurrency=size)
        for name, size in (endpoints or {"a": 4}).items()
    ]
    return Lanes(made, pauses, lambda: jitter)


def delivery(number: int, subject: str = "s", endpoint: str = "a") -> Delivery:
    return Delivery(endpoint, str(number), "t", subject, 0, b"")


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    return [one.id for one in deliveries]


def test_a_subject_goes_one_by_one_and_others_beside_it() -> None:
    made = lanes()
    for number, subject in enumerate("xxy"):
        made.add(delivery(number, subject), 0)
    started = made.start(0)
    assert ids(started) == ["0", "2"]
    assert made.start(0) == []
    assert made.finish(started[0], _OK, 1) is None
    assert ids(made.start(1)) == ["1"]
    assert len(made) == 2


def test_the_schedule() -> None:
    made = lanes(pauses=(5, 60))
    made.add(delivery(0), 100)
    made.add(delivery(1), 100)
    for now, due, ending in ((100, 105, None), (105, 165, None), (165, 165, Ending.EXHAUSTED)):
        (first,) = made.start(now)
        assert first.id == "0"
        assert made.finish(first, _DOWN, now) is ending
        assert made.next_due() == due
        assert ending or made.start(due - 0.1) == []
    assert (first.attempts, first.last_status, first.last_error) == (3, 500, "down")
    assert ids(made.start(165)) == ["1"], "the next one goes at once"


def test_jitter_makes_a_pause_longer() -> None:
    made = lanes(pauses=(100,), jitter=1)
    made.add(delivery(0), 0)
    made.finish(made.start(0)[0], _DOWN, 0)
    assert made.next_due() == 100 * (1 + JITTER)


def test_what_waited_too_long_behind_others_gets_one_attempt() -> None:
    made = lanes(pauses=(5, 60))
    for number in range(3):
        made.add(delivery(number), 0)
    for at in (0, 5, 65):
        made.finish(made.start(at)[0], _DOWN, at)
    now = 100.0
    for expected in ("1", "2"):
        (one,) = made.start(now)
        assert (one.id, made.finish(one, _DOWN, now)) == (expected, Ending.EXHAUSTED)
    assert len(made) == 0


def test_an_endpoint_has_a_bound_of_its_own() -> None:
    made = lanes(a=2, b=1)
    for number in range(4):
        made.add(delivery(number, f"s{number}", "a"), 0)
        made.add(delivery(number + 10, f"s{number}", "b"), 0)
    started = made.start(0)
    assert ids(started) == ["0", "1", "10"]
    assert made.next_due() is None
    made.finish(started[0], Answer(0, "stuck"), 1, still_running=True)
    assert made.start(1) == [], "the thread still runs"
    made.release("a")
    assert ids(made.start(1)) == ["2"]


def test_retry_after_holds_the_whole_endpoint() -> None:
    made = lanes(a=1, b=1)
    for number in range(3):
        made.add(delivery(number, f"s{number}", "a"), 0)
    made.add(delivery(9, "s", "b"), 0)
    first = made.start(0)[0]
    made.finish(first, Answer(429, "slow down", retry_after_seconds=30), 0)
    assert made.next_due() == 30
    assert made.start(29) == []
    assert len(made.start(30)) == 1


def test_gone_takes_everything_of_the_endpoint() -> None:
    made = lanes(a=2, b=1)
    for number in range(5):
        made.add(delivery(number, f"s{number % 3}", "a"), 0)
    made.add(delivery(9, "s", "b"), 0)
    first, second, _ = made.start(0)
    assert made.finish(first, Answer(410, "gone"), 0) is Ending.GONE
    assert made.gone() == ["a"]
    assert sorted(ids(list(made.take_gone()))) == ["2", "3", "4"]
    made.finish(second, _DOWN, 1)
    assert ids(list(made.take_gone())) == ["1"]
    made.add(delivery(10, "new", "a"), 2)
    assert made.start(2) == []
    assert ids(list(made.take_gone())) == ["10"]
    assert len(made) == 1


def test_overflow_takes_what_has_failed_longest() -> None:
    made = lanes(a=4, pauses=(1000,))
    for number in range(6):
        made.add(delivery(number, "xyz"[number % 3]), 0)
    for one, now in zip(made.start(0), (0, 50, 90), strict=True):
        made.finish(one, _DOWN if one.subject != "z" else _OK, now)
    assert ids(list(made.take_overflow(3, 70, 60))) == ["0", "3"], "y has not failed for 60 s"
    assert len(made) == 3
    assert list(made.take_overflow(3, 1000, 60)) == [], "there is room"


@given(st.data())
def test_any_course_of_events_ends_each_delivery_once_and_in_order(data: st.DataObject) -> None:
    made = lanes(pauses=(5, 60), a=2, b=1)
    now, number = 0.0, 0
    running: list[Delivery] = []
    ended: list[Delivery] = []
    added: list[Delivery] = []
    draw = data.draw
    for _ in range(draw(st.integers(1, 60))):
        match draw(st.sampled_from(["add", "add", "start", "finish", "wait", "take"])):
            case "add":
                one = delivery(number, draw(st.sampled_from("xyz")), draw(st.sampled_from("ab")))
                number += 1
                added.append(one)
                made.add(one, now)
            case "start":
                running += made.start(now)
                assert len({(one.endpoint, one.subject) for one in running}) == len(running)
                assert sum(one.endpoint == "a" for one in running) <= 2
                assert sum(one.endpoint == "b" for one in running) <= 1
            case "finish" if running:
                one = running.pop(draw(st.integers(0, len(running) - 1)))
                answer = draw(st.sampled_from([_OK, _DOWN, _DOWN, Answer(503, "", 10)]))
                if made.finish(one, answer, now) is not None or answer.delivered:
                    ended.append(one)
            case "wait":
                now += draw(st.sampled_from([1.0, 5.0, 100.0]))
            case "take":
                taken = made.take(lambda one: int(one.id) % 5 == 0)
                assert not set(map(id, taken)) & set(map(id, running))
                ended += taken
        assert len(made) == len(added) - len(ended)
    for _ in range(10 * len(added)):
        for one in running:
            made.finish(one, _OK, now)
            ended.append(one)
        now += 100
        running = made.start(now)
    assert sorted(map(int, ids(ended))) == list(range(number)), "every delivery ends, once"
    for lane in {(one.endpoint, one.subject) for one in ended}:
        numbers = [int(one.id) for one in ended if (one.endpoint, one.subject) == lane and int(one.id) % 5]
        assert numbers == sorted(numbers)

"""What every claim store promises, held to the fake and to Redis (one shard and several)."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain.ports import Claim, ClaimsLost, Fenced
from domain.values import Position
from stores.claim_records import CALL_ROWS_MAX
from tests.stores.claim_stores import (
    GENERATION_US,
    Event,
    FakeStore,
    Instance,
    Row,
    Store,
    claim,
    first,
    requests,
    requests_of,
    started,
)

A, B = Event("a"), Event("b")
PROPERTY = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def test_first_come_first_claimed(store: Store) -> None:
    claims = started(store)
    assert claim(claims, 0, 0, [A, B]) == {}
    assert claim(claims, 0, 2, [B, Event("c")]) == {2: first(0, 1)}
    assert claim(claims, 1, 0, [A]) == {0: first(0, 0)}


def test_repeats_in_one_batch_go_to_the_earliest_position(store: Store) -> None:
    claims = started(store)
    assert claim(claims, 0, 0, [A, B, A, A]) == {2: first(0, 0), 3: first(0, 0)}


def test_a_batch_of_several_calls_is_one_batch(store: Store) -> None:
    claims = started(store)
    count = 2 * CALL_ROWS_MAX + 3
    events = [Event(str(i % (count - 2))) for i in range(count)]
    repeats = {count - 2: first(0, 0), count - 1: first(0, 1)}
    assert claim(claims, 0, 0, events) == repeats
    assert claim(claims, 0, 0, events) == repeats
    assert claims.progress() == {0: count}
    assert claim(claims, 1, 0, events[: CALL_ROWS_MAX + 1])[CALL_ROWS_MAX] == first(0, CALL_ROWS_MAX)


def test_events_of_one_message_are_told_apart_by_index(store: Store) -> None:
    claims = started(store)
    batch = requests([A, A, A], 0)
    batch.offsets[:] = [4, 4, 4]
    batch.indexes[:] = [0, 1, 2]
    for _ in range(2):
        assert claims.claim(0, 0, 5, batch) == {1: first(0, 4), 2: first(0, 4)}


def test_a_replay_meets_its_own_claims_in_any_cut(store: Store) -> None:
    claims = started(store)
    events = [A, B, A, Event("c"), B]
    verdicts = claim(claims, 0, 0, events)
    for start, end in [(0, 5), (1, 3), (2, 5), (4, 5), (0, 1)]:
        again = claim(claims, 0, start, events[start:end])
        assert again == {offset: verdicts[offset] for offset in range(start, end) if offset in verdicts}


def test_source_and_id_do_not_run_together(store: Store) -> None:
    claims = started(store)
    batch = requests([A] * 5)
    batch.sources[:] = ["ab", "a", "", "1:a", "é"]
    batch.ids[:] = ["c", "bc", "abc", "b", "\x00"]
    assert claims.claim(0, 0, 5, batch) == {}


def test_the_first_claims_content_tells_a_conflict_from_a_duplicate(store: Store) -> None:
    claims = started(store)
    large = 2**64 - 1
    claim(claims, 3, 0, [Event("a", content=large)])
    assert claim(claims, 0, 0, [Event("a", content=7), Event("a", content=large)]) == {
        0: first(3, 0, large),
        1: first(3, 0, large),
    }


def test_the_largest_positions_fit(store: Store) -> None:
    largest = Position(2**32 - 1, 2**48 - 2, 2**24 - 1)
    claims = started(store, {largest.partition: largest.offset})
    batch = requests_of([Row(largest, A)])
    assert claims.claim(largest.partition, largest.offset, largest.offset + 1, batch) == {}
    assert claim(claims, 0, 0, [A]) == {0: Claim(largest, 1)}


def test_a_batch_with_nothing_to_claim_still_counts(store: Store) -> None:
    claims = started(store)
    assert claims.claim(0, 0, 10, requests([])) == {}
    assert claim(claims, 0, 10, [A]) == {}
    assert claims.progress() == {0: 11}
    with pytest.raises(ClaimsLost):
        claims.claim(0, 12, 13, requests([]))


def test_progress_never_falls(store: Store) -> None:
    claims = started(store, {0: 5})
    claims.claim(0, 5, 9, requests([]))
    claims.claim(0, 2, 4, requests([]))
    assert started(store, {0: 3, 1: 2}).progress() == {0: 9, 1: 2}


# Generations: a key is looked for in its own and both neighbours.


@pytest.mark.parametrize(("later", "seen"), [(10.0, True), (10.999, True), (11.999, True), (12.0, False)])
def test_a_claim_is_seen_from_the_neighbouring_generations(store: Store, later: float, seen: bool) -> None:
    claims = started(store)
    claim(claims, 0, 0, [Event("a", 10.999)])
    assert claim(claims, 1, 0, [Event("a", later)]) == ({0: first(0, 0)} if seen else {})


def test_a_partition_that_lags_sees_claims_of_the_next_generation(store: Store) -> None:
    claims = started(store)
    claim(claims, 0, 0, [Event("a", 11)])
    assert claim(claims, 1, 0, [Event("a", 10), Event("a", 9)]) == {0: first(0, 0)}


def test_generations_change_within_a_batch(store: Store) -> None:
    claims = started(store)
    events = [Event("a", 10), Event("a", 11), Event("a", 12), Event("b", 10), Event("a", 12), Event("b", 9)]
    verdicts = {1: first(0, 0), 4: first(0, 2), 5: first(0, 3)}
    assert claim(claims, 0, 0, events) == verdicts
    assert claim(claims, 0, 0, events) == verdicts
    assert claim(claims, 0, 1, events[1:]) == verdicts


def test_the_own_partitions_earlier_claim_goes_before_others(store: Store) -> None:
    claims = started(store)
    claim(claims, 0, 0, [Event("a", 11)])
    assert claim(claims, 1, 0, [Event("a", 9)]) == {}
    assert claim(claims, 0, 1, [Event("a", 10)]) == {1: first(0, 0)}
    assert claim(claims, 2, 0, [Event("a", 10)]) == {0: first(1, 0)}, "else the earliest generation"


def test_the_own_partitions_later_claim_goes_after_others(store: Store) -> None:
    claims = started(store)
    claim(claims, 1, 0, [Event("a", 11)])
    events = [Event("a", 10), Event("a", 9)]
    for _ in range(2):
        assert claim(claims, 0, 0, events) == {0: first(1, 0)}


def test_within_one_message_the_index_decides_what_is_earlier(store: Store) -> None:
    claims = started(store)
    batch = requests([Event("a", 11), Event("a", 10), Event("b", 10), Event("b", 9)])
    batch.offsets[:] = [4, 4, 4, 4]
    batch.indexes[:] = [0, 1, 2, 3]
    claim(claims, 1, 0, [Event("b", 11)])
    claims.claim(0, 0, 5, requests_of([Row(Position(0, 4), Event("a", 11))]))
    claim(claims, 1, 1, [Event("a", 9)])
    for _ in range(2):
        assert claims.claim(0, 0, 5, batch) == {1: first(0, 4), 2: first(1, 0)}


def test_forget_drops_what_is_two_generations_past(store: Store) -> None:
    claims = started(store)
    claim(claims, 0, 0, [A, Event("b", 11), Event("b", 12)])
    claims.forget(12 * GENERATION_US - 1)
    assert claim(claims, 1, 0, [A]) == {0: first(0, 0)}
    claims.forget(12 * GENERATION_US)
    claims.forget(12 * GENERATION_US)
    assert claim(claims, 1, 1, [A]) == {}
    assert claim(claims, 1, 2, [Event("b", 12)]) == {2: first(0, 1)}
    assert claim(claims, 1, 3, [A]) == {3: first(1, 1)}, "what is claimed anew is kept"


# Losses and successors


def test_a_flush_loses_the_claims(store: Store) -> None:
    claims = started(store)
    claim(claims, 0, 0, [A])
    store.flush()
    with pytest.raises(ClaimsLost, match="restart"):
        claim(claims, 0, 1, [A])
    with pytest.raises(ClaimsLost):
        claims.claim(0, 0, 0, requests([]))
    successor = store.instance()
    successor.take_over()
    assert successor.progress() == {}


def test_a_partition_that_begins_late_is_lost_unless_published(store: Store) -> None:
    claims = started(store, {0: 100})
    assert claim(claims, 0, 100, [A]) == {}
    with pytest.raises(ClaimsLost, match="1"):
        claim(claims, 1, 100, [A])


def test_an_older_instance_is_fenced(store: Store) -> None:
    old = started(store)
    claim(old, 0, 0, [A])
    young = store.instance()
    assert young.take_over() > 1
    calls: list[Callable[[], object]] = [
        lambda: claim(old, 0, 1, [B]),
        lambda: old.restore(0, requests([A])),
        lambda: old.publish({0: 1}),
    ]
    for call in calls:
        with pytest.raises(Fenced, match="younger"):
            call()
    assert young.progress() == {0: 1}
    young.publish({})
    assert claim(young, 0, 0, [A, B]) == {}


def test_an_older_instance_is_refused_after_a_flush_too(store: Store) -> None:
    old = started(store)
    claim(old, 0, 0, [A])
    store.flush()
    young = started(store, {0: 9})
    with pytest.raises(ClaimsLost, match="incarnation"):
        claim(old, 0, 1, [B])
    assert claim(young, 0, 9, [A, B]) == {}


def test_restored_claims_give_the_same_verdicts(store: Store) -> None:
    claims = started(store)
    events = [A, B, Event("a", 11), Event("a", 12, content=2), Event("a", 12)]
    verdicts = claim(claims, 0, 0, events)
    store.flush()
    successor = store.instance()
    successor.take_over()
    kept = [Row(Position(0, offset), event) for offset, event in enumerate(events) if offset not in verdicts]
    successor.restore(0, requests_of(kept))
    successor.publish({0: 5})
    assert successor.progress() == {0: 5}
    assert claim(successor, 0, 0, events) == verdicts
    assert claim(successor, 1, 0, [B]) == {0: first(0, 1)}


def test_the_ledger_replaces_somebody_elses_claim(store: Store) -> None:
    claims = started(store)
    claim(claims, 0, 0, [A, Event("b", 11), Event("c", 9)])
    successor = store.instance()
    successor.take_over()
    rows = [Row(Position(1, 5), Event("a", content=4)), Row(Position(1, 6), B), Row(Position(1, 7), Event("c"))]
    successor.restore(1, requests_of(rows))
    successor.publish({1: 8})
    assert claim(successor, 0, 0, [A, Event("b", 11), Event("c", 9)]) == {
        0: first(1, 5, 4),
        1: first(1, 6),
        2: first(1, 7),
    }


def test_an_unknown_content_is_learnt_from_its_own_position(store: Store) -> None:
    claims = store.instance()
    claims.take_over()
    row = Row(Position(0, 0), Event("a", content=0))
    claims.restore(0, requests_of([row]))
    claims.publish({0: 9})
    assert claim(claims, 0, 5, [Event("a", content=7)]) == {5: first(0, 0, 0)}
    assert claim(claims, 0, 0, [Event("a", 11, content=7)]) == {}
    claims.restore(0, requests_of([row]))
    assert claim(claims, 0, 5, [Event("a", content=8)]) == {5: first(0, 0, 7)}


@pytest.mark.parametrize("generation", [10, 11])
def test_an_own_position_is_accepted_whatever_its_content(store: Store, generation: int) -> None:
    claims = started(store)
    claim(claims, 0, 0, [Event("a", content=1), Event("b", content=0)])
    assert claim(claims, 0, 0, [Event("a", generation, content=2), Event("b", generation, content=3)]) == {}
    assert claim(claims, 1, 0, [A, B]) == {0: first(0, 0, 1), 1: first(0, 1, 3)}


def test_a_restored_position_stays_in_its_generation(store: Store) -> None:
    claims = started(store)
    claim(claims, 0, 0, [Event("a", 10)])
    claims.restore(0, requests_of([Row(Position(0, 0), Event("a", 11))]))
    assert claim(claims, 0, 1, [Event("a", 12)]) == {}


def test_two_threads_agree_on_every_key(store: Store) -> None:
    claims = started(store)
    keys = [Event(str(number)) for number in range(300)]
    logs = [keys, keys[::-1]]
    verdicts: list[dict[int, Claim]] = [{}, {}]

    def work(partition: int) -> None:
        log = logs[partition]
        for start in range(0, len(log), 20):
            verdicts[partition] |= claim(claims, partition, start, log[start : start + 20])

    threads = [threading.Thread(target=work, args=(partition,)) for partition in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    owners = {key: [p for p in (0, 1) if logs[p].index(key) not in verdicts[p]] for key in keys}
    assert all(len(owner) == 1 for owner in owners.values())
    for partition in (0, 1):
        other = 1 - partition
        for offset, claimed in verdicts[partition].items():
            assert claimed == first(other, logs[other].index(logs[partition][offset]))


# Any history


def events_in(generations: list[float]) -> st.SearchStrategy[Event]:
    return st.builds(Event, st.sampled_from("abc"), st.sampled_from(generations), st.integers(1, 2))


ONE_LOG = st.tuples(st.lists(events_in([9, 10, 11, 12, 13, 14]), min_size=1, max_size=14))
TWO_LOGS = st.tuples(*[st.lists(events_in([10, 10.5, 11]), min_size=1, max_size=10)] * 2)
"""Within two generations: partitions that lag further may give a duplicate another first claim."""
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["read", "read", "read", "rewind", "crash", "flush"]), st.integers(0, 1), st.integers(1, 9)
    ),
    max_size=25,
)


class History:
    """Reads logs through claims, crashing as told; every position must get its first verdict again."""

    def __init__(self, store: Store, logs: tuple[list[Event], ...]) -> None:
        store.flush()
        self.store, self.logs = store, logs
        self.at = [0] * len(logs)
        self.verdicts: dict[Position, Claim | None] = {}
        self.claims = started(store)

    def step(self, what: str, partition: int, size: int) -> None:
        partition %= len(self.logs)
        match what:
            case "read":
                self.read(partition, size)
            case "rewind":
                self.at[partition] = max(0, self.at[partition] - size)
            case "crash":
                self.at = [max(0, at - size) for at in self.at]
                self.claims = started(self.store)
            case "flush":
                self.rebuild(size)

    def read(self, partition: int, size: int) -> None:
        start = self.at[partition]
        events = self.logs[partition][start : start + size]
        firsts = claim(self.claims, partition, start, events)
        for offset in range(start, start + len(events)):
            verdict = firsts.get(offset)
            assert self.verdicts.setdefault(Position(partition, offset), verdict) == verdict
        self.at[partition] = start + len(events)

    def rebuild(self, size: int) -> None:
        """Redis loses everything; the ledger holds all that was read; sources resume before its end."""
        self.store.flush()
        self.claims = self.store.instance()
        self.claims.take_over()
        assert self.claims.progress() == {}
        for partition, log in enumerate(self.logs):
            kept = [p for p, verdict in self.verdicts.items() if verdict is None and p.partition == partition]
            self.claims.restore(partition, requests_of([Row(p, log[p.offset]) for p in kept]))
        self.at = [max(0, at - size) for at in self.at]
        self.claims.publish(dict(enumerate(self.at)))

    def run(self, steps: list[tuple[str, int, int]]) -> None:
        for step in steps:
            self.step(*step)
        self.at = [0] * len(self.logs)
        for _ in range(2):
            for partition, log in enumerate(self.logs):
                self.read(partition, len(log))


@PROPERTY
@given(ONE_LOG, STEPS)
def test_any_history_of_one_partition(
    store: Store, logs: tuple[list[Event], ...], steps: list[tuple[str, int, int]]
) -> None:
    History(store, logs).run(steps)


@PROPERTY
@given(TWO_LOGS, STEPS)
def test_any_history_of_two_partitions(
    store: Store, logs: tuple[list[Event], ...], steps: list[tuple[str, int, int]]
) -> None:
    History(store, logs).run(steps)


ROWS = st.lists(st.tuples(st.integers(0, 6), events_in([9, 10, 11, 12])), min_size=1, max_size=8)
CALLS = st.lists(
    st.tuples(st.sampled_from(["claim", "claim", "restore", "forget"]), st.integers(0, 2), ROWS), max_size=12
)


@PROPERTY
@given(CALLS)
def test_any_calls_are_answered_as_the_fake_answers(
    store: Store, calls: list[tuple[str, int, list[tuple[int, Event]]]]
) -> None:
    store.flush()
    both: list[Instance] = [started(store), started(FakeStore())]
    for name, partition, items in calls:
        batch = requests_of([Row(Position(partition, offset), event) for offset, event in items])
        match name:
            case "claim":
                answers = [claims.claim(partition, 0, 9, batch) for claims in both]
                assert answers[0] == answers[1]
            case "restore":
                for claims in both:
                    claims.restore(partition, batch)
            case "forget":
                for claims in both:
                    claims.forget(batch.log_times_us[0])
    assert both[0].progress() == both[1].progress()

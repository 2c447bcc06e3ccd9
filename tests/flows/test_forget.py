"""Claims are forgotten while a log is read and replayed: nobody notices, and the store stays small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from domain.ports import Claim
from domain.values import FUTURE_SKEW_US, HOUR_US, Position
from engines.clickhouse import EmbeddedClickHouse
from engines.data_directory import DataDirectory
from flows.forget import SLACK_US, Forgetting, Forgotten, written_log_times
from flows.reclaim import reclaim
from sinks import migrate
from tests.fakes.claims import FakeClaims, generations
from tests.fakes.redis import RedisServer
from tests.stores.claim_stores import GENERATION_US as SHORT_US
from tests.stores.claim_stores import Event, RedisStore, Row, requests_of

GENERATION_US = 100 * HOUR_US
"""Of the claims here: long against `SLACK_US`."""


@dataclass
class Run:
    """A flow as far as forgetting sees it: it reads, writes, closes epochs, crashes and resumes."""

    logs: list[list[Row]]
    server: RedisServer = field(default_factory=RedisServer)
    barriers: dict[str, int] = field(default_factory=lambda: {"00": 0})
    verdicts: dict[Position, Claim | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.at = [0] * len(self.logs)
        self.stored = list(self.at)
        """What is durable."""
        self.closed = list(self.at)
        """What will be once the next epoch opens."""
        self.written: dict[int, int] = {}
        self.start()

    def start(self) -> None:
        self.claims = FakeClaims(self.server, accept_within_us=GENERATION_US - FUTURE_SKEW_US)
        self.claims.take_over()
        self.claims.publish(self.claims.progress())
        self.forgetting = Forgetting(
            self.claims.forget, range(len(self.logs)), lambda: dict(self.written), lambda: dict(self.barriers)
        )

    def read(self, partition: int, size: int) -> None:
        begin = self.at[partition]
        rows = self.logs[partition][begin : begin + size]
        batch = requests_of(rows)
        batch.log_times_us[:] = [int(row.event.generation * GENERATION_US) for row in rows]
        firsts = self.claims.claim(partition, begin, begin + len(rows), batch)
        for i, row in enumerate(rows):
            assert self.verdicts.setdefault(row.position, firsts.get(i)) == firsts.get(i)
        self.at[partition] += len(rows)
        if rows:
            self.written[partition] = max(self.written.get(partition, 0), batch.log_times_us[-1])

    def close_epoch(self) -> None:
        """The barrier; the epoch before it is stored by now, its own will be before the next one opens."""
        self.stored, self.closed = self.closed, list(self.at)
        self.barriers["00"] += 1

    def crash(self) -> None:
        self.at = list(self.stored)
        self.closed = list(self.stored)
        self.start()


LOGS = st.lists(st.lists(st.integers(0, 8), min_size=4, max_size=9).map(sorted), min_size=1, max_size=2)
"""Log times in halves of a generation, all of one key or two."""
STEPS = st.lists(
    st.tuples(st.sampled_from(["read", "close", "forget", "crash"]), st.integers(0, 1), st.integers(1, 3)),
    min_size=10,
    max_size=40,
)


def log(partition: int, times: list[int]) -> list[Row]:
    """One key in each partition: a repeat within a generation's length has to be recognised."""
    return [Row(Position(partition, i), Event(f"k{partition}", time / 2)) for i, time in enumerate(times)]


@settings(max_examples=400)
@given(LOGS, STEPS)
def test_a_replay_finds_every_claim_that_it_found_before(
    times: list[list[int]], steps: list[tuple[str, int, int]]
) -> None:
    run = Run([log(partition, each) for partition, each in enumerate(times)])
    for what, partition, size in [*steps, ("crash", 0, 0), ("read", 0, 99), ("read", 1, 99)]:
        match what:
            case "read":
                run.read(partition % len(times), size)
            case "close":
                run.close_epoch()
            case "forget":
                run.forgetting.step()
            case "crash":
                run.crash()


def test_memory_is_released_two_barriers_later_and_not_before() -> None:
    run = Run([log(partition, [0, 7, 10]) for partition in (0, 1)])
    for partition in (0, 1):
        run.read(partition, 2)
    run.forgetting.step()
    run.close_epoch()
    run.forgetting.step()
    assert 0 in generations(run.server)
    run.close_epoch()
    run.forgetting.step()
    assert generations(run.server) == {3}


def test_the_slowest_partition_decides_and_a_new_one_is_at_the_beginning() -> None:
    forgotten: list[int] = []

    written: dict[int, int] = {}
    barriers = {"00": 5, "01": 9}
    forgetting = Forgetting(forgotten.append, range(3), lambda: dict(written), lambda: barriers)
    written |= {0: 10 * HOUR_US, 1: 7 * HOUR_US}

    def steps() -> None:
        for _ in range(2):
            forgetting.step()
            barriers["01"] += 2

    steps()
    assert forgotten == []
    written[2] = 9 * HOUR_US
    steps()
    steps()
    assert forgotten[0] == 7 * HOUR_US - SLACK_US


def test_what_was_forgotten_is_not_restored(tmp_path: Path, redis_url: str) -> None:
    url = f"{redis_url}?db=8"
    directory = DataDirectory(tmp_path)
    directory.make()
    claims = RedisStore(url, shards=1).instance()
    forgotten = Forgotten(directory, "ledger 1", claims)
    assert forgotten.kept_since_us == 0
    claims.take_over()
    claims.publish({})
    for generation, kept in ((0.5, 0), (3.5, 2), (1.5, 2)):
        forgotten.forget(int(generation * SHORT_US))
        assert forgotten.kept_since_us == kept * SHORT_US
    assert Forgotten(directory, "ledger 1", claims).kept_since_us == 2 * SHORT_US
    assert RedisStore(url, shards=1).instance().forgotten_until_us() == 2 * SHORT_US, "Redis knows it as well"
    assert RedisStore(url, shards=2).instance().forgotten_until_us() == 0, "of another layout"
    assert Forgotten(directory, "ledger 2", claims).kept_since_us == 0


def test_a_start_asks_clickhouse_how_far_it_is_and_for_what_is_kept(tmp_path: Path) -> None:
    second_us = 1_767_225_600_000_000
    with EmbeddedClickHouse(tmp_path) as engine:
        with engine.client() as client:
            migrate.create_database(client)
        with engine.client(migrate.DATABASE) as client:
            migrate.migrate(client)
            client.command(
                "INSERT INTO progress (log_topic, log_partition, next_offset, messages, events, log_time) VALUES "
                "('t', 0, 5, 5, 5, '2026-01-01 00:00:01'), ('t', 0, 5, 5, 5, '2026-01-01 00:00:09'), "
                "('t', 1, 7, 7, 7, '2026-01-01 00:00:02'), ('other', 2, 1, 1, 1, '2026-01-01 00:00:03')"
            )
            client.command(
                "INSERT INTO events (log_topic, log_partition, log_offset, log_time, source, id) VALUES "
                "('t', 0, 1, '2026-01-01 00:00:01', 's', 'a'), ('t', 0, 2, '2026-01-01 00:00:02', 's', 'b')"
            )
            claims = FakeClaims(RedisServer(), accept_within_us=HOUR_US)
            assert reclaim(claims, client, "t", [0], second_us + 2_000_000).claims == 1
            assert reclaim(claims, client, "t", [0]).claims == 0, "Redis has what it needs"
            assert claims.progress() == {0: 5, 1: 7}
            assert reclaim(FakeClaims(RedisServer(), accept_within_us=HOUR_US), client, "t", [0]).claims == 2
        found: Mapping[int, int] = written_log_times(lambda: engine.client(migrate.DATABASE), "t")
        assert found == {0: second_us + 9_000_000, 1: second_us + 2_000_000}

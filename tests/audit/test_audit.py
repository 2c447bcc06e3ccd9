"""The auditor passes what is right, and names each thing that is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pytest

from domain.instants import to_text
from domain.signals_json import decimal_text
from tests.audit import Audit, audit, file_messages
from tests.audit.evidence import Line
from tests.oracle import Tables, compute, compute_log
from tests.tables import expected_tables
from tests.workload import DAY_US, HOUR_US, SPAN_US, START, generate, kitchen_sink_catalog

SEED = 20261120
CATALOGS = [(0, kitchen_sink_catalog())]
NOW_US = START + 60 * DAY_US
"""In the midst of the workload: some of its periods are over, and some are not."""
STEP = Decimal("0.000000000001")


@dataclass
class Case:
    """A run that is at rest; each test changes one thing of it."""

    messages: list[Line]
    tables: Tables
    quotas: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    published: list[dict[str, Any]] = field(default_factory=list)

    def audit(self) -> Audit:
        rest = {"quotas": self.quotas, "published": self.published, "now_us": NOW_US}
        return audit(CATALOGS, "usage", self.messages, self.tables, **rest)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole() -> Case:
    """A log with gaps in its offsets, and what follows from it by the oracle."""
    messages = []
    for number, content in enumerate(generate(SEED, 300, 14, 2)):
        lines = [line for line in file_messages([(number, content)]) if len(line.value) < 1000]
        for line in lines[: len(lines) * 9 // 10 : 2]:
            stamp = START + 7 * HOUR_US + line.offset * SPAN_US // len(lines)
            messages.append(replace(line, offset=line.offset * 2 + line.offset // 9, log_time_us=stamp))
    case = Case(messages, expected_tables(compute_log(CATALOGS, "usage", messages)))  # type: ignore[arg-type]
    case.quotas, case.published = states_of(case.tables), signals_of(case.tables)
    return case


@pytest.fixture
def right(whole: Case) -> Case:
    return copy.deepcopy(whole)


def states_of(tables: Tables) -> dict[tuple[str, str], dict[str, Any]]:
    """The latest quota state of each subject and feature, of those whose period goes on."""
    states = {}
    for (subject, plan, feature, start), row in sorted(tables.quotas.items(), key=lambda item: item[0][3]):
        if row["period_end"] > NOW_US:
            states[subject, feature] = {
                "used": str(row["used"]),
                "limit": str(row["allowance"]),
                "state": row["state"],
                "period_start": to_text(start),
                "period_end": to_text(row["period_end"]),
                "inputs": row["inputs"],
                "era": row["era"],
                "plan": plan,
            }
    return states


def signals_of(tables: Tables) -> list[dict[str, Any]]:
    """Each signal twice, as after a replay: the second saw more."""
    published = []
    for (kind, subject, feature, start, threshold), row in tables.signals.items():
        data = {"feature": feature, "meter": "", "threshold": str(threshold), "allowance": str(row["allowance"])}
        span = {"period_start": to_text(start), "period_end": to_text(row["period_end"])}
        for used in ("1", "2"):
            told = {**data, **span, "used": used}
            published.append({"id": row["id"], "type": kind, "subject": subject, "time": used, "data": told})
    return published


def test_a_right_run_passes(right: Case) -> None:
    found = right.audit()
    assert (found.violations, found.lost, found.doubled) == ([], 0, 0)
    assert len(right.tables.events) > 100 and len(right.quotas) > 5 and len(right.tables.signals) > 50
    assert {row["reason"] for row in right.tables.rejects.values()} >= {
        "duplicate",
        "conflict",
        "too_late",
        "malformed",
    }
    assert any(row["payload"].startswith(b"{") and key[3] > 0 for key, row in right.tables.events.items())


def test_a_right_run_over_files_passes() -> None:
    files = [
        (n, b"".join(line for line in content.splitlines(True) if len(line) < 1000))
        for n, content in enumerate(generate(SEED + 1, 150, 15, 2))
    ]
    found = audit(CATALOGS, "file", file_messages(files), expected_tables(compute(CATALOGS, files)))
    assert (found.violations, found.lost, found.doubled) == ([], 0, 0)


def test_of_an_id_in_two_partitions_exactly_one_event_counts(right: Case) -> None:
    """Which one depends on the order of reading, so the audit goes by the ledger."""
    subscribed = {row["subject"] for row in right.tables.subscriptions.values()}
    repeated = {row["first_position"] for row in right.tables.rejects.values()}
    first = next(
        key
        for key, row in right.tables.events.items()
        if row["type"] == "heartbeat" and row["subject"] not in subscribed and key not in repeated and key[3] == 0
    )
    line = next(line for line in right.messages if (line.partition, line.offset) == first[1:3])
    messages = [*right.messages, replace(line, partition=7, offset=0, value=right.tables.events[first]["payload"])]
    tables = expected_tables(compute_log(CATALOGS, "usage", messages))  # type: ignore[arg-type]
    again = ("usage", 7, 0, 0)
    assert tables.rejects[again]["reason"] == "duplicate"
    assert not audit(CATALOGS, "usage", messages, tables).violations
    row = tables.events[again] = tables.events.pop(first)
    tables.rejects[first] = {**tables.rejects.pop(again), "first_position": again}
    assert not audit(CATALOGS, "usage", messages, tables).violations
    del tables.rejects[first]
    tables.events[first] = row
    assert audit(CATALOGS, "usage", messages, tables).doubled == 1


def billed(tables: Tables) -> tuple[Any, ...]:
    """The position of an event that meters count."""
    return next(key for key, row in sorted(tables.events.items()) if row["type"] == "heartbeat")


def plain(table: dict[Any, Any], column: str) -> tuple[Any, ...]:
    return next(key for key, row in table.items() if row[column] > 0)


def ledger_row_lost(case: Case) -> None:
    del case.tables.events[billed(case.tables)]


def ledger_row_moved_to_rejects(case: Case) -> None:
    key = billed(case.tables)
    row = case.tables.events.pop(key)
    told = {name: row[name] for name in ("log_time", "source", "id", "subject", "payload")}
    case.tables.rejects[key] = {**told, "reason": "too_late", "first_position": ("", 0, 0, 0)}


def ledger_row_doubled(case: Case) -> None:
    repeat = next(key for key, row in case.tables.rejects.items() if row["reason"] == "duplicate")
    first = case.tables.rejects.pop(repeat)["first_position"]
    case.tables.events[repeat] = dict(case.tables.events[first])


def ledger_row_invented(case: Case) -> None:
    case.tables.events["usage", 0, 10**6, 0] = {**case.tables.events[billed(case.tables)], "id": "invented"}


def ledger_row_altered(case: Case) -> None:
    key = billed(case.tables)
    case.tables.events[key] = {**case.tables.events[key], "subject": "cust-1", "time": START}


def refused_row_accepted(case: Case) -> None:
    key = next(key for key, row in case.tables.rejects.items() if row["reason"] == "too_late")
    case.tables.events[key] = {
        **case.tables.events[billed(case.tables)],
        "payload": case.tables.rejects.pop(key)["payload"],
    }


def both_accepted_and_rejected(case: Case) -> None:
    key = billed(case.tables)
    case.tables.rejects[key] = {**next(iter(case.tables.rejects.values())), "reason": "malformed"}


def conflict_called_a_duplicate(case: Case) -> None:
    row = next(row for row in case.tables.rejects.values() if row["reason"] == "conflict")
    row["reason"] = "duplicate"


def repeat_of_something_else(case: Case) -> None:
    row = next(row for row in case.tables.rejects.values() if row["reason"] == "duplicate")
    row["first_position"] = next(key for key in case.tables.events if key != row["first_position"])


def reject_with_another_reason(case: Case) -> None:
    row = next(row for row in case.tables.rejects.values() if row["reason"] == "malformed")
    row["reason"] = "oversized"


def offset_dropped(case: Case) -> None:
    key = next(key for key, row in case.tables.rejects.items() if row["reason"] == "malformed" and key[3] == 0)
    del case.tables.rejects[key]
    case.tables.progress[key[:2]]["events"] -= 1


def progress_behind(case: Case) -> None:
    case.tables.progress["usage", 1]["next_offset"] -= 1


def usage_off_by_the_least(case: Case) -> None:
    row = next(row for row in case.tables.usage.values() if row["aggregation"] == "sum" and row["value"] > 0)
    row["value"] += STEP


def usage_counted_twice(case: Case) -> None:
    row = next(row for row in case.tables.usage.values() if row["aggregation"] == "count")
    row |= {name: row[name] + 1 for name in ("value", "count", "inputs", "version")}


def usage_short_by_one(case: Case) -> None:
    row = next(row for row in case.tables.usage.values() if row["aggregation"] != "latest")
    row |= {name: row[name] - 1 for name in ("count", "inputs", "version")}


def usage_booked_on_another_day(case: Case) -> None:
    key = next(key for key, row in case.tables.usage.items() if key[5].year > 1970)
    case.tables.usage[*key[:5], key[5].replace(year=1971)] = case.tables.usage.pop(key)


def member_lost(case: Case) -> None:
    case.tables.usage_members.remove(min(case.tables.usage_members))


def member_invented(case: Case) -> None:
    case.tables.usage_members.add((*min(case.tables.usage_members)[:5], "nobody"))


def amount_off_by_the_least(case: Case) -> None:
    case.tables.rated_usage[plain(case.tables.rated_usage, "amount")]["amount"] += STEP * STEP


def price_of_another_quantity(case: Case) -> None:
    row = next(row for key, row in case.tables.rated_usage.items() if key[2] == "traffic")
    row["quantity"] += 1


def tiers_that_do_not_add_up(case: Case) -> None:
    row = case.tables.rated_usage[plain(case.tables.rated_usage, "amount")]
    row["tiers"] = [*row["tiers"], (Decimal(0), STEP)]


def rated_row_of_nobody(case: Case) -> None:
    key, row = next(iter(case.tables.rated_usage.items()))
    case.tables.rated_usage["nobody", *key[1:]] = row


def quota_of_an_older_total(case: Case) -> None:
    row = next(row for row in case.tables.quotas.values() if row["inputs"] > 1)
    row |= {"inputs": row["inputs"] - 1, "version": row["version"] - 1}


def quota_state_wrong(case: Case) -> None:
    next(row for row in case.tables.quotas.values() if row["state"] == "exceeded")["state"] = "warning"


def subscription_row_lost(case: Case) -> None:
    del case.tables.subscriptions[min(case.tables.subscriptions)]


def signal_missing(case: Case) -> None:
    key = next(key for key in case.tables.signals if key[0] == "quota.exceeded")
    row = case.tables.signals.pop(key)
    case.published = [event for event in case.published if event["id"] != row["id"]]


def spend_signal_missing(case: Case) -> None:
    key = next(key for key in case.tables.signals if key[0] == "spend.threshold_reached")
    row = case.tables.signals.pop(key)
    case.published = [event for event in case.published if event["id"] != row["id"]]


def signal_without_a_crossing(case: Case) -> None:
    (kind, subject, feature, start, threshold), row = next(iter(case.tables.signals.items()))
    case.tables.signals[kind, subject, feature, start, threshold * 1000] = {**row, "id": "f" * 32}


def signal_with_two_ids(case: Case) -> None:
    key, row = next(iter(case.tables.signals.items()))
    case.tables.signals[*key, "again"] = {**row, "id": "f" * 32}


def reset_of_a_running_period(case: Case) -> None:
    reached = max(line.log_time_us or 0 for line in case.messages)
    key, row = next(
        item for item in case.tables.signals.items() if "quota." in item[0][0] and item[1]["period_end"] > reached
    )
    case.tables.signals["quota.reset", *key[1:4], row["allowance"]] = {**row, "id": "f" * 32}


def signal_not_published(case: Case) -> None:
    case.published = [event for event in case.published if event["id"] != case.published[0]["id"]]


def published_without_a_row(case: Case) -> None:
    case.published.append({**case.published[0], "id": "f" * 32})


def published_with_two_contents(case: Case) -> None:
    case.published[1]["data"]["threshold"] = "7"


def published_wrongly(case: Case) -> None:
    for event in case.published[:2]:
        event["subject"] = "somebody else"


def redis_turned_back(case: Case) -> None:
    state = next(state for state in case.quotas.values() if state["inputs"] > 1)
    state["inputs"] -= 1
    state["used"] = decimal_text(int(Decimal(state["used"]) * 10**12) - 10**12, 12)


def redis_in_an_older_period(case: Case) -> None:
    rows = case.tables.quotas
    subject, plan, feature, start = next(
        key
        for key, row in rows.items()
        if any(
            key[:3] == other[:3] and row["period_end"] <= other[3] and late["period_end"] > NOW_US
            for other, late in rows.items()
        )
    )
    older = {(subject, plan, feature, start): rows[subject, plan, feature, start]}
    row = older[subject, plan, feature, start]
    case.quotas[subject, feature] |= {
        "used": str(row["used"]),
        "state": row["state"],
        "period_start": to_text(start),
        "period_end": to_text(row["period_end"]),
        "inputs": row["inputs"],
        "plan": plan,
    }


def redis_lost(case: Case) -> None:
    case.quotas.clear()


def redis_of_nobody(case: Case) -> None:
    case.quotas["nobody", "api"] = next(iter(case.quotas.values()))


TAMPERED: list[tuple[Callable[[Case], None], str, int, int]] = [
    (ledger_row_lost, "is neither accepted nor rejected", 1, 0),
    (ledger_row_moved_to_rejects, "is valid and counts nowhere", 1, 0),
    (ledger_row_doubled, "counts more than once", 0, 1),
    (ledger_row_invented, "accepted, but not in the log", 0, 0),
    (ledger_row_altered, "is not what stands in the log", 0, 0),
    (refused_row_accepted, "counts, but is too_late", 0, 1),
    (both_accepted_and_rejected, "both accepted and rejected", 0, 0),
    (conflict_called_a_duplicate, "is a conflict of", 0, 0),
    (repeat_of_something_else, "(duplicate) repeats", 0, 0),
    (reject_with_another_reason, "is malformed, not oversized", 0, 0),
    (offset_dropped, "is neither accepted nor rejected", 0, 0),
    (progress_behind, "progress: partition 1 is at", 0, 0),
    (usage_off_by_the_least, "value is", 0, 0),
    (usage_counted_twice, "inputs is", 0, 1),
    (usage_short_by_one, "inputs is", 1, 0),
    (usage_booked_on_another_day, "usage: ", 0, 0),
    (member_lost, "usage_members: ", 0, 0),
    (member_invented, "usage_members: ", 0, 0),
    (amount_off_by_the_least, "is not the price of", 0, 0),
    (price_of_another_quantity, "is not the price of", 0, 0),
    (tiers_that_do_not_add_up, "the tiers do not add up", 0, 0),
    (rated_row_of_nobody, "does not come from the ledger", 0, 1),
    (quota_of_an_older_total, "quotas: ", 1, 0),
    (quota_state_wrong, "state is warning, the ledger gives exceeded", 0, 0),
    (subscription_row_lost, "subscriptions: ", 0, 0),
    (signal_missing, "has 0 signals", 0, 0),
    (spend_signal_missing, "has 0 signals", 0, 0),
    (signal_without_a_crossing, "was never crossed", 0, 0),
    (signal_with_two_ids, "has 2 signals", 0, 0),
    (reset_of_a_running_period, "was never crossed", 0, 0),
    (signal_not_published, "never was", 0, 0),
    (published_without_a_row, "is in no table", 0, 0),
    (published_with_two_contents, "with two contents", 0, 0),
    (published_wrongly, "says", 0, 0),
    (redis_turned_back, "Redis: ", 0, 0),
    (redis_in_an_older_period, "a newer began", 0, 0),
    (redis_lost, "there is no quota state", 0, 0),
    (redis_of_nobody, "the ledger has nothing", 0, 0),
]


@pytest.mark.parametrize(("tamper", "named", "lost", "doubled"), TAMPERED, ids=[case[0].__name__ for case in TAMPERED])
def test_tampering_is_found_and_named(
    right: Case, tamper: Callable[[Case], None], named: str, lost: int, doubled: int
) -> None:
    tamper(right)
    found = right.audit()
    assert any(named in violation for violation in found.violations), str(found)
    assert (found.lost >= lost, found.doubled >= doubled) == (True, True), str(found)
    if lost == doubled == 0 and "ledger" not in tamper.__name__:
        assert (found.lost, found.doubled) == (0, 0), str(found)

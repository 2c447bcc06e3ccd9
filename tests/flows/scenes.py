"""The inputs of whole runs: files that grow, a catalog and the version after it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import yaml

from tests.flows.places import events, expected, grown
from tests.oracle import Tables
from tests.workload import kitchen_sink_catalog

CATALOG = kitchen_sink_catalog()
EVENTS = 200
SEEDS = (11, 12)
"""Of the first and of the second part of the files."""


@dataclass(frozen=True)
class Scene:
    """Files that grow, and what the oracle makes of them."""

    first: list[bytes]
    whole: list[bytes]
    wanted: Tables


def make_scene() -> Scene:
    """The second part comes 300 days after the first, with the ids of the first."""
    first = events(SEEDS[0], EVENTS)
    whole = grown(first, events(SEEDS[1], EVENTS, days_later=300))
    return Scene(first, whole, expected([(0, CATALOG)], whole))


def second_version() -> str:
    """A meter, a price, a limit and an event type more; one subscription ended, one begun."""
    raw = yaml.safe_load(CATALOG)
    raw["event_types"]["job.done"] = {
        "schema": {"type": "object", "required": ["units"], "properties": {"units": {"type": "integer", "minimum": 0}}}
    }
    raw["meters"]["jobs"] = {
        "event_type": "job.done", "aggregation": "sum", "value": "units", "window": "1d", "grace": "1h"
    }  # fmt: skip
    raw["meters"]["requests_hourly"] = {
        "event_type": "api.request", "aggregation": "count", "group_by": ["region"], "window": "1h"
    }  # fmt: skip
    del raw["meters"]["trust"]
    for plan in ("pro", "starter"):
        raw["plans"][plan]["prices"] += [
            {"key": "jobs", "meter": "jobs", "model": "per_unit", "unit_amount": "0.01"},
            {"key": "hourly", "meter": "requests_hourly", "model": "package", "size": 2, "amount": "1"},
        ]
    raw["plans"]["pro"]["entitlements"] += [
        {"feature": "jobs", "kind": "metered", "meter": "jobs", "limit": 10, "period": "day", "thresholds": [0.5, 1]}
    ]
    for subscription in raw["subscriptions"]:
        if subscription["subject"] == "cust-berlin":
            subscription["end"] = date(2027, 3, 10)
    raw["subscriptions"].append({"subject": "cust-1", "plan": "pro", "start": date(2027, 3, 1)})
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)

"""Crossings and signals, quota states and their copy for products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from tests.audit.ids import Findings
from tests.audit.prices import UNIT, scaled
from tests.audit.totals import Added, Key, Quota
from tests.oracle import Tables
from tests.oracle.events import instant_us

SPEND = "spend.threshold_reached"


def crossings(added: Added, log_time_reached: int | None) -> dict[Key, dict[str, int]]:
    """Every signal there has to be: type, subject, feature, start and threshold; its period's end and allowance.

    What grows from nothing has crossed each threshold that it has reached. A quota period of which one was crossed
    gets a reset once it is over: by the log's time, or without one by a later period with events.
    """
    wanted = {}
    latest: dict[tuple[str, str], int] = {}
    for (subject, _, feature, start), quota in added.quotas.items():
        latest[subject, feature] = max(start, latest.get((subject, feature), start))
        for threshold, is_limit in quota.thresholds():
            if quota.used >= threshold:
                kind = "quota.exceeded" if is_limit else "quota.threshold_reached"
                wanted[kind, subject, feature, start, threshold] = {"period_end": quota.end, "allowance": quota.limit}
    for (subject, _, feature, start), quota in added.quotas.items():
        reached = latest[subject, feature] if log_time_reached is None else log_time_reached
        if quota.end <= reached and any(quota.used >= threshold for threshold, _ in quota.thresholds()):
            key = ("quota.reset", subject, feature, start, quota.limit)
            wanted[key] = {"period_end": quota.end, "allowance": quota.limit}
    for (subject, plan, start, end), spent in added.spent.items():
        for alert in added.pricing[subject, plan, start, end].plans[plan].get("alerts") or []:
            amount = scaled(alert["amount"], UNIT**2)
            if spent >= amount:
                wanted[SPEND, subject, alert["key"], start, amount] = {"period_end": end, "allowance": amount}
    return wanted


def check_signals(tables: Tables, wanted: Mapping[Key, dict[str, int]], findings: Findings) -> None:
    """Every crossing has one row, no row is without one, and no id is given twice."""
    found: dict[Key, list[dict[str, Any]]] = {}
    for key, row in tables.signals.items():
        found.setdefault((*key[:4], scaled(key[4], _unit(key[0]))), []).append(row)
    for key in sorted(wanted.keys() | found.keys(), key=repr):
        rows = found.get(key, [])
        if key not in wanted:
            findings.say(f"signals: {key} was never crossed: {rows}")
        elif len(rows) != 1:
            findings.say(f"signals: the crossing {key} has {len(rows)} signals")
        for row in rows:
            for name, value in wanted.get(key, {}).items():
                have = row[name] if name == "period_end" else scaled(row[name], _unit(key[0]))
                if have != value:
                    findings.say(f"signals: {key}: {name} is {row[name]}, not {value}")
    ids: dict[str, Key] = {}
    for key, row in tables.signals.items():
        other = ids.setdefault(row["id"], key)
        if other != key:
            findings.say(f"signals: one id {row['id']} for {other} and {key}")


def check_published(tables: Tables, published: Sequence[Mapping[str, Any]], findings: Findings) -> None:
    """Each signal of the table was published, nothing else was, and repeats of an id say the same.

    A repeat may have another `used` and `time`: what was seen when it was sent.
    """
    wanted = {row["id"]: (key, row) for key, row in tables.signals.items()}
    contents: dict[str, dict[str, Any]] = {}
    for event in published:
        data = {name: value for name, value in event["data"].items() if name != "used"}
        content = {**{name: value for name, value in event.items() if name != "time"}, "data": data}
        if contents.setdefault(event["id"], content) != content:
            findings.say(f"published: {event['id']} with two contents: {content} and {contents[event['id']]}")
    for id_, content in contents.items():
        if id_ not in wanted:
            findings.say(f"published: {id_} is in no table: {content}")
        else:
            (kind, subject, feature, start, threshold, *_), row = wanted[id_]
            data = content["data"]
            said = (content["type"], content["subject"], data["feature"], instant_us(data["period_start"]))
            told = (instant_us(data["period_end"]), Decimal(data["threshold"]), Decimal(data["allowance"]))
            if said != (kind, subject, feature, start) or told != (row["period_end"], threshold, row["allowance"]):
                findings.say(f"published: {id_} says {content}, the table {wanted[id_]}")
    for id_ in wanted.keys() - contents.keys():
        findings.say(f"published: {id_} never was: {wanted[id_]}")


def check_quota_states(
    added: Added, states: Mapping[tuple[str, str], Mapping[str, Any]], now_us: int, findings: Findings
) -> None:
    """Redis says of every running period what the ledger's rows add up to, and has no older one in its place."""
    running: dict[tuple[str, str], list[tuple[int, Quota]]] = {}
    for (subject, _, feature, start), quota in added.quotas.items():
        if quota.end > now_us:
            running.setdefault((subject, feature), []).append((start, quota))
    for key in sorted(running.keys() - states.keys()):
        findings.say(f"Redis: there is no quota state of {key}")
    for (subject, feature), state in states.items():
        start, end = instant_us(state["period_start"]), instant_us(state["period_end"])
        wanted = added.quotas.get((subject, state["plan"], feature, start))
        if wanted is None:
            findings.say(f"Redis: {subject}, {feature}: the ledger has nothing in the period of {dict(state)}")
            continue
        told = {"used": wanted.used, "limit": wanted.limit, "inputs": wanted.inputs, "state": wanted.state}
        have = {name: scaled(state[name]) if name in ("used", "limit") else state[name] for name in told}
        is_running = wanted.end > now_us
        if end != wanted.end or (is_running and have != told) or have["inputs"] > wanted.inputs:
            findings.say(f"Redis: {subject}, {feature}: {dict(state)}, the ledger gives {told}")
        newer = [later for later, _ in running.get((subject, feature), []) if later >= wanted.end]
        if newer:
            findings.say(
                f"Redis: {subject}, {feature} is of the period until {wanted.end}; a newer began at {newer[0]}"
            )


def _unit(kind: str) -> int:
    return UNIT**2 if kind == SPEND else UNIT

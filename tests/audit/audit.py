"""The audit: every invariant of the whole, one after the other; what breaks one is named."""

from __future__ import annotations

import decimal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.audit.evidence import Message
from tests.audit.ids import Findings, Log, check_ids, check_positions, counted
from tests.audit.signals import check_published, check_quota_states, check_signals, crossings
from tests.audit.totals import Adding
from tests.oracle import Tables
from tests.oracle.catalogs import History, load


@dataclass(frozen=True)
class Audit:
    violations: list[str]
    """What is wrong, in words; empty if nothing is."""
    lost: int
    """Ids that are valid and do not count, or in some meter's totals do not."""
    doubled: int
    """Ids that count although they must not: a second time in the ledger, or in some meter's totals above it."""

    def __str__(self) -> str:
        return "\n".join([f"lost {self.lost}, doubled {self.doubled}", *self.violations[:50]])


def audit(
    catalogs: Sequence[tuple[int, str]],
    topic: str,
    messages: Sequence[Message],
    tables: Tables,
    *,
    quotas: Mapping[tuple[str, str], Mapping[str, Any]] | None = None,
    published: Sequence[Mapping[str, Any]] | None = None,
    now_us: int | None = None,
) -> Audit:
    """Check what a run that is at rest has left behind.

    Args:
        catalogs: Versions 1, 2 ... as (log time from which it holds, YAML).
        topic: The name of the log; `file` for files.
        messages: All that the log holds, or `file_messages`. Offsets without a message (transactions' markers, what a
            transaction took back) are no business of ours.
        tables: What stands in ClickHouse.
        quotas: By subject and feature, the parsed quota states of Redis.
        published: Every message of the signals topic, parsed, repeats too.
        now_us: When the quota states were read; by default just now. Those of periods that are over may be gone.
    """
    findings = Findings()
    with decimal.localcontext() as context:
        context.prec = 200
        context.traps[decimal.Inexact] = True
        history = History([load(number, *catalog) for number, catalog in enumerate(catalogs, start=1)])
        log = Log.judged(topic, messages, history)
        check_positions(log, topic, tables, findings)
        check_ids(log, tables, findings)
        added = Adding(history, tables, findings).add_up(counted(log, tables, findings))
        check_signals(tables, crossings(added, log.log_time_reached), findings)
        if published is not None:
            check_published(tables, published, findings)
        if quotas is not None:
            check_quota_states(added, quotas, time.time_ns() // 1000 if now_us is None else now_us, findings)
    findings.doubled += max([0, *added.excess.values()])
    findings.lost += max([0, *(-more for more in added.excess.values())])
    return Audit(findings.violations, findings.lost, findings.doubled)

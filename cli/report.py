"""What a run looks like to the person who started it: progress, outcome, top usage, signals, balance."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from clickhouse_connect.driver.client import Client
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

_REFRESH_SECONDS = 0.2


def console() -> Console:
    """Standard output; tables keep their width in a pipe."""
    out = Console()
    return out if out.is_terminal else Console(width=100)


@contextmanager
def progress(share: Callable[[], float], events: Callable[[], int]) -> Iterator[None]:
    """A bar with rate and time left while the block runs; nothing where standard error is no terminal."""
    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield
        return
    columns = (
        TextColumn("counting"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[events]:,} events"),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    done = threading.Event()
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task("", total=1.0, events=0, rate=0.0)

        def refresh() -> None:
            while not done.wait(_REFRESH_SECONDS):
                count = events()
                elapsed = bar.tasks[task].elapsed or 1.0
                bar.update(task, completed=share(), events=count, rate=count / elapsed)

        painter = threading.Thread(target=refresh, name="progress", daemon=True)
        painter.start()
        try:
            yield
        finally:
            done.set()
            painter.join()


def outcome(client: Client, out: Console) -> bool:
    """Accepted and rejected by reason, and whether the books balance."""
    accepted = _number(client, "SELECT count() FROM events FINAL")
    reasons = client.query("SELECT reason, events, example FROM rejects_by_reason ORDER BY events DESC").result_rows
    read = _number(client, "SELECT sum(events) FROM progress FINAL")
    rejected = sum(row[1] for row in reasons)
    table = _table("Events", "", "events", "example")
    table.add_row("accepted", f"{accepted:,}", "")
    for reason, count, example in reasons:
        table.add_row(f"rejected: {reason}", f"{count:,}", _cut(example))
    out.print(table)
    open_partitions = _number(client, "SELECT count() FROM completeness WHERE NOT balanced")
    balanced = read == accepted + rejected and not open_partitions
    sign = "=" if balanced else "≠"
    out.print(
        f"balance: {read:,} events in {sign} {accepted:,} accepted + {rejected:,} rejected"
        + ("" if balanced else f" ({open_partitions} partitions do not balance)"),
        style="green" if balanced else "bold red",
        highlight=False,
    )
    return balanced


def top_usage(client: Client, out: Console, limit: int = 10) -> None:
    """The subjects that cost most, with what they used."""
    meters = [
        row[0] for row in client.query("SELECT DISTINCT meter FROM rated_usage_current ORDER BY meter").result_rows
    ]
    rows = client.query(
        """
        SELECT subject, plan, sumMap(map(meter, quantity)), sum(amount) AS cost, any(currency)
        FROM (SELECT subject, plan, meter, max(quantity) AS quantity, sum(amount) AS amount, any(currency) AS currency
              FROM rated_usage_current GROUP BY subject, plan, meter, period_start, period_end)
        GROUP BY subject, plan ORDER BY cost DESC, subject LIMIT {limit:UInt32}
        """,
        parameters={"limit": limit},
    ).result_rows
    table = _table("Top usage and cost", "subject", "plan", *meters, "cost")
    for subject, plan, used, cost, currency in rows:
        cells = [quantity_text(used.get(meter)) for meter in meters]
        table.add_row(_cut(subject, 40), plan, *cells, f"{cost:,.2f} {currency}")
    out.print(table)


def signals(client: Client, out: Console, limit: int = 10) -> None:
    """How many signals were sent, and some of them."""
    total = _number(client, "SELECT count() FROM signals FINAL")
    rows = client.query(
        """
        SELECT type, subject, feature, period_start, threshold, used FROM signals FINAL
        ORDER BY type, used DESC, subject LIMIT {limit:UInt32}
        """,
        parameters={"limit": limit},
    ).result_rows
    table = _table(
        f"Signals ({min(limit, total):,} of {total:,})", "type", "subject", "feature", "period", "at", "used"
    )
    for kind, subject, feature, start, threshold, used in rows:
        texts = (quantity_text(threshold), quantity_text(used))
        table.add_row(kind, _cut(subject, 40), feature, f"{start:%Y-%m-%d}", *texts)
    out.print(table)


def quantity_text(value: Decimal | None) -> str:
    """A quantity for people: thousands separated, trailing zeros cut."""
    if value is None:
        return ""
    return f"{value.normalize():,f}" if value else "0"


def warn(message: str) -> None:
    print(f"tally: {message}", file=sys.stderr)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or column in _TEXTUAL else "right", overflow="fold")
    return table


_TEXTUAL = frozenset({"subject", "plan", "feature", "example", "type", "period", ""})


def _number(client: Client, sql: str) -> int:
    rows: Sequence[Sequence[Any]] = client.query(sql).result_rows
    return int(rows[0][0] or 0)


def _cut(text: str, length: int = 60) -> str:
    """One line of text, without control characters, so that data cannot draw on the terminal."""
    plain = "".join(c if c.isprintable() else "�" for c in text)
    return plain if len(plain) <= length else plain[: length - 1] + "…"

"""What a run looks like to the person who started it: progress, outcome, top usage, signals, balance.

Results go to standard output, everything else to standard error. What comes from events is shown without
control characters, so that data cannot draw on the terminal.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from clickhouse_connect.driver.client import Client
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from domain.values import Reason
from telemetry import logs
from telemetry.plain import shown

WIDTH_IN_A_PIPE = 100
_REFRESH_SECONDS = 0.2
_EXAMPLE_CHARS_MIN = 20
_PRECEDENCE: dict[str, int] = {reason: place for place, reason in enumerate(Reason)}


def console() -> Console:
    """Standard output; tables keep their width in a pipe. Text from events is never taken for markup."""
    out = Console(markup=False, emoji=False, highlight=False)
    if not out.is_terminal:
        out.width = WIDTH_IN_A_PIPE
    return out


@dataclass(slots=True)
class Clock:
    """How long something took, once it is over."""

    seconds: float = 0.0


@contextmanager
def progress(
    share: Callable[[], float] | None,
    events: Callable[[], int],
    waiting: Callable[[], int] | None = None,
    *,
    rebuilt: Callable[[], float] | None = None,
) -> Iterator[Clock]:
    """A bar with rate and time left while the block runs; nothing where standard error is no terminal.

    Input without an end has no share that is read: events and rate are shown, and how many messages wait to be read.
    While state is rebuilt, the bar is about the ledger.
    """
    clock, started = Clock(), time.monotonic()
    screen = Console(stderr=True)
    counts = TextColumn("{task.fields[events]:,} events  {task.fields[rate]:,.0f}/s ")
    bar_columns = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% "),
        counts,
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    lag = TextColumn("{task.fields[waiting]:,} waiting")
    columns = [TextColumn("{task.description}"), *(bar_columns if share or rebuilt else (counts,))]
    columns += [] if share else [lag]
    done = threading.Event()
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("counting", total=1.0, events=0, rate=0.0, waiting=0)

        def refresh() -> None:
            while not done.wait(_REFRESH_SECONDS):
                count = events()
                rate = count / max(time.monotonic() - started, _REFRESH_SECONDS)
                left = waiting() if waiting else 0
                what, done_share = "counting", share() if share else None
                if rebuilt is not None and rebuilt() < 1:
                    what, done_share = "rebuilding", rebuilt()
                bar.update(task, description=what, completed=done_share, events=count, rate=rate, waiting=left)

        painter = threading.Thread(target=refresh, name="progress", daemon=True)
        painter.start()
        try:
            yield clock
        finally:
            clock.seconds = time.monotonic() - started
            done.set()
            painter.join()


@contextmanager
def steps(what: str, total: int | None, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar for work whose steps are told to the function given; nothing where standard error is no terminal."""
    screen = Console(stderr=True)
    with Progress(console=screen, transient=True, disable=not (shown and screen.is_terminal)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


@dataclass(frozen=True, slots=True)
class Books:
    """What a deployment has read, and what became of it."""

    read: int = 0
    accepted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    open_partitions: int = 0
    """Partitions whose events are not all accepted or rejected."""
    ahead: int = 0
    """Of the accepted and rejected, those that a run wrote which was killed before they counted as read."""

    @property
    def balanced(self) -> bool:
        return self.read + self.ahead == self.accepted + sum(self.rejected.values()) and not self.open_partitions


def books(client: Client) -> Books:
    """The totals as the tables have them."""
    rows = client.query("SELECT reason, sum(events), any(example) FROM rejects_by_reason GROUP BY reason").result_rows
    reasons = sorted(rows, key=lambda row: (-row[1], _PRECEDENCE.get(row[0], len(Reason))))
    return Books(
        read=_number(client, "SELECT sum(events) FROM progress FINAL"),
        accepted=_number(client, "SELECT count() FROM events FINAL"),
        rejected={reason: int(count) for reason, count, _ in reasons},
        examples={reason: example for reason, _, example in reasons},
        open_partitions=_number(client, "SELECT count() FROM completeness WHERE NOT balanced"),
        ahead=_number(client, _AHEAD),
    )


_AHEAD = """
SELECT (SELECT count() FROM events FINAL) + (SELECT count() FROM rejects FINAL) - sum(accepted + rejected)
FROM completeness
"""


def outcome(now: Books, before: Books, out: Console) -> None:
    """Print accepted and rejected by reason, of this run and in total, and whether the books balance."""
    rows = [("accepted", now.accepted, before.accepted, "")]
    rows += [(f"rejected: {r}", n, before.rejected.get(r, 0), now.examples[r]) for r, n in now.rejected.items()]
    again = before.read > 0
    numbers = [[f"{n - earlier:,}", f"{n:,}"] if again else [f"{n:,}"] for _, n, earlier, _ in rows]
    heads = ["new", "total"] if again else ["events"]
    widths = [max(map(len, cells)) for cells in zip(heads, *numbers, strict=True)]
    width = out.width - max(len(row[0]) for row in rows) - sum(widths) - 3 * (len(heads) + 2) - 1
    table = _table("Events", "", *heads, "example")
    for (name, _, _, example), cells in zip(rows, numbers, strict=True):
        table.add_row(name, *cells, _cut(example, max(width, _EXAMPLE_CHARS_MIN)))
    out.print(table)
    sign = "=" if now.balanced else "≠"
    ahead = f" - {now.ahead:,} to be read again" if now.ahead else ""
    partitions = f" ({now.open_partitions:,} partitions do not balance)" if now.open_partitions else ""
    out.print(
        f"balance: {now.read:,} events in {sign} {now.accepted:,} accepted + {sum(now.rejected.values()):,} rejected"
        + ahead
        + partitions,
        style="green" if now.balanced else "bold red",
    )


def speed(events: int, seconds: float) -> None:
    """Say what this run has read, and how fast."""
    rate = f" ({events / seconds:,.0f} a second)" if events and seconds > 0 else ""
    _tell("", f"this run: {events:,} events read in {seconds:,.1f} s{rate}")


def top_usage(client: Client, out: Console, limit: int = 10) -> None:
    """The subjects that cost most, with what they used."""
    meters = [
        row[0] for row in client.query("SELECT DISTINCT meter FROM rated_usage_current ORDER BY meter").result_rows
    ]
    rows = client.query(
        """
        SELECT subject, plan, sumMap(map(meter, quantity)), sum(amount) AS cost, any(currency)
        FROM (SELECT subject, plan, meter, max(quantity) AS quantity, sum(amount) AS amount, any(currency) AS currency,
                  max(inputs) AS inputs
              FROM rated_usage_current GROUP BY subject, plan, meter, period_start, period_end)
        GROUP BY subject, plan ORDER BY cost DESC, sum(inputs) DESC, subject LIMIT {limit:UInt32}
        """,
        parameters={"limit": limit},
    ).result_rows
    table = _table("Top usage and cost", "subject", "plan", *meters, "cost")
    for subject, plan, used, cost, currency in rows:
        cells = [quantity_text(used.get(meter)) for meter in meters]
        table.add_row(_cut(subject, 40), plan, *cells, f"{cost:,.2f} {currency}")
    out.print(table)


def signals(client: Client, out: Console, limit: int = 10) -> None:
    """How many signals were sent, and some of each type."""
    total = _number(client, "SELECT count() FROM signals FINAL")
    rows = client.query(
        """
        SELECT type, subject, feature, period_start, threshold, used FROM signals FINAL
        ORDER BY type, used DESC, subject LIMIT {each:UInt32} BY type LIMIT {limit:UInt32}
        """,
        parameters={"limit": limit, "each": limit // 2},
    ).result_rows
    table = _table(f"Signals ({len(rows):,} of {total:,})", "type", "subject", "feature", "period", "at", "used")
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
    """Tell an operator, on standard error."""
    _tell("tally: ", message)


def _tell(prefix: str, message: str) -> None:
    if logs.speaks_json():
        logs.logger().warning(logs.Event.NOTICE, message=message.strip())
    else:
        print(shown(f"{prefix}{message}"), file=sys.stderr)


def stopping(at_once: bool) -> None:
    """Say what a signal did; a bar that is cut off would leave the terminal without a cursor."""
    if not at_once:
        warn("stopping after what was read so far; once more ends at once")
        return
    screen = Console(stderr=True)
    if screen.is_terminal:
        screen.show_cursor()
    warn("ended at once; run again to go on from the last snapshot" + ("\n" if screen.is_terminal else ""))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or column in _TEXTUAL else "right", overflow="fold")
    return table


_TEXTUAL = frozenset({"subject", "plan", "feature", "example", "type", "period", ""})


def _number(client: Client, sql: str) -> int:
    rows: Sequence[Sequence[Any]] = client.query(sql).result_rows
    return int(rows[0][0] or 0)


def _cut(text: str, length: int) -> str:
    """One line of text, without control characters."""
    plain = "".join(c if c.isprintable() else "�" for c in text)
    return plain if len(plain) <= length else plain[: length - 1] + "…"

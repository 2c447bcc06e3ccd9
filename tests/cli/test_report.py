"""The summary fits its width, and nothing in an event can draw on the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cli.report import Books, console, outcome


def printed(now: Books, before: Books, width: int) -> list[str]:
    out = io.StringIO()
    outcome(now, before, Console(file=out, width=width, markup=False, emoji=False, highlight=False))
    return out.getvalue().splitlines()


NOW = Books(
    read=1_000_010,
    accepted=1_000_000,
    rejected={"schema_violation": 9, "malformed": 1},
    examples={"schema_violation": "data.x: " + "very " * 30 + "long", "malformed": "[/red] :smile: \x1b[2J\n"},
)


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("before", [Books(), Books(read=10, accepted=9, rejected={"malformed": 1})])
def test_a_row_is_one_line(width: int, before: Books) -> None:
    lines = printed(NOW, before, width)
    assert len(lines) == 1 + 3 + 3 + 1 + 1
    assert max(map(len, lines)) == width
    assert lines[-1] == "balance: 1,000,010 events in = 1,000,000 accepted + 10 rejected"
    assert any("very long very" not in line and line.endswith("… │") for line in lines)
    assert any("[/red] :smile: �[2J�" in line for line in lines)


def test_what_is_new_stands_beside_the_total() -> None:
    lines = printed(NOW, Books(read=11, accepted=9, rejected={"malformed": 1}), 100)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]][:3] for line in lines if line.startswith("│")]
    assert cells == [
        ["accepted", "999,991", "1,000,000"],
        ["rejected: schema_violation", "9", "9"],
        ["rejected: malformed", "0", "1"],
    ]


def test_books_that_do_not_balance_say_so() -> None:
    wrong = Books(read=11, accepted=9, rejected={"duplicate": 1}, examples={"duplicate": ""}, open_partitions=1)
    assert not wrong.balanced
    assert printed(wrong, Books(), 80)[-1] == (
        "balance: 11 events in ≠ 9 accepted + 1 rejected (1 partitions do not balance)"
    )


def test_what_a_killed_run_wrote_does_not_unbalance_them() -> None:
    """Stopped before it has read again what the killed one had written already."""
    now = Books(read=11, accepted=12, rejected={"duplicate": 1}, examples={"duplicate": ""}, ahead=2)
    assert now.balanced
    assert printed(now, Books(), 100)[-1] == ("balance: 11 events in = 12 accepted + 1 rejected - 2 to be read again")


def test_a_pipe_has_a_width_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    out = console()
    out.print("x" * 150)
    assert max(map(len, capsys.readouterr().out.splitlines())) == 100

"""`python -m tests.simulation --seeds 200`: run seeds, say what they met, and how to run again the one that failed."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.simulation.mutants import MUTANTS
from tests.simulation.run import EVENTS, Outcome, collect_seldom, simulate
from tests.simulation.trouble import Kind

VIOLATIONS_SHOWN = 10


def main(
    seeds: Annotated[int, typer.Option(help="How many to run.")] = 200,
    first: Annotated[int, typer.Option(help="The first of them.")] = 1,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
    events: Annotated[int, typer.Option(help="Of each seed's workload, at least.")] = EVENTS,
    mutant: Annotated[str | None, typer.Option(help=f"A wrong build to run: {', '.join(MUTANTS)}.")] = None,
    calm: Annotated[bool, typer.Option(help="Let nothing go wrong.")] = False,
) -> None:
    """Run seeds; the exit code is 1 if any went wrong."""
    if mutant is not None and mutant not in MUTANTS:
        raise typer.BadParameter(f"there is no mutant {mutant!r}: take one of {', '.join(MUTANTS)}")
    console = Console()
    run = partial(simulate, events=events, mutant=mutant, disturbed=not calm)
    begun = time.monotonic()
    outcomes: list[Outcome] = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("seeds", total=seeds)
        for outcome in _outcomes(run, range(first, first + seeds), jobs):
            outcomes.append(outcome)
            if outcome.violations:
                console.print(failure(outcome, events=events, mutant=mutant), markup=False, highlight=False)
            progress.advance(task)
    console.print(_summary(outcomes, time.monotonic() - begun))
    raise typer.Exit(1 if any(outcome.violations for outcome in outcomes) else 0)


def _outcomes(run: partial[Outcome], seeds: range, jobs: int) -> Iterator[Outcome]:
    if jobs == 1:
        yield from map(run, seeds)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=collect_seldom) as pool:
        for future in as_completed([pool.submit(run, seed) for seed in seeds]):
            yield future.result()


def failure(outcome: Outcome, *, events: int = EVENTS, mutant: str | None = None) -> str:
    """What went wrong with a seed, and all that is needed to see it again."""
    command = f"python -m tests.simulation --first {outcome.seed} --seeds 1 --jobs 1"
    command += f" --events {events}" if events != EVENTS else ""
    command += f" --mutant {mutant}" if mutant else ""
    found = [f"  {violation[:400]}" for violation in outcome.violations[:VIOLATIONS_SHOWN]]
    more = len(outcome.violations) - len(found)
    return "\n".join(
        [
            f"seed {outcome.seed} at commit {_commit()}: lost {outcome.lost}, doubled {outcome.doubled}",
            *found,
            *([f"  and {more} more"] if more > 0 else []),
            f"again: {command}",
            f"the last that happened before its end: {', '.join(outcome.trail)}",
        ]
    )


def _commit() -> str:
    found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _summary(outcomes: list[Outcome], seconds: float) -> Table:
    faults: Counter[tuple[str, Kind]] = sum((outcome.faults for outcome in outcomes), Counter())
    events = sum(outcome.events for outcome in outcomes)
    table = Table(title=f"{len(outcomes)} seeds in {seconds:.0f} s", show_header=False)
    table.add_row("events in tables", f"{events:,}")
    table.add_row("starts", f"{sum(outcome.starts for outcome in outcomes):,}")
    table.add_row("crashes", f"{sum(outcome.crashes for outcome in outcomes):,}")
    table.add_row("starts ended by an error", f"{sum(len(outcome.errors) for outcome in outcomes):,}")
    table.add_section()
    for (service, kind), count in sorted(faults.items()):
        table.add_row(f"{service}: {kind}", f"{count:,}")
    table.add_section()
    table.add_row("ids lost", f"{sum(outcome.lost for outcome in outcomes):,}")
    table.add_row("ids doubled", f"{sum(outcome.doubled for outcome in outcomes):,}")
    table.add_row("seeds with violations", f"{sum(bool(outcome.violations) for outcome in outcomes):,}")
    return table


if __name__ == "__main__":
    typer.run(main)

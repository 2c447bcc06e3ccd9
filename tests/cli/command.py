"""The `tally` command as a user runs it: inside this process, or in one of its own where that matters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SECONDS_MAX = 60


class Result(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


Inside = Callable[..., Result]


def environment(**settings: str) -> dict[str, str]:
    """This process's, without its own settings of tallyflow."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TALLY_", "FORCE_COLOR"))}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "PATH": os.environ["PATH"]} | settings


def start(*arguments: str | Path, cwd: Path, script: str | None = None, **settings: str) -> subprocess.Popen[str]:
    """A command in a process of its own; `script` is run instead of the command, with the same arguments."""
    how = ["-c", script] if script else ["-m", "cli.main"]
    return subprocess.Popen(
        [sys.executable, *how, *map(str, arguments)],
        cwd=cwd,
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def ended(process: subprocess.Popen[str]) -> Result:
    """Wait for a process; one that does not end is killed, and fails the test."""
    try:
        out, err = process.communicate(timeout=SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Result(process.returncode, out, err)


def tally(*arguments: str | Path, cwd: Path, **settings: str) -> Result:
    """Run a command in a process of its own."""
    return ended(start(*arguments, cwd=cwd, **settings))


def shown(result: Result) -> str:
    """Everything a command said, for a test that fails."""
    return f"exit code {result.code}\n{result.out}\n{result.err}"

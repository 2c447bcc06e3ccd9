"""Disks that are too small: a mount of its own, and what fills it.

`python -m tests.faults.disk FOLDER POINT N run ...` is `tally` on a disk that is full from the Nth passing of a point
(`kill_at.POINTS`) on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cli.main import app
from tests.faults.kill_at import arm

_CHUNK = bytes(4096)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A disk of its own at a folder, in memory. Mounting needs root, and to be let."""
    folder.mkdir(parents=True)
    options = f"size={megabytes}m,mode=0700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        reason = f"a small disk cannot be mounted here: {mounted.stderr.strip()}"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(f"NOT TESTED: {reason}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave not a byte on the disk of a folder."""
    with suppress(OSError), open(folder / "filler", "ab", buffering=0) as file:
        while True:
            file.write(_CHUNK)


def make_space(folder: Path) -> None:
    """Undo `fill`."""
    (folder / "filler").unlink()


def main() -> None:
    folder, point, passing = Path(sys.argv.pop(1)), sys.argv.pop(1), int(sys.argv.pop(1))
    arm(point, passing, lambda: fill(folder))
    app()


if __name__ == "__main__":
    main()

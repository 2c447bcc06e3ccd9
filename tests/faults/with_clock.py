"""Another clock: `python -m tests.faults.with_clock FILE MODULE ...` runs a module whose wall clock FILE sets.

The file says by how much that clock is ahead of the machine's ("+3h", "-30m"), and may change at any time. The
monotonic clock goes on, as it does where somebody sets a machine's clock. Needs libfaketime (Debian: `faketime`).
"""

from __future__ import annotations

import os
import runpy
import select
import sys
import time
from pathlib import Path

import pytest

_LIBRARY = "libfaketimeMT.so.1"
_FOLDERS = [*Path("/usr/lib").glob("*/faketime"), Path("/usr/lib/faketime"), Path("/usr/local/lib/faketime")]


def library() -> Path:
    """Where libfaketime is; a test is skipped without it, and fails where CI demands it."""
    for folder in _FOLDERS:
        if (folder / _LIBRARY).is_file():
            return folder / _LIBRARY
    missing = "another clock needs libfaketime: apt-get install faketime"
    if os.environ.get("CI"):
        pytest.fail(missing, pytrace=False)
    pytest.skip(f"NOT TESTED: {missing}")


def _sleep(seconds: float) -> None:
    select.select([], [], [], seconds)


def main() -> None:
    """Begin anew with the library, and then be the module."""
    if "LD_PRELOAD" not in os.environ:
        own = {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": sys.argv[1],
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        os.execve(sys.executable, [sys.executable, "-m", "tests.faults.with_clock", *sys.argv[1:]], os.environ | own)
    # libfaketime 0.9.10 refuses how Python sleeps: until a moment of the monotonic clock.
    time.sleep = _sleep  # type: ignore[assignment]
    _, _, module, *arguments = sys.argv
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

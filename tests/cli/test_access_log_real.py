"""A real access log, if there is one: the tables add up to what plain Python finds in the raw lines."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from tests.cli.access_logs import counted, expected
from tests.cli.command import ROOT, Inside

LOG = Path(os.environ.get("TEST_ACCESS_LOG") or ROOT.parent / "shared" / "data" / "access_log.gz")


@pytest.mark.skipif(
    not LOG.is_file(), reason=f"there is no {LOG}: set TEST_ACCESS_LOG to an access log in the combined format (.gz)"
)
def test_the_tables_add_up_to_a_real_log(inside: Inside) -> None:
    with gzip.open(LOG, "rt", encoding="utf-8", errors="backslashreplace") as log:
        lines = [line.rstrip("\r\n") for line in log]
    converted, run, found = counted(inside, LOG)
    assert converted.err == f"{LOG}: {len(lines):,} lines, {len(lines):,} events, 0 lines that do not parse\n"
    assert f"balance: {len(lines):,} events in = {len(lines):,} accepted + 0 rejected" in run.out
    assert found == expected(lines)

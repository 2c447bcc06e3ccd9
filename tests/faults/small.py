"""A workload of which a run takes a few seconds, and what the oracle makes of it."""

from __future__ import annotations

from functools import cache

from tests.oracle import Tables, compute
from tests.tables import expected_tables
from tests.workload import generate, kitchen_sink_catalog

SEED = 20_28


@cache
def workload() -> list[bytes]:
    return generate(SEED, events=900, subjects=20, files=4)


@cache
def expected() -> Tables:
    return expected_tables(compute([(0, kitchen_sink_catalog())], list(enumerate(workload()))))

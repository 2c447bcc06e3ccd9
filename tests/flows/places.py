"""A place to run whole deployments in: input files, a data directory, and what the tables then hold."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.settings import Settings
from flows.run import run
from flows.start import start
from tests import workload
from tests.oracle import Tables, compute
from tests.tables import differences, expected_tables, read_tables

_FAR_FUTURE = re.compile(rb"2028-|2100-|2101-")


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    tables: Tables
    effective_from: list[int]
    """By version, the log time from which the catalog holds."""
    added: int | None
    reclaimed: int


class StopAfter(threading.Event):
    """Is set after so many looks: each partition of the source looks once a batch."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = looks

    def is_set(self) -> bool:
        self._looks -= 1
        return self._looks < 0


class Disturb(threading.Event):
    """Does things after so many looks, and never ends a run."""

    def __init__(self, things: Mapping[int, Callable[[], None]]) -> None:
        super().__init__()
        self._things = dict(things)
        self._looks = 0
        self._lock = threading.Lock()

    @property
    def done(self) -> bool:
        return not self._things

    def is_set(self) -> bool:
        with self._lock:
            self._looks += 1
            do = self._things.pop(self._looks, None)
            if do is not None:
                do()
        return False


class Place:
    """Files are partitions in the order of their names."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.input = folder / "in"
        self.input.mkdir()

    def write(self, contents: Sequence[bytes]) -> None:
        """Make the files these, from the first on."""
        for number, content in enumerate(contents):
            (self.input / f"{number}.ndjson").write_bytes(content)

    def contents(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.input.iterdir())]

    def start(
        self,
        catalog: str | None,
        stop: threading.Event | None = None,
        workers: int = 1,
        *,
        rebuilds: bool = False,
        **settings: Any,
    ) -> Any:
        """`flows.start.start` over all files."""
        known = Settings(data_dir=self.data, **{"shards": 8, "batch_rows_max": 300} | settings)
        source = f"file:{self.input}/*.ndjson"
        stop = stop or threading.Event()
        return start(
            known,
            catalog=catalog,
            source=source,
            stop=stop,
            rebuilds=rebuilds,
            workers=workers,
            lost=lambda error: None,
        )

    def run(
        self, catalog: str | None, stop: threading.Event | None = None, workers: int = 1, **settings: Any
    ) -> Outcome:
        """Run to the end of the files, or until stopped."""
        with self.start(catalog, stop, workers, **settings) as deployment:
            run(deployment)
            with deployment.client() as client:
                sql = "SELECT toUnixTimestamp64Micro(effective_from) FROM catalogs FINAL ORDER BY version"
                return Outcome(
                    read_tables(client),
                    [us for (us,) in client.query(sql).result_rows],
                    deployment.applied.added,
                    deployment.reclaimed.claims,
                )


def expected(catalogs: Sequence[tuple[int, str]], contents: Sequence[bytes]) -> Tables:
    """The oracle's tables."""
    return expected_tables(compute(list(catalogs), list(enumerate(contents))))


def check(found: Tables, wanted: Tables) -> None:
    """Fail with what differs."""
    unequal = differences(found, wanted)
    assert not unequal, "\n".join(unequal)


def events(seed: int, count: int, days_later: int = 0) -> list[bytes]:
    """The contents of 3 workload files, without the few events that lie years ahead; the whole may be moved.

    A file's events have the ids 1, 2, ... whatever the seed. The first file ends in mid-line, the others
    in a line without its end.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workload, "START", workload.START + days_later * workload.DAY_US)
        contents = workload.generate(seed, count, subjects=21, files=3)
    return [b"\n".join(line for line in c.split(b"\n") if not _FAR_FUTURE.search(line)) for c in contents]


def grown(before: Sequence[bytes], after: Sequence[bytes]) -> list[bytes]:
    """Files to which something was appended: to the cut-off line its rest, to a whole one its end."""
    first, *others = zip(before, after, strict=True)
    return [b"".join(first), *(b"\n".join((old.removesuffix(b"\n"), new)) for old, new in others)]


def changed_catalog(text: str, **parts: Any) -> str:
    """A catalog in which some parts are others."""
    return yaml.safe_dump(yaml.safe_load(text) | parts, sort_keys=False, allow_unicode=True)

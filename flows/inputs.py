"""What a run reads: the source, and what the rest of a start and its user need to know about it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from bytewax.inputs import FixedPartitionedSource

from config.settings import Settings
from domain.ports import TallyError
from domain.values import RawBatch
from engines.data_directory import DataDirectory
from sources import files

FILES = "file:"


@dataclass(frozen=True, slots=True)
class Input:
    """An opened source."""

    source: FixedPartitionedSource[RawBatch, Any]
    """Its partitions are named by their numbers."""
    topic: str
    """The log topic of its positions."""
    partitions: Collection[int]
    """Every partition that it reads."""
    monotone: bool
    """Whether log times never fall within a partition, so that windows may be forgotten."""
    share_read: Callable[[], float] | None
    """How much of the input is read, from 0 to 1; None if it has no end."""
    events_read: Callable[[], int]
    """How many events were read in this run."""
    ends: Callable[[], Iterable[tuple[int, int]]] | None = None
    """Asks where partitions end now: pairs of a number and the offset after the last message that can be read. By a
    client of its own and from another thread: health is judged by it. None where there is no such end."""


def topic_of(source: str) -> str:
    """The log topic of a source, known before it is opened."""
    _glob(source)
    return files.TOPIC


def open_input(source: str, settings: Settings, directory: DataDirectory, stop: threading.Event) -> Input:
    """Open `file:GLOB`.

    Raises:
        TallyError: it is another kind of source, or cannot be read.
    """
    registry = directory.path / "files.json"
    opened = files.FileSource(_glob(source), registry, batch_rows_max=settings.batch_rows_max, stop=stop)
    return Input(opened, files.TOPIC, opened.partitions, False, opened.share_read, opened.events_read)


def _glob(source: str) -> str:
    if not source.startswith(FILES):
        raise TallyError(f"--source {source!r}: write file:GLOB, for instance --source 'file:events/*.ndjson'")
    return source.removeprefix(FILES)

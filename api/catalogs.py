"""The catalog that a running ingest judges events by, kept up to date.

`refresh` asks for the applied catalogs again. While they cannot be had, those read last stay in force: an event that
an old version accepts and a new one does not is rejected by the flow, and stands in `rejects`.
"""

from __future__ import annotations

from collections.abc import Callable

from domain.catalog import History
from domain.decode import BatchDecoder
from domain.ports import TallyError


class Catalogs:
    """A decoder of the catalogs in force.

    Args:
        load: Reads the catalogs; it may take its time, and raises TallyError if it cannot.
    """

    def __init__(self, load: Callable[[], History]) -> None:
        self._load = load
        self._known: list[tuple[int, int, str]] = []
        self.decoder: BatchDecoder | None = None
        self.fault = "no catalog was read yet"
        """Why the last refresh failed; "" if it did not."""

    def refresh(self) -> None:
        """Read the catalogs again; what is wrong is in `fault`."""
        try:
            history = self._load()
        except TallyError as error:
            self.fault = str(error)
            return
        known = [(v.version, v.effective_from_us, v.sha256) for v in history.versions]
        if known != self._known:
            self.decoder, self._known = BatchDecoder(history), known
        self.fault = ""

"""Options that several subcommands share, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from config.settings import Settings, load_settings
from domain.ports import TallyError

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where a run without servers keeps its data [TALLY_DATA_DIR, .tally].")
]
CatalogPath = Annotated[
    Path | None, typer.Option("--catalog", help="Catalog YAML; without it, the one applied last, else the sample.")
]
Workers = Annotated[int, typer.Option("--workers", min=1, max=64, help="Worker threads.")]


def settings_with(data_dir: Path | None) -> Settings:
    """The settings of the environment, with the data directory of the command line."""
    settings = load_settings()
    return settings if data_dir is None else settings.model_copy(update={"data_dir": data_dir})


def read_catalog(path: Path | None) -> str | None:
    """The text of a catalog file, or None without one.

    Raises:
        TallyError: it cannot be read.
    """
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TallyError(f"{path}: cannot read the catalog: {error}. Give the path of a YAML file in UTF-8.") from error


def file_pattern(source: str) -> str:
    """The glob of a `file:GLOB` source.

    Raises:
        TallyError: it is another kind of source.
    """
    kind, _, pattern = source.partition(":")
    if kind != "file" or not pattern:
        raise TallyError(f"--source {source!r}: write file:GLOB, for instance --source 'file:events/*.ndjson'")
    return pattern

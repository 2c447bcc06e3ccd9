"""Options that several subcommands share, and what they mean."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from config.catalog import SAMPLES, CatalogError, load_catalog, sample_text
from config.settings import Settings, load_settings
from domain.ports import TallyError
from flows.catalogs import DEFAULT_SAMPLE
from telemetry import logs

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", metavar="DIR", help="Where a deployment keeps its data; else TALLY_DATA_DIR, else .tally."
    ),
]
CatalogOption = Annotated[
    str | None,
    typer.Option(
        "--catalog",
        metavar="PATH|NAME",
        help=f"Catalog YAML, or a sample: {', '.join(SAMPLES)}. "
        f"Without it, the one applied last, else {DEFAULT_SAMPLE}.",
    ),
]
Workers = Annotated[int, typer.Option("--workers", metavar="N", min=1, max=64, help="Worker threads.")]


def settings_with(data_dir: Path | None) -> Settings:
    """The settings of the environment, with the data directory of the command line."""
    settings = load_settings()
    return settings if data_dir is None else settings.model_copy(update={"data_dir": data_dir})


def start_logging(settings: Settings, *, serves: bool) -> None:
    """Log as the settings say; a process that `serves` (reads or writes Kafka until it is stopped) tells more."""
    told = serves or settings.log_format is not None
    looked_at = sys.stderr.isatty() or not serves
    logs.configure(
        settings.log_format or ("text" if looked_at else "json"), settings.log_level or ("info" if told else "warning")
    )


def read_catalog(given: str | None) -> str | None:
    """The text of a sample catalog or of a catalog file, or None without one. A file named like a sample: `./web`.

    Raises:
        TallyError: it cannot be read, or is no valid catalog; with every fault.
    """
    if given is None:
        return None
    text = sample_text(given) if given in SAMPLES else _catalog_file(given)
    try:
        load_catalog(text)
    except CatalogError as error:
        raise TallyError(f"{given}: {error}") from error
    return text


def _catalog_file(given: str) -> str:
    try:
        return Path(given).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TallyError(f"the catalog {given} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TallyError(
            f"the catalog {given} cannot be read: {reason}. Give the path of a YAML file, or a sample's name: "
            f"{', '.join(SAMPLES)}."
        ) from error

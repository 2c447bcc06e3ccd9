"""`tally ingest-key`: make an API key for the HTTP ingest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from api.keys import new_key, with_entry
from config.settings import load_settings
from domain.ports import TallyError


def ingest_key_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who will use it; stands in metrics.")],
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="The keys file, made if missing; else TALLY_INGEST_KEYS_FILE."),
    ] = None,
    type: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="An event type that it may send; repeatable.")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", metavar="SOURCE", help="A source that it may send; repeatable.")
    ] = None,
    subject_prefix: Annotated[
        str | None, typer.Option("--subject-prefix", metavar="TEXT", help="What its subjects must begin with.")
    ] = None,
) -> None:
    """Make a random API key for `tally ingest`, append its hash to the keys file, and print the key, once.

    Without --type it may send every type but `tallyflow.*`, which change what is charged. Without a file the entry is
    printed on standard error. To withdraw a key, remove its entry. A running ingest notices either within seconds.
    """
    key, digest = new_key()
    entry: dict[str, Any] = {"name": name, "sha256": digest}
    for field, value in (("types", type), ("sources", source), ("subject_prefix", subject_prefix)):
        if value:
            entry[field] = value
    path = file or load_settings().ingest_keys_file
    if path is None:
        typer.echo(f"  - {json.dumps(entry, ensure_ascii=False)}", err=True)
    else:
        _append(path, entry)
    typer.echo(key)


def _append(path: Path, entry: dict[str, Any]) -> None:
    """Put the file as a whole in place of the old one, so that a running ingest never reads half of it."""
    try:
        text = path.read_text(encoding="utf-8-sig") if path.exists() else ""
        longer = with_entry(text, f"the keys file {path}", entry)
        new = path.with_name(f".{path.name}.{os.getpid()}")
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        new.touch(mode)
        new.write_text(longer, encoding="utf-8")
        new.chmod(mode)
        new.replace(path)
    except UnicodeDecodeError as error:
        raise TallyError(f"the keys file {path} is not UTF-8: save it as UTF-8") from error
    except OSError as error:
        raise TallyError(f"the keys file {path} cannot be written: {error.strerror}") from error

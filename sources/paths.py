"""Which files a source reads, and the partition number that each path has for good.

The registry is a JSON file with each path's number. It is written before anything is read, and
replaced in one step, so that a crash leaves the old one or the new one: a number that stands in the
ledger never comes to mean another path.
"""

from __future__ import annotations

import glob
import json
import os
from pathlib import Path

from domain.ports import TallyError


def matching(pattern: str) -> list[str]:
    """The absolute paths that match, in byte order, each a regular file that can be opened."""
    matches = [pattern] if os.path.lexists(pattern) else glob.glob(pattern, recursive=True)
    if os.path.basename(pattern) == "**":
        matches = [path for path in matches if not os.path.isdir(path)]
    if not matches:
        raise TallyError(
            f"no file matches {pattern!r} in {os.getcwd()}. Check the path; quote the pattern, so that "
            "tally and not the shell expands it."
        )
    paths = sorted({os.path.abspath(path) for path in matches}, key=os.fsencode)
    for path in paths:
        _check(path)
    return paths


def _check(path: str) -> None:
    if os.path.isdir(path):
        raise TallyError(
            f"{path} is a directory. Name the files in it, for instance {os.path.join(path, '*.ndjson')!r}."
        )
    if os.path.exists(path) and not os.path.isfile(path):
        raise TallyError(
            f"{path} is not a regular file: it could not be read again after a restart. Store it as a file."
        )
    try:
        open(path, "rb").close()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: OSError) -> TallyError:
    return TallyError(f"{path} cannot be opened: {error.strerror}. Check that it exists and that you may read it.")


def register(paths: list[str], registry: Path) -> dict[str, int]:
    """The partition number of each path ever seen; new ones are recorded before anything is read."""
    numbers = _read_registry(registry)
    new = [path for path in paths if path not in numbers]
    numbers |= {path: number for number, path in enumerate(new, max(numbers.values(), default=-1) + 1)}
    if new:
        try:
            _write_registry(registry, numbers)
        except OSError as error:
            raise TallyError(f"{registry} cannot be written: {error.strerror}. Check the data directory.") from error
    return numbers


def _read_registry(registry: Path) -> dict[str, int]:
    try:
        numbers = json.loads(registry.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _damaged(registry, str(error)) from error
    if not isinstance(numbers, dict) or not all(type(number) is int and number >= 0 for number in numbers.values()):
        raise _damaged(registry, "not an object of numbers by path")
    if len(set(numbers.values())) < len(numbers):
        raise _damaged(registry, "a number stands for two paths")
    return numbers


def _damaged(registry: Path, what: str) -> TallyError:
    return TallyError(
        f"{registry}, which has each file's partition number, cannot be read: {what}. Restore it from a backup, or "
        "start with an empty data directory."
    )


def _write_registry(registry: Path, numbers: dict[str, int]) -> None:
    """Replace the registry so that a crash leaves the old one or the new one."""
    registry.parent.mkdir(parents=True, exist_ok=True)
    draft = registry.with_name(f"{registry.name}.{os.getpid()}")
    with draft.open("w", encoding="ascii") as file:
        json.dump(numbers, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(registry)
    folder = os.open(registry.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

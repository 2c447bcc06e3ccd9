"""Which files a source reads, and the partition number that each path has for good.

The registry is a JSON file with each path's number. It is written before anything is read, and
replaced in one step, so that a crash leaves the old one or the new one: a number that stands in the
ledger never comes to mean another path.
"""

from __future__ import annotations

import fnmatch
import glob
import json
import os
import stat
from io import FileIO
from pathlib import Path

from domain.ports import TallyError


def matching(pattern: str) -> list[str]:
    """The absolute paths that match, in byte order, each a regular file that can be opened.

    A path without wildcards is what it says, also through links. A pattern stays below the folder that it names
    before its first wildcard: a match that links lead out of there is refused, and `**` enters no linked folder.
    """
    folder = named_folder(pattern)
    matches = _expanded(pattern) if folder is not None else [pattern] if os.path.lexists(pattern) else []
    if not matches:
        raise TallyError(
            f"no file matches {pattern!r} in {os.getcwd()}. Check the path; quote the pattern, so that "
            "tally and not the shell expands it."
        )
    paths = sorted({os.path.abspath(path) for path in matches}, key=os.fsencode)
    for path in paths:
        _check(path)
        open_regular(path, folder).close()
    return paths


def named_folder(pattern: str) -> str | None:
    """The folder that a pattern names before its first wildcard, links resolved; None if it is a path."""
    if os.path.lexists(pattern) or not glob.has_magic(pattern):
        return None
    folder = pattern
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return os.path.realpath(folder or os.curdir)


def open_regular(path: str, folder: str | None) -> FileIO:
    """Open a file for reading; never waits, whatever has taken its place since it was found.

    Args:
        folder: Where it has to be, links resolved; None for anywhere.

    Raises:
        TallyError: it cannot be opened, is no regular file, or lies elsewhere.
    """
    try:
        file = FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY))
        found, real = os.fstat(file.fileno()), os.path.realpath(path)
        inside = folder is None or (
            os.path.commonpath([folder, real]) == folder and os.path.samestat(found, os.lstat(real))
        )
    except OSError as error:
        raise unreadable(path, error) from error
    if inside and stat.S_ISREG(found.st_mode):
        return file
    file.close()
    if inside:
        raise _irregular(path)
    raise TallyError(
        f"{path} leads to {real}, out of {folder}, which is what the pattern names. Name the file itself, or copy it."
    )


def _expanded(pattern: str) -> list[str]:
    """What a pattern matches, as `glob` has it; but `**` enters no linked folder: links may make endless trees."""
    root, *parts = pattern.split(os.sep)
    found: list[str] = []
    todo = [(os.sep, parts) if root == "" else ("", [root, *parts])]
    while todo:
        base, (part, *rest) = todo.pop()
        if part == "**":
            todo += [(base, rest)] if rest else []
            entries = _entries(base)
            todo += [(entry.path, [part, *rest]) for entry in entries if entry.is_dir(follow_symlinks=False)]
            ends = [] if rest else [entry.path for entry in entries if not entry.is_dir()]
        elif glob.has_magic(part):
            entries = _entries(base, hidden=part.startswith("."))
            ends = [entry.path for entry in entries if fnmatch.fnmatchcase(entry.name, part)]
        else:
            path = os.path.join(base, part)
            ends = [path] if os.path.lexists(path) else []
        if rest and part != "**":
            todo += [(end, rest) for end in ends]
        else:
            found += ends
    return found


def _entries(folder: str, *, hidden: bool = False) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing where there is none, or where it may not be read."""
    try:
        with os.scandir(folder or os.curdir) as entries:
            return [entry for entry in entries if hidden or not entry.name.startswith(".")]
    except (OSError, ValueError):
        return []


def _check(path: str) -> None:
    if os.path.isdir(path):
        raise TallyError(
            f"{path} is a directory. Name the files in it, for instance {os.path.join(path, '*.ndjson')!r}."
        )
    if os.path.exists(path) and not os.path.isfile(path):
        raise _irregular(path)


def _irregular(path: str) -> TallyError:
    return TallyError(f"{path} is not a regular file: it could not be read again after a restart. Store it as a file.")


def unreadable(path: str, error: OSError) -> TallyError:
    return TallyError(f"{path} cannot be opened: {error.strerror}. Check that it exists and that you may read it.")


def register(paths: list[str], registry: Path) -> dict[str, int]:
    """The partition number of each path ever seen; new ones are recorded before anything is read."""
    numbers = _read_registry(registry)
    new = [path for path in paths if path not in numbers]
    numbers |= {path: number for number, path in enumerate(new, max(numbers.values(), default=-1) + 1)}
    if new:
        write_registry(registry, numbers)
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


def write_registry(registry: Path, numbers: dict[str, int]) -> None:
    """Replace the registry so that a crash leaves the old one or the new one."""
    try:
        _write(registry, numbers)
    except OSError as error:
        raise TallyError(f"{registry} cannot be written: {error.strerror}. Check the data directory.") from error


def _write(registry: Path, numbers: dict[str, int]) -> None:
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

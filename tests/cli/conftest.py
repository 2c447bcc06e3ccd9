"""A folder with events that were counted once without a hitch, and commands run inside this process."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from cli._generator import generate
from cli.main import app
from config.catalog import sample_text
from tests.cli.command import Inside, Result, shown, tally
from tests.oracle import Tables, compute
from tests.tables import expected_tables

EVENTS = 1200


class Counted(NamedTuple):
    """Events, the data directory of one run over them, what it said, and what its tables must hold."""

    folder: Path
    files: list[Path]
    data: Path
    said: Result
    tables: Tables

    def copy_events(self, to: Path) -> None:
        """The same files under the same names in another folder."""
        shutil.copytree(self.folder / "events", to / "events")


@pytest.fixture(scope="session")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Counted:
    folder = tmp_path_factory.mktemp("counted")
    generate(EVENTS, 30, 3, 5, folder / "events", lambda count: None)
    files = sorted((folder / "events").glob("*.ndjson"))
    expected = expected_tables(
        compute([(0, sample_text("api"))], [(number, file.read_bytes()) for number, file in enumerate(files)])
    )
    said = tally("run", "--source", "file:events/*.ndjson", "--data-dir", "data", cwd=folder)
    assert said.code == 0, shown(said)
    return Counted(folder, files, folder / "data", said, expected)


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    """Run a command in this process, in the test's folder, without settings but those given."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("TALLY_"):
            monkeypatch.delenv(name)

    def run(*arguments: str | Path, **settings: str) -> Result:
        with monkeypatch.context() as changed:
            for name, value in settings.items():
                changed.setenv(name, value)
            changed.setattr(sys, "argv", ["tally", *map(str, arguments)])
            capsys.readouterr()
            with pytest.raises(SystemExit) as left:
                app()
        said = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Result(left.value.code, said.out, said.err)

    return run

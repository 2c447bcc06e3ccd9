"""`tally demo`: what a newcomer sees, once and again, and which folders it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.data_directory import DataDirectory
from tests.cli.command import Inside, shown


def test_a_demo_and_another(inside: Inside, tmp_path: Path) -> None:
    demo = ("demo", "--events", "400", "--subjects", "9", "--data-dir", "de[m]o 1")
    for _ in range(2):
        said = inside(*demo)
        assert said.code == 0, shown(said)
        assert said.out.startswith("400 events of 9 customers, in ")
        for part in ("Top usage and cost", "│ cust-1 ", "Signals (", "│ accepted", "balance: 400 events in = "):
            assert part in said.out
        assert "this run: 400 events read" in said.err
        query = said.out.splitlines()[-1].split(" query ")[1]
        assert query.startswith("--data-dir 'de[m]o 1' \"SELECT")
        assert max(map(len, said.out.splitlines()[:-1])) <= 100
    asked = inside("query", "--data-dir", "de[m]o 1", query.split('"')[1])
    assert asked.code == 0 and asked.out.count("\n") == 5, shown(asked)


@pytest.mark.parametrize("name", ["folder", "file"])
def test_what_no_demo_made_is_left_alone(name: str, inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    said = inside("demo", "--data-dir", name)
    assert said == (1, "", f"tally: {name} exists and was not made by a demo: name another folder with --data-dir\n")
    assert (tmp_path / "folder" / "mine").read_text() == (tmp_path / "file").read_text() == "x"


def test_a_demo_that_runs_is_not_disturbed(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "made-by-tally-demo").touch()
    (tmp_path / "demo" / "events").mkdir()
    with DataDirectory(tmp_path / "demo").acquire():
        said = inside("demo", "--data-dir", "demo")
    assert said.code == 1 and "is in use by process" in said.err
    assert (tmp_path / "demo" / "events").is_dir()

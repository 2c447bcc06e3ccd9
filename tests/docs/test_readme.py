"""The commands of README.md, run as they stand in a folder of their own, and what they are said to print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.docs.markdown import ROOT, Block, blocks

_SECONDS_MAX = 120
_ACCESS_LOG = """\
192.0.2.7 - - [17/May/2015:10:05:03 +0000] "GET /index.html HTTP/1.1" 200 5120 "-" "curl/8.0"
192.0.2.8 - ana [17/May/2015:10:05:43 +0000] "POST /form?a=b HTTP/1.1" 302 - "-" "curl/8.0"
not a line of an access log
"""


class Step(NamedTuple):
    """A command block of the page, and what is printed below it."""

    line: int
    commands: str
    printed: list[str]


def steps(page: list[Block]) -> list[Step]:
    """The blocks of commands that are to be run; a block of text belongs to the commands before it."""
    found: list[Step] = []
    wanted = False
    for block in page:
        if block.kind == "sh":
            replaced = re.fullmatch(r"run `(.+)`", block.order)
            wanted = block.order != "not run"
            assert replaced or block.order in ("", "not run"), f"line {block.line}: unknown order {block.order!r}"
            if wanted:
                found.append(Step(block.line, replaced[1] if replaced else block.text, []))
        elif block.kind == "text" and wanted:
            found[-1].printed.extend(line for line in block.text.splitlines() if line not in ("", "…"))
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with what a reader has: the command, the sample catalogs, and an access log."""
    command = tmp_path / "bin" / "tally"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m cli.main "$@"\n')
    command.chmod(0o755)
    (tmp_path / "config").symlink_to(ROOT / "config")
    (tmp_path / "access.log").write_text(_ACCESS_LOG)
    return tmp_path


def test_the_commands_do_what_is_said(place: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TALLY_", "FORCE_COLOR"))}
    environment |= {"PATH": f"{place / 'bin'}{os.pathsep}{environment['PATH']}", "PYTHONUTF8": "1"}
    run = steps(blocks(ROOT / "README.md"))
    assert len(run) == 4
    for step in run:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", step.commands],
            cwd=place,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            timeout=_SECONDS_MAX,
            check=False,
        )
        assert done.returncode == 0, f"README.md, line {step.line}: exit code {done.returncode}\n{done.stderr}"
        lines = iter([_plain(line) for line in done.stdout.splitlines()])
        missing = next((line for line in step.printed if not any(_shows(line, found) for found in lines)), None)
        assert missing is None, (
            f"README.md, after line {step.line}: not printed (in this order): {missing}\n{done.stdout}"
        )


def _shows(said: str, printed: str) -> bool:
    """Whether a line is what the page says; the page may cut a line short with `…`."""
    said = _plain(said)
    return printed.startswith(said[:-1]) if said.endswith("…") else said == printed


def _plain(line: str) -> str:
    """Without the spaces and rules that depend on the widest cell."""
    return " ".join(line.split())


def test_a_block_is_run_replaced_or_skipped_as_its_comment_says(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\none\n```\n\n```text\na\n…\nb\n```\n<!-- test: not run -->\n```sh\ntwo\n```\n```text\nc\n```\n"
        "<!-- test: run `other` -->\n```sh\nthree\n```\n```\nd\n```\n"
    )
    assert steps(blocks(page)) == [Step(1, "one\n", ["a", "b"]), Step(18, "other", [])]

"""The commands of docs/ingest.md, run one after the other in one shell, and what they are said to print."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import environment
from tests.docs.markdown import ROOT, blocks
from tests.docs.test_readme import steps
from tests.services.kafka import Kafka
from tests.services.ports import free_ports

_SECONDS_MAX = 90
_MARK = "=== next block"


def test_the_commands_do_what_is_said(kafka: Kafka, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("NOT TESTED without curl")
    kafka.create_topic("ingest-page", 2)
    (port,) = free_ports(1)
    command = tmp_path / "bin" / "tally"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cli.main "$@"\n')
    command.chmod(0o755)
    page = steps(blocks(ROOT / "docs" / "ingest.md"))
    assert len(page) == 4
    script = [
        "trap 'kill %1; wait %1' EXIT",
        *(f"{step.commands.replace('8400', str(port))}\necho; echo '{_MARK}'" for step in page),
    ]
    settings = {"TALLY_KAFKA_BROKERS": kafka.bootstrap, "TALLY_KAFKA_TOPIC": "ingest-page"}
    named = environment(**settings, TALLY_INGEST_KEYS_FILE="keys.yaml")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=named | {"PATH": f"{command.parent}{os.pathsep}{named['PATH']}"},
        capture_output=True,
        encoding="utf-8",
        timeout=_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    printed = done.stdout.split(_MARK)
    for step, text in zip(page, printed, strict=False):
        found = [line for line in text.splitlines() if line and not line.startswith("listening on")]
        # Answers have no line end, so that two of them stand on one line.
        assert "".join(found) == "".join(step.printed), f"docs/ingest.md, line {step.line}\n{done.stderr}"

"""The reference pages say what the code says."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
from pathlib import Path

from tests.docs.markdown import ROOT

_PROGRAM = """
import sys
from pathlib import Path
from docs.reference import pages
for name, text in pages().items():
    Path(sys.argv[1], name).write_text(text, encoding="utf-8")
"""


def test_the_pages_are_those_of_the_code(tmp_path: Path) -> None:
    # In a process of its own: an embedded ClickHouse admits one directory a process.
    subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path)], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    for made in sorted(tmp_path.iterdir()):
        wanted = made.read_text(encoding="utf-8").splitlines()
        found = (ROOT / "docs" / made.name).read_text(encoding="utf-8").splitlines()
        difference = "\n".join(difflib.unified_diff(found, wanted, f"docs/{made.name}", "the code", lineterm="", n=0))
        assert not difference, f"run `make docs`:\n{difference}"
    assert len(list(tmp_path.iterdir())) == 4

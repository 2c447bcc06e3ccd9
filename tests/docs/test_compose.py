"""docker-compose.yml: nothing is published beyond this machine, and the services keep what the flow relies on."""

from __future__ import annotations

import re
from typing import Any

import chdb
import pytest
import yaml

from tests.docs.markdown import ROOT

_TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(_TEXT)["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_pinned_checked_and_local(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+[\w.-]*", service["image"])
    assert service["healthcheck"]["test"][0] == "CMD-SHELL"
    assert "network_mode" not in service and "privileged" not in service
    for port in service["ports"]:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


def test_redis_keeps_claims() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--appendonly"] == "yes"
    assert options["--hash-max-listpack-entries"] == "512"
    assert options["--requirepass"].startswith("${REDIS_PASSWORD:?")


def test_passwords_come_from_the_environment_or_nothing_starts() -> None:
    assert SERVICES["clickhouse"]["environment"]["CLICKHOUSE_PASSWORD"].startswith("${CLICKHOUSE_PASSWORD:?")
    assert set(re.findall(r"\$\{(\w+)(.?.?)", _TEXT)) == {("REDIS_PASSWORD", ":?"), ("CLICKHOUSE_PASSWORD", ":?")}


def test_clickhouse_is_of_the_branch_that_is_tested() -> None:
    branch = ".".join(chdb.engine_version.split(".")[:2])
    assert SERVICES["clickhouse"]["image"] == f"clickhouse/clickhouse-server:{branch}"

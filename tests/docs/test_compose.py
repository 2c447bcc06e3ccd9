"""docker-compose.yml: nothing is published beyond this machine, and the services keep what the flow relies on."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

import chdb
import pytest
import yaml

from config.settings import PREFIX, Settings
from tests.docs.commands import parse
from tests.docs.markdown import ROOT

_TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
_FILE = yaml.safe_load(_TEXT)
SERVICES: dict[str, dict[str, Any]] = _FILE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
ONE_SHOT = "migrate"


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_pinned_checked_and_local(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", service["image"])
    if name in (ONE_SHOT, "webhooks"):
        assert service["healthcheck"] == {"disable": True}
    elif name != "flow":  # whose check is the image's own
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert "network_mode" not in service and "privileged" not in service
    assert service["restart"] == ("no" if name == ONE_SHOT else "unless-stopped")
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


def test_our_containers_may_write_nothing_but_their_data() -> None:
    assert set(OURS) == {"migrate", "flow", "ingest", "webhooks"}
    for service in OURS.values():
        assert (service["read_only"], service["tmpfs"], service["cap_drop"]) == (True, ["/tmp"], ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["image"] == f"tallyflow:{version('tallyflow')}"
    assert [volume for service in OURS.values() for volume in service.get("volumes", [])] == [
        "flow:/var/lib/tally",
        "./config/catalogs/api.yaml:/etc/tally/catalog.yaml:ro",
    ]


@pytest.mark.parametrize("name", OURS)
def test_commands_and_settings_are_known(name: str) -> None:
    service = OURS[name]
    parse(service["command"])
    named = {key for key in service["environment"] if key.startswith("TALLY_")}
    assert named <= {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
    waited = {other: how["condition"] for other, how in service["depends_on"].items()}
    assert waited.get(ONE_SHOT, "service_completed_successfully") == "service_completed_successfully"
    assert set(waited) <= set(SERVICES)
    assert name == ONE_SHOT or ONE_SHOT in waited


def test_what_is_mounted_is_there() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (ROOT / source).exists() if source.startswith("./") else source in _FILE["volumes"]
        assert set(service.get("secrets", [])) <= set(_FILE["secrets"])


def test_kafka_is_what_the_tests_start_and_makes_no_topics() -> None:
    pom = (ROOT / "tests" / "services" / "pom.xml").read_text(encoding="utf-8")
    tested = re.search(r"<artifactId>kafka_2\.13</artifactId>\s*<version>([\d.]+)</version>", pom)
    assert tested is not None
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{tested[1]}"
    assert SERVICES["kafka"]["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_redis_keeps_claims() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--appendonly"] == "yes"
    assert options["--hash-max-listpack-entries"] == "512"
    assert options["--requirepass"].startswith("${REDIS_PASSWORD:?")


def test_passwords_come_from_the_environment_or_nothing_starts() -> None:
    assert SERVICES["clickhouse"]["environment"]["CLICKHOUSE_PASSWORD"].startswith("${CLICKHOUSE_PASSWORD:?")
    assert set(re.findall(r"\$\{(\w+)(.?.?)", _TEXT)) == {
        ("REDIS_PASSWORD", ":?"),
        ("CLICKHOUSE_PASSWORD", ":?"),
        ("INGEST_KEYS_FILE", ":-"),
        ("WEBHOOKS_FILE", ":-"),
        ("WEBHOOK_SECRET", ":-"),
    }


def test_clickhouse_is_of_the_branch_that_is_tested() -> None:
    branch = ".".join(chdb.engine_version.split(".")[:2])
    assert SERVICES["clickhouse"]["image"] == f"clickhouse/clickhouse-server:{branch}"

"""An ingest that judges by the catalog which the flow applied in ClickHouse."""

from __future__ import annotations

import json
import time
from pathlib import Path

from config.catalog import sample_text
from engines.clickhouse_server import connect
from flows.catalogs import apply_catalog
from tests.api.serving import await_ready, event, hurried, ingesting
from tests.services.clickhouse import ClickHouse
from tests.services.kafka import Kafka


def test_a_catalog_that_is_applied_later_is_found(kafka: Kafka, clickhouse: ClickHouse, tmp_path: Path) -> None:
    kafka.create_topic("ingest-catalog")
    body = json.dumps(event(1)).encode()
    newer = sample_text("api").replace("  api.request:", "  api.other: {schema: {type: object}}\n  api.request:", 1)
    other = json.dumps(event(2) | {"type": "api.other"}).encode()
    settings = {"TALLY_CLICKHOUSE_URL": clickhouse.url, "TALLY_INGEST_CATALOG_SECONDS": "1"}
    with connect(clickhouse.url) as client:
        try:
            with ingesting(tmp_path / "a", kafka.bootstrap, "ingest-catalog", **settings) as running:
                deadline = time.monotonic() + 30
                while "catalog" not in (faults := running.request("GET", "/readyz").json["faults"]) or len(faults) > 1:
                    assert time.monotonic() < deadline, faults
                    time.sleep(0.05)
                assert "no catalog has been applied" in faults["catalog"]
                assert running.send(body).status == 503
                apply_catalog(client, sample_text("api"))
                hurried(running)
                await_ready(running)
                assert running.send(body).status == 202
                assert running.send(other).outcomes == ["unknown_type"]
                apply_catalog(client, newer)
                while running.send(other).status != 202:  # without being told
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
        finally:
            client.command("TRUNCATE TABLE catalogs")

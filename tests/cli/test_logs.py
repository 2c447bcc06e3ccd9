"""What `tally run` logs: every line is an event, and no secret is in one."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

from tests.cli.command import shown, tally
from tests.cli.conftest import Counted
from tests.services.clickhouse import ClickHouse


def test_a_run_in_json(counted: Counted, clickhouse: ClickHouse, tmp_path: Path) -> None:
    counted.copy_events(tmp_path)
    password = urlsplit(clickhouse.url).password or ""
    settings = {
        "TALLY_LOG_FORMAT": "json",
        "TALLY_CLICKHOUSE_URL": clickhouse.url.replace("tallyflow", "logs").replace(f":{password}@", "@"),
        "TALLY_CLICKHOUSE_PASSWORD": password,
    }
    assert tally("migrate", cwd=tmp_path, **settings).code == 0
    said = tally("run", "--source", "file:events/*.ndjson", "--data-dir", "data", cwd=tmp_path, **settings)
    assert said.code == 0, shown(said)
    lines = [json.loads(line) for line in said.err.splitlines()]
    assert [line["event"] for line in lines] == [
        "flow.starting", "process.notice", "flow.running", *["partition.resumed"] * 3, "flow.stopped", "process.notice",
    ]  # fmt: skip
    by_event = {line["event"]: line for line in lines}
    assert by_event["flow.starting"]["settings"] == {
        "log_format": "json", "clickhouse_url": "**********", "clickhouse_password": "**********", "data_dir": "data",
    }  # fmt: skip
    assert {(line["partition"], line["offset"]) for line in lines if "offset" in line} == {(0, 0), (1, 0), (2, 0)}
    assert by_event["flow.running"]["claims_rebuilt"] == 0 and by_event["flow.running"]["partitions"] == 3
    assert by_event["flow.stopped"]["reason"] == "end of input" and by_event["flow.stopped"]["events"] > 1000
    assert password not in said.err

    again = tally("run", "--source", "file:events/*.ndjson", "--data-dir", "data", cwd=tmp_path, **settings)
    lines = [json.loads(line) for line in again.err.splitlines()]
    assert all(line["offset"] > 0 for line in lines if line["event"] == "partition.resumed")

    wrong = settings | {"TALLY_CLICKHOUSE_PASSWORD": "s3cret"}
    failed = tally("run", "--source", "file:events/*.ndjson", "--data-dir", "data", cwd=tmp_path, **wrong)
    last = json.loads(failed.err.splitlines()[-1])
    assert failed.code == 1 and last["event"] == "process.failed" and "refuses the user" in last["error"]
    assert "s3cret" not in failed.err


def test_without_being_told_a_run_over_files_is_for_people(counted: Counted) -> None:
    assert counted.said.err.splitlines()[-1].startswith("this run: ")
    assert not any(line.startswith("{") for line in counted.said.err.splitlines())

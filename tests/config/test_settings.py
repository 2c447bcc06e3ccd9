"""Settings: defaults, bounds, and that no address is ever printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.clickhouse_client import clickhouse_options
from config.redis_client import redis_options
from config.settings import Settings, load_settings
from domain.ports import TallyError


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TALLY_{name.upper()}", raising=False)


def test_without_variables_everything_is_embedded() -> None:
    settings = load_settings()
    assert (settings.kafka_brokers, settings.redis_url, settings.clickhouse_url) == (None, None, None)
    assert settings.kafka_topic == "usage.events"
    assert settings.data_dir == Path(".tally")
    assert (settings.batch_rows_max, settings.epoch_seconds, settings.shards) == (20_000, 5, 64)
    assert (settings.claim_shards, settings.recovery_partitions) == (1, 4)
    assert (settings.flush_seconds, settings.flush_rows_max) == (1, 100_000)
    assert (settings.redis_wait_seconds, settings.clickhouse_wait_seconds) == (30, 30)


def test_variables_are_read_and_addresses_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLY_REDIS_URL", "redis://:hush@cache:6379/0")
    monkeypatch.setenv("TALLY_CLICKHOUSE_URL", "https://default:hush@house:8443")
    monkeypatch.setenv("TALLY_KAFKA_BROKERS", "one:9092,two:9092")
    monkeypatch.setenv("TALLY_SHARDS", "8")
    monkeypatch.setenv("TALLY_DATA_DIR", "")
    settings = load_settings()
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://:hush@cache:6379/0"
    assert (settings.kafka_brokers, settings.shards, settings.data_dir) == ("one:9092,two:9092", 8, Path(".tally"))
    assert "hush" not in repr(settings) + str(settings)


def test_every_bad_variable_is_listed_with_its_remedy_but_never_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {
        "KAFKA_BROKERS": "one",
        "KAFKA_TOPIC": "a b",
        "REDIS_URL": "cache://:hush@cache",
        "CLICKHOUSE_URL": "http://u:hush@house:port",
        "BATCH_ROWS_MAX": "0",
        "SHARDS": "many",
        "FLUSH_SECONDS": "inf",
    }
    for name, value in bad.items():
        monkeypatch.setenv(f"TALLY_{name}", value)
    with pytest.raises(TallyError) as caught:
        load_settings()
    assert str(caught.value).splitlines() == [
        "bad settings:",
        "  TALLY_KAFKA_BROKERS='one' has no host and port in 'one'; write host:port, separated by commas",
        "  TALLY_KAFKA_TOPIC='a b' is no topic name; use letters, digits and ._- (at most 249)",
        (
            "  TALLY_REDIS_URL=(hidden) is no redis/rediss/unix address; "
            "write an address such as redis://:password@host:6379/0"
        ),
        (
            "  TALLY_CLICKHOUSE_URL=(hidden) is no http/https address; "
            "write an address such as http://user:password@host:8123/tallyflow"
        ),
        "  TALLY_BATCH_ROWS_MAX='0' is too small; use 1 or more",
        "  TALLY_SHARDS='many' is no integer; write digits",
        "  TALLY_FLUSH_SECONDS='inf' is too large; use 60 or less",
    ]
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        (
            {"CLICKHOUSE_URL": "http://me:hush@house:8123", "CLICKHOUSE_PASSWORD": "hush"},
            "TALLY_CLICKHOUSE_PASSWORD is set, but TALLY_CLICKHOUSE_URL has one too; give it once",
        ),
        (
            {"REDIS_URL": "redis://me@cache", "REDIS_USERNAME": "me"},
            "TALLY_REDIS_USERNAME is set, but TALLY_REDIS_URL has one too; give it once",
        ),
        (
            {"REDIS_PASSWORD": "hush"},
            "TALLY_REDIS_PASSWORD is set, but TALLY_REDIS_URL is not; set the address, or leave it out",
        ),
        (
            {"CLICKHOUSE_URL": "http://house", "CLICKHOUSE_CA_FILE": __file__},
            "TALLY_CLICKHOUSE_CA_FILE is set, but TALLY_CLICKHOUSE_URL is http://; write https://, or leave it out",
        ),
        (
            {"REDIS_URL": "rediss://cache", "REDIS_KEY_FILE": __file__},
            "TALLY_REDIS_KEY_FILE is set, but TALLY_REDIS_CERTIFICATE_FILE is not; give both",
        ),
        (
            {"REDIS_URL": "rediss://cache", "REDIS_CA_FILE": "/none/ca.pem"},
            "TALLY_REDIS_CA_FILE='/none/ca.pem' cannot be read (No such file or directory); "
            "give the path of a PEM file that this user may read",
        ),
        (
            {"CLICKHOUSE_CLUSTER": "main"},
            "TALLY_CLICKHOUSE_CLUSTER is set, but no server is; set TALLY_CLICKHOUSE_URL, or leave it out",
        ),
        (
            {"INGEST_INFLIGHT_BYTES_MAX": "1000000"},
            "TALLY_INGEST_INFLIGHT_BYTES_MAX is less than TALLY_INGEST_BODY_BYTES_MAX: the largest bodies would always "
            "be refused; make it as large at least",
        ),
        (
            {"CLICKHOUSE_URL": "http://house", "CLICKHOUSE_CLUSTER": "a'b"},
            'TALLY_CLICKHOUSE_CLUSTER="a\'b" is no cluster name; '
            "use letters, digits and ._-, or one macro such as {cluster}",
        ),
    ],
)
def test_settings_that_do_not_go_together(
    variables: dict[str, str], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"TALLY_{name}", value)
    with pytest.raises(TallyError) as caught:
        load_settings()
    assert str(caught.value).splitlines() == ["bad settings:", f"  {fault}"]
    assert "hush" not in repr(caught.value)


def test_how_services_are_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    assert redis_options(load_settings()) == {}
    variables = {
        "REDIS_URL": "rediss://cache:6380/1",
        "REDIS_USERNAME": "me",
        "REDIS_PASSWORD": "hush",
        "REDIS_CA_FILE": __file__,
        "CLICKHOUSE_URL": "https://me:hush@house/usage",
        "CLICKHOUSE_CERTIFICATE_FILE": __file__,
        "CLICKHOUSE_CLUSTER": "{cluster}",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"TALLY_{name}", value)
    settings = load_settings()
    assert redis_options(settings) == {"username": "me", "password": "hush", "ssl_ca_certs": __file__}
    assert {name: value for name, value in clickhouse_options(settings).items() if value is not None} == {
        "url": "https://me:hush@house/usage",
        "certificate_file": Path(__file__),
        "timeout_seconds": 30,
        "cluster": "{cluster}",
    }
    assert "hush" not in repr(settings) + str(settings)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())

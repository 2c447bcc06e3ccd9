"""From settings to the arguments of Kafka's clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer
from kafka.admin import KafkaAdminClient

from config.kafka_client import kafka_options
from config.settings import Settings
from domain.ports import TallyError


def options(**settings: Any) -> dict[str, Any]:
    return kafka_options(Settings(kafka_brokers="one:9092, two:9093", **settings))


def test_plain() -> None:
    assert options() == {
        "bootstrap_servers": ["one:9092", "two:9093"],
        "client_id": "tallyflow",
        "security_protocol": "PLAINTEXT",
    }


def test_everything(tmp_path: Path) -> None:
    pem = tmp_path / "some.pem"
    pem.touch()
    found = options(
        kafka_security_protocol="SASL_SSL",
        kafka_sasl_mechanism="SCRAM-SHA-512",
        kafka_username="meter",
        kafka_password="geheim",
        kafka_ca_file=pem,
        kafka_certificate_file=pem,
        kafka_key_file=pem,
    )
    assert found["sasl_plain_password"] == "geheim" and found["ssl_keyfile"] == str(pem)
    assert found.keys() <= KafkaConsumer.DEFAULT_CONFIG.keys() & KafkaAdminClient.DEFAULT_CONFIG.keys()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kafka_security_protocol": "SASL_SSL"}, "TALLY_KAFKA_PASSWORD is not set, which SASL_SSL needs"),
        ({"kafka_password": "geheim"}, "TALLY_KAFKA_PASSWORD is set, but PLAINTEXT has no login"),
        ({"kafka_ca_file": Path("/ca.pem")}, "TALLY_KAFKA_CA_FILE is set, but PLAINTEXT has no TLS"),
        ({"kafka_security_protocol": "SSL", "kafka_ca_file": Path("/no/ca.pem")}, "TALLY_KAFKA_CA_FILE=/no/ca.pem"),
        (
            {"kafka_security_protocol": "SSL", "kafka_key_file": Path("/dev/null")},
            "but not TALLY_KAFKA_CERTIFICATE_FILE",
        ),
    ],
)
def test_what_does_not_fit_is_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(TallyError) as caught:
        options(**settings)
    assert said in str(caught.value) and "geheim" not in str(caught.value)


def test_without_brokers() -> None:
    with pytest.raises(TallyError, match="TALLY_KAFKA_BROKERS is not set"):
        kafka_options(Settings())

"""A broker that asks for a login."""

from __future__ import annotations

from pathlib import Path

from tests.services.kafka import Kafka

USER, PASSWORD = "meter", "geheim"


def broker_with_login(directory: Path) -> Kafka:
    """SASL/PLAIN without TLS: user `meter`, password `geheim`."""
    login = (
        "org.apache.kafka.common.security.plain.PlainLoginModule required "
        f'username="{USER}" password="{PASSWORD}" user_{USER}="{PASSWORD}";'
    )
    return Kafka(
        directory,
        {
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:SASL_PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "listener.name.plaintext.plain.sasl.jaas.config": login,
        },
        {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": USER,
            "sasl_plain_password": PASSWORD,
        },
    )

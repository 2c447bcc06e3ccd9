"""A broker that asks for a login, over TLS, and for a certificate."""

from __future__ import annotations

from pathlib import Path

from tests.services.kafka import Kafka

USER, PASSWORD = "meter", "geheim"
TLS = Path(__file__).resolve().parents[1] / "tls"


def secured_broker(directory: Path) -> Kafka:
    """SASL/PLAIN over TLS: user `meter`, password `geheim`, and any certificate of the tests' authority."""
    login = (
        "org.apache.kafka.common.security.plain.PlainLoginModule required "
        f'username="{USER}" password="{PASSWORD}" user_{USER}="{PASSWORD}";'
    )
    return Kafka(
        directory,
        {
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:SASL_SSL,PROXIED:PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "listener.name.plaintext.plain.sasl.jaas.config": login,
            "listener.name.plaintext.ssl.client.auth": "required",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(TLS / "server-pkcs8.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(TLS / "ca.pem"),
        },
        {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": USER,
            "sasl_plain_password": PASSWORD,
            "ssl_cafile": str(TLS / "ca.pem"),
            "ssl_certfile": str(TLS / "client.pem"),
        },
    )

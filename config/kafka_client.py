"""From settings to what kafka-python's clients are made with: one place for addresses and security.

Consumers, producers and admin clients all take these arguments; what is special to one of them is
added by its user. The result holds the password: it is never printed.
"""

from __future__ import annotations

from typing import Any

from config.settings import PREFIX, Settings
from domain.ports import TallyError


def kafka_options(settings: Settings) -> dict[str, Any]:
    """Keyword arguments for any client of kafka-python.

    Raises:
        TallyError: no brokers are set, or the security settings do not fit together; names all of them.
    """
    if settings.kafka_brokers is None:
        raise TallyError(f"{PREFIX}KAFKA_BROKERS is not set: name Kafka's brokers as host:port, separated by commas")
    faults = [*_sasl_faults(settings), *_tls_faults(settings)]
    if faults:
        raise TallyError("\n".join(["bad Kafka settings:", *(f"  {fault}" for fault in faults)]))
    options: dict[str, Any] = {
        "bootstrap_servers": [broker.strip() for broker in settings.kafka_brokers.split(",")],
        "client_id": "tallyflow",
        "security_protocol": settings.kafka_security_protocol,
    }
    if _has_sasl(settings) and settings.kafka_password is not None:
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_username
        options["sasl_plain_password"] = settings.kafka_password.get_secret_value()
    files = {
        "ssl_cafile": settings.kafka_ca_file,
        "ssl_certfile": settings.kafka_certificate_file,
        "ssl_keyfile": settings.kafka_key_file,
    }
    options.update({name: str(path) for name, path in files.items() if path is not None})
    return options


def _has_sasl(settings: Settings) -> bool:
    return settings.kafka_security_protocol.startswith("SASL_")


def _sasl_faults(settings: Settings) -> list[str]:
    """What is missing for a login; or set, but would silently not be used."""
    given = {
        "KAFKA_SASL_MECHANISM": settings.kafka_sasl_mechanism,
        "KAFKA_USERNAME": settings.kafka_username,
        "KAFKA_PASSWORD": settings.kafka_password,
    }
    protocol = settings.kafka_security_protocol
    if _has_sasl(settings):
        return [f"{PREFIX}{name} is not set, which {protocol} needs" for name, value in given.items() if value is None]
    return [
        f"{PREFIX}{name} is set, but {protocol} has no login: use SASL_SSL or SASL_PLAINTEXT"
        for name, value in given.items()
        if value is not None
    ]


def _tls_faults(settings: Settings) -> list[str]:
    """Files that are missing, or would silently not be used."""
    files = {
        "KAFKA_CA_FILE": settings.kafka_ca_file,
        "KAFKA_CERTIFICATE_FILE": settings.kafka_certificate_file,
        "KAFKA_KEY_FILE": settings.kafka_key_file,
    }
    given = {name: path for name, path in files.items() if path is not None}
    protocol = settings.kafka_security_protocol
    if not protocol.endswith("SSL"):
        return [f"{PREFIX}{name} is set, but {protocol} has no TLS: use SSL or SASL_SSL" for name in given]
    faults = [f"{PREFIX}{name}={path} is no file" for name, path in given.items() if not path.is_file()]
    if settings.kafka_certificate_file is None and settings.kafka_key_file is not None:
        faults.append(f"{PREFIX}KAFKA_KEY_FILE is set, but not {PREFIX}KAFKA_CERTIFICATE_FILE")
    return faults

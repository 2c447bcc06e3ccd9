"""How a ClickHouse server is to be reached, as arguments for `engines.clickhouse.connect`."""

from __future__ import annotations

from typing import Any

from config.settings import Settings


def clickhouse_options(settings: Settings) -> dict[str, Any]:
    """Everything about the server but the database: `connect(**clickhouse_options(settings))`.

    To be asked only with `clickhouse_url` set. It holds the password: not to be printed.
    """
    assert settings.clickhouse_url is not None, "the embedded engine has no address"
    return {
        "url": settings.clickhouse_url.get_secret_value(),
        "user": settings.clickhouse_user,
        "password": settings.clickhouse_password.get_secret_value() if settings.clickhouse_password else None,
        "ca_file": settings.clickhouse_ca_file,
        "certificate_file": settings.clickhouse_certificate_file,
        "key_file": settings.clickhouse_key_file,
        "timeout_seconds": settings.clickhouse_timeout_seconds,
        "cluster": settings.clickhouse_cluster,
    }

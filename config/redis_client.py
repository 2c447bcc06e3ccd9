"""How Redis is to be reached, as arguments for redis-py."""

from __future__ import annotations

from typing import Any

from config.settings import Settings


def redis_options(settings: Settings) -> dict[str, Any]:
    """What goes beside the address: `Redis.from_url(url, **redis_options(settings))`, or the cluster's namesake.

    Empty unless a user, a password or TLS files are set. Certificates and host names are always checked. It may hold
    the password: not to be printed.
    """
    options = {
        "username": settings.redis_username,
        "password": settings.redis_password.get_secret_value() if settings.redis_password else None,
        "ssl_ca_certs": settings.redis_ca_file,
        "ssl_certfile": settings.redis_certificate_file,
        "ssl_keyfile": settings.redis_key_file,
    }
    return {name: value if isinstance(value, str) else str(value) for name, value in options.items() if value}

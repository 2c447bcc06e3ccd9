"""Claims on a Redis behind TLS, with a user and a password beside the address."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import redis

from domain.ports import ClaimsUnavailable, TallyError
from stores.claims import RedisClaims
from tests.services.proxy import Proxy
from tests.stores.claim_stores import ACCEPT_WITHIN_US
from tests.tls.context import CA, CLIENT, server_context

SECRET = "s3cret/%"


@pytest.fixture
def user(redis_url: str) -> Iterator[str]:
    """A Redis user with `SECRET` as password, for as long as a test runs."""
    with redis.Redis.from_url(redis_url) as admin:
        admin.execute_command("ACL", "SETUSER", "meter", "on", f">{SECRET}", "~*", "+@all")
        yield "meter"
        admin.execute_command("ACL", "DELUSER", "meter")


def claims(url: str, wait_seconds: float = 5.0, **options: str) -> RedisClaims:
    return RedisClaims(
        url, shards=1, accept_within_us=ACCEPT_WITHIN_US, wait_seconds=wait_seconds, namespace="tls", options=options
    )


def test_user_password_and_certificates(redis_url: str, user: str) -> None:
    assert urlsplit(redis_url).scheme == "unix"
    with Proxy(redis_url, tls=server_context(asks=True)) as proxy:
        found = claims(
            f"rediss://127.0.0.1:{proxy.port}/3",
            username=user,
            password=SECRET,
            ssl_ca_certs=str(CA),
            ssl_certfile=str(CLIENT),
        )
        assert found.take_over() >= 1
        found.publish({})
        found.close()
    with redis.Redis.from_url(redis_url, db=3) as admin:
        assert admin.exists("{tls:c0}")
        admin.flushdb()


def test_a_wrong_password_is_named_and_not_shown(redis_url: str, user: str) -> None:
    with Proxy(redis_url, tls=server_context()) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}"
        with pytest.raises(TallyError, match=r"check TALLY_REDIS_URL.*TALLY_REDIS_PASSWORD") as caught:
            claims(url, username=user, password="another" + SECRET, ssl_ca_certs=str(CA)).examine()
        assert SECRET not in str(caught.value)


def test_an_unknown_authority_is_not_waited_for(redis_url: str) -> None:
    with Proxy(redis_url, tls=server_context()) as proxy:
        begun = time.monotonic()
        with pytest.raises(TallyError, match=r"certificate .*TALLY_REDIS_CA_FILE") as caught:
            claims(f"rediss://127.0.0.1:{proxy.port}", wait_seconds=30).examine()
        assert not isinstance(caught.value, ClaimsUnavailable) and time.monotonic() - begun < 10

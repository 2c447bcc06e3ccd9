"""One attempt: a signed POST, and what it came to.

Guarantees: never raises for what a receiver or the network does; follows no redirect; connects only to
the address that was judged (`addresses`), with the certificate checked against the host name; reads
little of the answer. Failure: each wait (connecting, a piece of the answer) ends after the endpoint's
`timeout_seconds`; whoever sends one byte at a time takes longer, so the caller keeps a bound of its own.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from domain.signals_json import CONTENT_TYPE
from webhooks import signing
from webhooks.addresses import Forbidden, resolve
from webhooks.endpoints import Endpoint
from webhooks.lanes import Answer

RETRY_AFTER_SECONDS_MAX = 86_400.0
_ANSWER_BYTES_MAX = 4096
_AGENT = f"tallyflow-webhooks/{version('tallyflow')}"


class Sender:
    """Sends to one endpoint; for any number of threads."""

    def __init__(self, endpoint: Endpoint, clock: Callable[[], float] = time.time) -> None:
        parts = urlsplit(endpoint.url)
        assert parts.hostname is not None, "endpoints are checked when they are read"
        self._endpoint = endpoint
        self._clock = clock
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        self._named = parts.netloc
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._pools: dict[str, urllib3.HTTPConnectionPool] = {}

    def post(self, id: str, body: bytes) -> Answer:
        """Send a message once; the signature is of now."""
        try:
            address = resolve(self._host, self._port, internal=self._endpoint.internal)
            signed = signing.headers(self._endpoint.secrets, id, int(self._clock()), body)
            response = self._pool(address).urlopen(
                "POST",
                self._path,
                body=body,
                headers={"host": self._named, "content-type": CONTENT_TYPE, "user-agent": _AGENT, **signed},
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
        except Forbidden as error:
            return Answer(0, str(error))
        except (HTTPError, OSError, UnicodeError) as error:
            return Answer(0, self._explain(error))
        try:
            rest = response.read(_ANSWER_BYTES_MAX)  # a short answer read to its end leaves the connection usable
            if len(rest) == _ANSWER_BYTES_MAX:
                response.close()
        except (HTTPError, OSError):
            response.close()
        status = response.status
        answered = "" if 200 <= status < 300 else f"answered {status} {response.reason or ''}".strip()
        return Answer(status, answered, self._retry_after(response.headers.get("retry-after")))

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

    def _pool(self, address: str) -> urllib3.HTTPConnectionPool:
        """Connections to one address. The name resolves to few; of more than a handful the old ones are dropped."""
        pool = self._pools.get(address)
        if pool is not None:
            return pool
        wait = urllib3.Timeout(connect=self._endpoint.timeout_seconds, read=self._endpoint.timeout_seconds)
        size = self._endpoint.concurrency
        if self._tls is None:
            pool = urllib3.HTTPConnectionPool(address, self._port, timeout=wait, maxsize=size)
        else:
            pool = urllib3.HTTPSConnectionPool(
                address,
                self._port,
                timeout=wait,
                maxsize=size,
                ssl_context=self._tls,
                server_hostname=self._host,
                assert_hostname=self._host,
            )
        if len(self._pools) > 8:
            self._pools = {}
        self._pools[address] = pool
        return pool

    def _explain(self, error: Exception) -> str:
        """In a line, without the path: it may hold a token."""
        match error:
            case NameResolutionError() | UnicodeError():
                return f"{self._host} cannot be resolved"
            case NewConnectionError():
                return f"{self._host}:{self._port} cannot be reached: {error.__cause__ or 'no connection'}"
            case ConnectTimeoutError():
                return f"{self._host}:{self._port} took no connection within {self._endpoint.timeout_seconds:g} s"
            case ReadTimeoutError() | TimeoutError():
                return f"{self._host}:{self._port} gave no answer within {self._endpoint.timeout_seconds:g} s"
            case SSLError():
                return f"TLS with {self._host}:{self._port} failed: {error}"
            case HTTPError():
                return f"{self._host}:{self._port} broke the connection off ({type(error).__name__})"
            case _:
                return f"{self._host}: {error}"

    def _retry_after(self, value: str | None) -> float:
        """Seconds from a Retry-After header (RFC 9110, section 10.2.3); 0 without one that makes sense."""
        if value is None:
            return 0.0
        if value.strip().isascii() and value.strip().isdigit():
            return min(float(value), RETRY_AFTER_SECONDS_MAX)
        try:
            seconds = parsedate_to_datetime(value).timestamp() - self._clock()
        except (ValueError, TypeError, OverflowError):
            return 0.0
        return max(0.0, min(seconds, RETRY_AFTER_SECONDS_MAX))

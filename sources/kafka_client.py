"""Connecting to Kafka, and saying why that failed.

kafka-python retries whatever goes wrong and raises "unable to bootstrap" in the end; the reason (a
wrong password, a certificate that nobody trusts) is only logged. So its warnings are kept here, and
the most telling one goes into the error. They never hold a password.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from domain.ports import TallyError

Options = Mapping[str, Any]
"""Arguments that every client of kafka-python takes (`config.kafka_client`)."""

REQUEST_SECONDS_MAX: Final = 10
_ATTEMPT_SECONDS: Final = 3
_REFUSED = (
    "SaslAuthenticationFailed",
    "UnsupportedSaslMechanism",
    "AuthorizationFailed",
    "SSL:",
    "X509",
    "certificate",
)
"""Words of reasons that no waiting cures."""
_LOGIN_REFUSED: Final = "the login was refused (check TALLY_KAFKA_USERNAME and TALLY_KAFKA_PASSWORD)"
_NOISE = re.compile(r"^(Bootstrap attempt|Bootstrap connection|Connection|Fetch).*?(failed|lost): |\(backoff [^)]*\)$")


_SAYS_NOTHING = re.compile(
    r"^(<|Task |Sending username|No node available|Metadata refresh)|^Bootstrap .*(not ready|failed)|timed out after"
)


class _Complaints(logging.Handler):
    """The last warnings of kafka-python."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last: deque[tuple[float, str]] = deque(maxlen=50)

    def emit(self, record: logging.LogRecord) -> None:
        text = _NOISE.sub("", record.getMessage()).strip()
        if _is_final(text) or not _SAYS_NOTHING.search(text):
            self._last.append((time.monotonic(), text))

    def since(self, start: float) -> list[str]:
        return [text for at, text in list(self._last) if at >= start]


_complaints = _Complaints()
logging.getLogger("kafka").addHandler(_complaints)


def reason(start: float, default: str = "no answer") -> str:
    """The most telling warning of kafka-python since `start` (of `time.monotonic`)."""
    texts = _complaints.since(start)
    telling = [text for text in texts if _is_final(text)] or texts or [default]
    return _explained(telling[-1])


def address(options: Options) -> str:
    """The brokers' addresses, for messages."""
    return ",".join(options["bootstrap_servers"])


def connect(options: Options, seconds_max: float) -> KafkaAdminClient:
    """An admin client, to be closed by its user.

    Raises:
        TallyError: nobody answered within the bound, or the login or certificate was refused (at once).
    """
    start = time.monotonic()
    while True:
        left = seconds_max - (time.monotonic() - start)
        attempt = max(min(_ATTEMPT_SECONDS, left), 0.5)
        try:
            return KafkaAdminClient(
                **options, request_timeout_ms=REQUEST_SECONDS_MAX * 1000, bootstrap_timeout_ms=int(attempt * 1000)
            )
        except (KafkaError, OSError) as error:
            why = reason(start, str(error))
            if _is_final(why) or left <= attempt:
                raise unusable(options, why) from error


@contextmanager
def connected(options: Options, seconds_max: float) -> Iterator[KafkaAdminClient]:
    """`connect` for the length of a block; what Kafka refuses in it becomes a TallyError."""
    client = connect(options, seconds_max)
    start = time.monotonic()
    try:
        yield client
    except KafkaError as error:
        raise unusable(options, f"{error} {reason(start, '')}".strip()) from error
    finally:
        client.close()


def unusable(options: Options, why: str) -> TallyError:
    """What to say when Kafka cannot be used."""
    return TallyError(
        f"Kafka at {address(options)} cannot be used: {why}. Is it running, are the addresses right "
        "(TALLY_KAFKA_BROKERS), and do TALLY_KAFKA_SECURITY_PROTOCOL and the login fit it?"
    )


def _is_final(why: str) -> bool:
    return any(word in why for word in _REFUSED) or why == _LOGIN_REFUSED


def _explained(why: str) -> str:
    if "SaslAuthenticationFailed" in why:
        return _LOGIN_REFUSED
    if "socket disconnected" in why:
        return "it closes the connection: the login was refused, or it speaks another protocol or SASL mechanism"
    return why

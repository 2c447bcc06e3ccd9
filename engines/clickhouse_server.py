"""A ClickHouse server over HTTP: how to reach it, and what its errors mean to an operator.

Guarantees: certificates and host names are checked; what is raised names the server and a remedy, and never holds
the password. Failure: a server that does not answer raises after `CONNECT_SECONDS_MAX`, one that falls silent in the
middle of a statement after `timeout_seconds`; whether to try again is the caller's business.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from domain.ports import TallyError

DATABASE = "tallyflow"
"""The database when an address names none."""
CONNECT_SECONDS_MAX = 10
UNKNOWN_DATABASE = 81
"""ClickHouse's error code."""
_AUTHENTICATION_FAILED = (193, 194, 516)
_NOT_ENOUGH_SPACE = 243
_ACCESS_DENIED = 497


def connect(
    url: str,
    database: str | None = None,
    *,
    user: str | None = None,
    password: str | None = None,
    ca_file: Path | None = None,
    certificate_file: Path | None = None,
    key_file: Path | None = None,
    timeout_seconds: int = 30,
    cluster: str | None = None,
) -> Client:
    """A client of a ClickHouse server, safe to share between threads.

    Args:
        url: `http(s)://user:password@host:port/database`; without a database it is `tallyflow`, without a port
            ClickHouse's own (8123, 8443).
        database: Used instead of the URL's, which may not exist yet when migrations run.
        user, password: Used if the URL has none; without either, `default` and none.
        ca_file: Authority that the server's certificate must be signed by; None: one of the system's.
        certificate_file, key_file: Shown to the server; without a password this is the login.
        timeout_seconds: How long the server may be silent in the middle of a statement.
        cluster: The tables are replicated: an insert is done once most replicas have it.

    Raises:
        TallyError: the URL is wrong, or the server cannot be reached or refuses; it never shows the password.
    """
    parts, port = _split(url)
    secret = unquote(parts.password or "") or password or ""
    name = database or database_of(url)
    where = f"ClickHouse at {parts.hostname}" + (f":{port}" if port else "")
    options: dict[str, Any] = {"port": port} if port else {}
    if certificate_file is not None:
        options |= {"client_cert": str(certificate_file), "tls_mode": "strict" if secret else "mutual"}
        options |= {"client_cert_key": str(key_file)} if key_file else {}
    try:
        return clickhouse_connect.get_client(
            interface=parts.scheme,
            host=parts.hostname,
            username=unquote(parts.username or "") or user or "default",
            password=secret,
            database=name,
            ca_cert=str(ca_file) if ca_file else None,
            connect_timeout=min(CONNECT_SECONDS_MAX, timeout_seconds),
            send_receive_timeout=timeout_seconds,
            autogenerate_session_id=False,
            settings=_quorum(timeout_seconds) if cluster else None,
            **options,
        )
    except (ClickHouseError, OSError) as error:  # an OSError: a file of certificates without any
        raise refused(error, where, name, secret) from None


def _quorum(timeout_seconds: int) -> dict[str, Any]:
    """Settings of a client of replicated tables: what is acknowledged survives the loss of a minority.

    Quorums stay parallel, because several processes write at once; so a reader of what was acknowledged has to
    synchronise its replica first (`sinks.cluster.synchronise`).
    """
    return {"insert_quorum": "auto", "insert_quorum_parallel": 1, "insert_quorum_timeout": timeout_seconds * 1000}


def database_of(url: str) -> str:
    """The database that an address names."""
    return unquote(urlsplit(url).path.strip("/")) or DATABASE


@contextmanager
def named_errors(where: str = "ClickHouse") -> Iterator[None]:
    """Turn what a client raises inside the block into an error that an operator can act on."""
    try:
        yield
    except ClickHouseError as error:
        raise refused(error, where, None) from error


def _split(url: str) -> tuple[SplitResult, int | None]:
    expected = "TALLY_CLICKHOUSE_URL must look like http://user:password@host:8123/tallyflow (or https://...)"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise TallyError(f"the ClickHouse URL cannot be read: {expected}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise TallyError(f"the ClickHouse URL has another form than known: {expected}")
    return parts, port


def refused(error: BaseException, where: str, database: str | None, password: str = "") -> TallyError:
    """What a client's error means, and what to do about it; without the password."""
    code = getattr(error, "code", None)
    if code == UNKNOWN_DATABASE:
        return TallyError(f"{where} has no database {database!r} yet: `tally migrate` makes it")
    if code in _AUTHENTICATION_FAILED:
        return TallyError(
            f"{where} refuses the user or the password: check TALLY_CLICKHOUSE_URL, or TALLY_CLICKHOUSE_USER and "
            "TALLY_CLICKHOUSE_PASSWORD"
        )
    reason = cause_of(error) or (str(error).splitlines()[0] if str(error) else type(error).__name__)
    if password:
        reason = reason.replace(password, "***")
    if code == _ACCESS_DENIED:
        return TallyError(f"{where} lets this user do too little: {reason}. Grant it, or use another user.")
    return TallyError(f"{where} cannot be used: {reason}. {_remedy(error)}")


def _remedy(error: BaseException) -> str:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "Is this the right host name? A certificate of your own authority needs TALLY_CLICKHOUSE_CA_FILE."
        if isinstance(cause, ssl.SSLError) and cause.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            return "Does this port speak TLS? ClickHouse's usual one for https:// is 8443, for http:// 8123."
        if isinstance(cause, ssl.SSLError):
            return "Does it ask for a certificate (TALLY_CLICKHOUSE_CERTIFICATE_FILE)? Are the PEM files right?"
    if getattr(error, "code", None) == _NOT_ENOUGH_SPACE:
        return "Its disk is full: make space."
    if getattr(error, "code", None) is not None:
        return "See its log, and whether its version is supported."
    if "HTTP status" in str(error):
        return "Something answers there, but not ClickHouse: is its address right, and is there a proxy in between?"
    return "Is it running, and is its address right?"


def cause_of(error: BaseException) -> str | None:
    """What the operating system said, if anything: "Connection refused" tells more than what is wrapped around it."""
    found = None
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            found = f"its certificate does not hold ({cause.verify_message})"
        elif isinstance(cause, OSError) and cause.strerror:
            found = cause.strerror
    return found


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, outermost first; urllib3 chains some causes as arguments only."""
    waiting, seen = [error], set[int]()
    while waiting:
        cause = waiting.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        linked = (cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args)
        waiting += [other for other in linked if isinstance(other, BaseException)]

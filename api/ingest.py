"""The HTTP application: `POST /v1/events`, and two probes. `docs/ingest.md` is its contract.

An event is acknowledged (`accepted`) only when Kafka has it. Every way in which a request can fail has a status of
its own and a JSON body; nothing waits without a bound, and nothing is held without one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from api import bodies, cloudevents
from api.bodies import Budget, Held, read_body
from api.catalogs import Catalogs
from api.cloudevents import Mode
from api.counts import IngestCounts
from api.keys import ApiKey, KeyRing
from api.publisher import Publisher, Unavailable
from api.verdicts import Verdicts, judge

RETRY_SECONDS: Final = 2
_INLINE_BYTES_MAX: Final = 32 * 1024
"""A body up to this size is judged in the event loop: that takes less than handing it to a thread and back."""
_DISCONNECTED: Final = 499
"""Counted for a client that left; nobody receives it."""
_ENCODER: Final = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request, and all of them together, may take."""

    body_bytes_max: int
    inflight_bytes_max: int
    read_seconds_max: float


class _Refused(Exception):
    """An answer other than one about events."""

    def __init__(self, status: int, error: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.error = error
        self.detail = detail
        self.headers = headers or {}


class Ingest:
    """The endpoints, over what they need.

    Args:
        publisher: Stores events; started and closed by the caller.
        catalogs: Refreshed by the caller.
        keys: Gives the keys in force.
        limits: Bounds.
        counts: Where requests and events are counted.
        now_us: The clock: what an event's log time is likely to be.
    """

    def __init__(
        self,
        *,
        publisher: Publisher,
        catalogs: Catalogs,
        keys: Callable[[], KeyRing],
        limits: Limits,
        counts: IngestCounts,
        now_us: Callable[[], int],
    ) -> None:
        self._publisher = publisher
        self._catalogs = catalogs
        self._keys = keys
        self._limits = limits
        self._counts = counts
        self._now_us = now_us
        self._budget = Budget(limits.inflight_bytes_max, counts)
        self.stopping = False
        """Set by the server when it begins to shut down: not ready any more, but what is on its way is finished."""

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/events", self._events, methods=["POST"]),
                Route("/healthz", self._healthz, methods=["GET"]),
                Route("/readyz", self._readyz, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _http_error, Exception: _crashed},
        )

    async def _healthz(self, _request: Request) -> Response:
        return _json(200, {"status": "ok"})

    def faults(self) -> dict[str, str]:
        """What keeps events from being taken at the moment, by the part that it concerns; for any thread."""
        faults = {
            "kafka": self._publisher.fault,
            "catalog": "" if self._catalogs.decoder else self._catalogs.fault,
            "server": "is shutting down" if self.stopping else "",
        }
        return {name: fault for name, fault in faults.items() if fault}

    async def _readyz(self, _request: Request) -> Response:
        named = self.faults()
        return _json(503 if named else 200, {"status": "not ready", "faults": named} if named else {"status": "ready"})

    async def _events(self, request: Request) -> Response:
        try:
            verdicts = await self._take(request)
            response = _json(verdicts.status(), verdicts.answer(), _retry() if verdicts.unconfirmed else None)
        except _Refused as refused:
            response = _error(refused.status, refused.error, refused.detail, refused.headers)
        except ClientDisconnect:
            response = Response(status_code=_DISCONNECTED)
        self._counts.requests[response.status_code] += 1
        return response

    async def _take(self, request: Request) -> Verdicts:
        """Everything from the request to what became of its events. Raises _Refused, ClientDisconnect."""
        headers = request.headers.raw
        key = self._authenticated(headers)
        try:
            mode = cloudevents.mode_of(headers)
        except cloudevents.Unsupported as error:
            raise _Refused(415, "unsupported_media_type", str(error)) from None
        if self._publisher.fault:  # before the body is sent for nothing
            _unavailable()
        held = Held(self._budget)
        passed_on = False
        try:
            body = await self._body(request, held)
            verdicts = await self._judged(mode, headers, body, key)
            if verdicts.messages:
                passed_on = True
                await self._store(verdicts, held)
        finally:
            if not passed_on:
                held.release()
        outcomes = verdicts.outcomes()
        self._counts.events.update(outcomes)
        self._counts.keys[key.name] += outcomes["accepted"]
        return verdicts

    def _authenticated(self, headers: list[tuple[bytes, bytes]]) -> ApiKey:
        given = [value for name, value in headers if name == b"authorization"]
        scheme, _, presented = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        key = self._keys().find(presented.strip()) if scheme.lower() == b"bearer" else None
        if key is None:
            detail = "the key is not known" if given else "send the header Authorization: Bearer KEY"
            raise _Refused(401, "unauthorized", detail, {"WWW-Authenticate": 'Bearer realm="tallyflow"'})
        return key

    async def _body(self, request: Request, held: Held) -> bytes:
        limits = self._limits
        try:
            body = await read_body(
                request.headers.raw,
                _chunks(request),
                held,
                bytes_max=limits.body_bytes_max,
                seconds_max=limits.read_seconds_max,
            )
        except bodies.TooLarge:
            detail = f"the body, as sent or unpacked, is larger than {limits.body_bytes_max} bytes: send several"
            raise _Refused(413, "body_too_large", detail) from None
        except bodies.TooSlow:
            detail = f"the body did not arrive within {limits.read_seconds_max:g} s"
            raise _Refused(408, "request_timeout", detail, {"Connection": "close"}) from None
        except bodies.Busy:
            raise _Refused(503, "busy", "too many bytes are on their way: send again later", _retry()) from None
        except bodies.UnknownEncoding as error:
            detail = f"content encoding {error} is not read: send gzip or identity"
            raise _Refused(415, "unsupported_encoding", detail, {"Accept-Encoding": "gzip, identity"}) from None
        except bodies.Undecodable as error:
            raise _Refused(400, "bad_encoding", f"the body is announced as gzip, but {error}") from None
        self._counts.body_bytes += len(body)
        return body

    async def _judged(self, mode: Mode, headers: list[tuple[bytes, bytes]], body: bytes, key: ApiKey) -> Verdicts:
        decoder = self._catalogs.decoder
        if decoder is None:
            _unavailable()

        def work() -> Verdicts:
            return judge(cloudevents.divide(mode, headers, body), mode, decoder, key, self._now_us())

        try:
            return work() if len(body) <= _INLINE_BYTES_MAX else await asyncio.to_thread(work)
        except cloudevents.TooMany as error:
            raise _Refused(413, "too_many_events", str(error)) from None
        except cloudevents.BadRequest as error:
            raise _Refused(400, "bad_request", str(error)) from None

    async def _store(self, verdicts: Verdicts, held: Held) -> None:
        began = time.monotonic()
        try:
            verdicts.stored(await self._publisher.store(verdicts.messages, held.release))
        except Unavailable:
            _unavailable()
        finally:
            self._counts.stores += 1
            self._counts.store_seconds += time.monotonic() - began


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        if chunk:
            yield chunk


def _unavailable() -> NoReturn:
    """What is wrong is said by /readyz and the log: a client can do nothing about it."""
    raise _Refused(503, "unavailable", "events cannot be stored at the moment; nothing was: send again later", _retry())


def _retry() -> dict[str, str]:
    return {"Retry-After": str(RETRY_SECONDS)}


def _json(status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(_ENCODER.encode(content), status, headers, "application/json")


def _error(status: int, error: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    return _json(status, {"error": error, "detail": detail}, headers)


async def _http_error(_request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: an unknown path, another method."""
    assert isinstance(error, HTTPException)
    detail = {404: "there is nothing at this path; events go to POST /v1/events", 405: "this path takes another method"}
    name = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
    headers = dict(error.headers or {})
    return _error(error.status_code, name, detail.get(error.status_code, error.detail), headers)


async def _crashed(_request: Request, _error_: Exception) -> Response:
    return _error(500, "internal_error", "a fault of the server, which its log describes: send again")

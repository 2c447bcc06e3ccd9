"""uvicorn's HTTP/1.1 connection, with bounds on what a peer may keep waiting.

uvicorn limits idle keep-alive connections only. Here a peer that owes something (the rest of its headers, or, once it
has its answer, the rest of a body that nobody wants) gets so many seconds for it; so a thousand peers that send a
byte a minute hold a thousand sockets for that long and no longer. What a body may take while it is being read is the
application's own bound.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol


def bounded_protocol(read_seconds_max: float, connections_max: int) -> type[H11Protocol]:
    """A connection class for uvicorn's `http` setting.

    Args:
        read_seconds_max: What a peer has for a request's headers, and for what is left of an unwanted body.
        connections_max: One more is answered with 503 and closed.
    """

    class BoundedProtocol(H11Protocol):
        """One connection."""

        _owed: asyncio.TimerHandle | None = None
        _phase: str = ""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > connections_max:
                self._refuse(503, "busy", "too many connections: come again later")
            else:
                self._watch()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_watching()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "bad_request", f"{msg} Send HTTP/1.1, with headers of at most 64 KiB.")

        def timeout_keep_alive_handler(self) -> None:
            if not self.transport.is_closing() and self.transport.get_write_buffer_size():
                self.transport.abort()  # it does not read its answer; closing would wait for it
            else:
                super().timeout_keep_alive_handler()

        def _watch(self) -> None:
            phase = self._waiting_for()
            if phase == self._phase or self.transport.is_closing():
                return
            self._stop_watching()
            self._phase = phase
            if phase:
                self._owed = self.loop.call_later(read_seconds_max, self._overdue)

        def _waiting_for(self) -> str:
            if self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE:
                # Between two requests it owes nothing: then uvicorn's own, longer bound for idle connections holds.
                return "headers" if self.cycle is None or self.conn.trailing_data[0] else ""
            if self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
                return "rest"
            return ""

        def _stop_watching(self) -> None:
            self._phase = ""
            if self._owed is not None:
                self._owed.cancel()
                self._owed = None

        def _overdue(self) -> None:
            if self._phase == "headers" and self.conn.trailing_data[0]:
                self._refuse(408, "request_timeout", f"the headers did not arrive within {read_seconds_max:g} s")
            elif self.transport.get_write_buffer_size():
                self.transport.abort()
            else:
                self.transport.close()

        def _refuse(self, status: int, error: str, detail: str) -> None:
            """Answer without the application, and close."""
            body = msgspec.json.encode({"error": error, "detail": detail})
            reason = {400: b"Bad Request", 408: b"Request Timeout", 503: b"Service Unavailable"}[status]
            headers: list[tuple[bytes, bytes]] = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            if status == 503:
                headers.append((b"retry-after", b"2"))
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                events: list[Any] = [
                    h11.Response(status_code=status, headers=headers, reason=reason),
                    h11.Data(data=body),
                    h11.EndOfMessage(),
                ]
                for event in events:
                    self.transport.write(self.conn.send(event) or b"")
            if self.cycle is not None:  # the application may still be reading: its answer would be a second one
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self.transport.close()

    return BoundedProtocol

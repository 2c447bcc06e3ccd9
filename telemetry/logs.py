"""What a process says while it runs: one event a line on standard error, as JSON or as text for people.

Everything goes through one formatter: our own events (structlog), the libraries' loggers (standard logging), and
errors that nobody caught. A line is a line: control characters in values are escaped, whatever they came from. Fields
hold positions (topic, partition, offset), counts and times; what events say is not logged at all, and neither are
addresses with passwords (settings mask them).
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Mapping, MutableMapping
from enum import StrEnum
from typing import Any, Literal, TextIO

import orjson
import structlog
from structlog.stdlib import ProcessorFormatter

from telemetry.plain import plain

Format = Literal["json", "text"]
Level = Literal["debug", "info", "warning", "error"]


_SHARED: tuple[structlog.typing.Processor, ...] = (
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
)


class Event(StrEnum):
    """What our own lines tell; `docs/logs.md` says it in words."""

    STARTING = "flow.starting"
    RUNNING = "flow.running"
    RESUMED = "partition.resumed"
    PROGRESS = "flow.progress"
    FLUSH_FAILED = "flush.failed"
    SIGNAL = "process.signal"
    NOTICE = "process.notice"
    STOPPED = "flow.stopped"
    FAILED = "process.failed"


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to what standard error is now."""

    def __init__(self, format: Format) -> None:
        logging.Handler.__init__(self)
        self.format_name = format

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        raise AssertionError("it is standard error")


def configure(format: Format, level: Level) -> None:
    """Send everything that is logged in this process to standard error; may be called again.

    Args:
        format: JSON for programs, text for people.
        level: What of ours is less than this is left out. Libraries speak from `warning` on.
    """
    render = _as_json if format == "json" else _as_text
    handler = _Handler(format)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.add_logger_name],
            processors=[
                ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                render,
            ],
        )
    )
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of each attempt whose failure is raised anyway
    logging.getLogger("tally").setLevel(level.upper())
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def logger() -> structlog.stdlib.BoundLogger:
    """Ours: `logger().info(Event.PROGRESS, accepted=5)`."""
    found: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger("tally"),
        processors=[structlog.stdlib.filter_by_level, *_SHARED, ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return found


def speaks_json() -> bool:
    """Whether standard error belongs to programs: then nothing else may be written to it."""
    return any(isinstance(each, _Handler) and each.format_name == "json" for each in logging.getLogger().handlers)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error or kind(), trace)
        return
    logger().critical(Event.FAILED, error=f"{kind.__name__}: {error}", exc_info=(kind, error, trace))


def _as_json(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    head = {"time": event.pop("time"), "level": event.pop("level"), "event": str(event.pop("event"))}
    try:
        text = orjson.dumps({**head, **event}, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except orjson.JSONEncodeError:  # text that is not Unicode, or an integer beyond 64 bits
        return json.dumps({**head, **event}, default=str)
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _as_text(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    time, level, name = event.pop("time"), event.pop("level"), plain(str(event.pop("event")))
    trace = event.pop("exception", "")
    fields = "".join(f" {key}={_value(value)}" for key, value in event.items())
    return f"{time[:23]}Z {level:<7} {name}{fields}" + "".join(f"\n    {plain(line)}" for line in trace.splitlines())


def _value(value: Any) -> str:
    """A field's value on one line; quoted where it would not be one word."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{plain(str(k))}: {_value(v)}" for k, v in value.items()) + "}"
    text = str(value)
    if text and text.isprintable() and not set(text) & set(" \"'=,{}"):
        return text
    return plain(json.dumps(text, ensure_ascii=False))

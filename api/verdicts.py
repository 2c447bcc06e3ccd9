"""Which events of a request may be stored, and the answer that says so for each.

Events are judged by the flow's own `decode`, at the present time for their log time. So what is accepted here is
accepted by the flow, but for what only the log can tell: repeats and conflicts, and an event that became too late on
its way.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from api.cloudevents import Mode, Received
from api.keys import ApiKey
from api.publisher import Fault, Message
from domain.decode import BatchDecoder
from domain.values import RawBatch, Reason

FORBIDDEN: Final = "forbidden"
"""The reason of an event that the key may not send; the other reasons are the flow's."""


class Status(StrEnum):
    """What became of one event."""

    ACCEPTED = "accepted"
    """Kafka has it."""
    REJECTED = "rejected"
    """It was not stored, and never will be as it is."""
    UNCONFIRMED = "unconfirmed"
    """It may or may not be stored: to be sent again with the same id."""


@dataclass(slots=True)
class Verdicts:
    """The events of one request and their outcome; parallel lists."""

    indexes: list[int]
    ids: list[str]
    """Of each event; "" where it cannot be told."""
    reasons: list[str]
    """Why it is rejected; "" if it is not."""
    details: list[str]
    messages: list[Message] = field(default_factory=list)
    """What has to be stored."""
    places: list[int] = field(default_factory=list)
    """Of each message, the event that it is."""
    unconfirmed: int = 0

    def stored(self, faults: list[Fault | None]) -> None:
        """Record what became of `messages`."""
        for place, fault in zip(self.places, faults, strict=True):
            if fault is None:
                continue
            self.details[place] = str(fault)
            if fault.too_large:
                self.reasons[place] = Reason.OVERSIZED
            else:
                self.reasons[place] = Status.UNCONFIRMED
                self.unconfirmed += 1

    def status(self) -> int:
        """The HTTP status of the request as a whole.

        202 all are stored, or there were none; 207 some are stored and the others rejected; 503 some are unconfirmed;
        else none is stored: 403 or 413 if that is what is wrong with each, 400 otherwise.
        """
        faults = {reason for reason in self.reasons if reason}
        if self.unconfirmed:
            return 503
        if not faults:
            return 202
        if "" in self.reasons:
            return 207
        if faults == {FORBIDDEN}:
            return 403
        return 413 if faults == {Reason.OVERSIZED} else 400

    def outcomes(self) -> Counter[str]:
        """How many events had which outcome."""
        return Counter(reason or Status.ACCEPTED.value for reason in self.reasons)

    def answer(self) -> dict[str, Any]:
        """The body of the answer."""
        accepted = self.reasons.count("")
        rejected = len(self.reasons) - accepted - self.unconfirmed
        counts = {"accepted": accepted, "rejected": rejected}
        if self.unconfirmed:
            counts["unconfirmed"] = self.unconfirmed
        return {**counts, "events": [self._event(i) for i in range(len(self.reasons))]}

    def _event(self, i: int) -> dict[str, Any]:
        event: dict[str, Any] = {"index": self.indexes[i], "id": self.ids[i] or None}
        match self.reasons[i]:
            case "":
                return event | {"status": Status.ACCEPTED}
            case Status.UNCONFIRMED:
                return event | {"status": Status.UNCONFIRMED, "detail": self.details[i]}
            case reason:
                return event | {"status": Status.REJECTED, "reason": reason, "detail": self.details[i]}


def judge(received: Received, mode: Mode, decoder: BatchDecoder, key: ApiKey, now_us: int) -> Verdicts:
    """Judge the events of a request, and make messages of those that may be stored."""
    count = len(received.payloads)
    verdicts = Verdicts(received.indexes, [""] * count, [""] * count, [""] * count)
    if not count:
        return verdicts
    raw = RawBatch(
        topic="",
        partition=0,
        start_offset=0,
        next_offset=count,
        offsets=list(range(count)),
        indexes=[0] * count,
        payloads=received.payloads,
        messages=count,
        events=count,
        attributes=None if received.attributes is None else [received.attributes] * count,
        log_times_us=[now_us] * count,
    )
    batch = decoder.decode(raw)
    rejects, events = batch.rejects, batch.events
    for place, event_id, reason, detail in zip(
        rejects.offsets, rejects.ids, rejects.reasons, rejects.details, strict=True
    ):
        verdicts.ids[place], verdicts.reasons[place], verdicts.details[place] = event_id, reason.value, detail
    headers = _headers(mode, received.attributes)
    columns = (events.offsets, events.ids, events.types, events.sources, events.subjects, events.payloads)
    for place, event_id, event_type, source, subject, payload in zip(*columns, strict=True):
        verdicts.ids[place] = event_id
        refusal = key.refusal(event_type, source, subject)
        if refusal:
            verdicts.reasons[place], verdicts.details[place] = FORBIDDEN, refusal
        else:
            verdicts.messages.append(Message(subject, payload, headers))
            verdicts.places.append(place)
    return verdicts


def _headers(mode: Mode, attributes: dict[str, str] | None) -> list[tuple[str, bytes]]:
    """Kafka headers (Kafka binding, sections 3.2 and 3.3)."""
    if mode is not Mode.BINARY or attributes is None:
        return [("content-type", b"application/cloudevents+json; charset=UTF-8")]
    named = [(f"ce_{name}", text.encode()) for name, text in attributes.items() if name != "datacontenttype"]
    content_type = attributes.get("datacontenttype")
    return named if content_type is None else [("content-type", content_type.encode()), *named]

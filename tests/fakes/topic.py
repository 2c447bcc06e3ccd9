"""A topic for signals in memory, and a producer in place of kafka-python's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kafka.errors import KafkaTimeoutError

from tests.simulation.effects import Effects


@dataclass
class SignalsTopic:
    """What producers have written."""

    messages: list[tuple[bytes, bytes]] = field(default_factory=list)
    """(key, value)"""

    def producer(self, effects: Effects | None = None) -> Callable[..., Producer]:
        """What `sinks.kafka.KafkaOutlet` makes its producer by."""
        return lambda **options: Producer(self, effects)


class Sent:
    """The future of one message."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def add_callback(self, told: Callable[[Any], None]) -> None:
        if self._error is None:
            told(None)

    def get(self, timeout: float) -> None:
        if self._error is not None:
            raise self._error


class Producer:
    """Writes at once; what fails is known from the future, whether the message is there or not."""

    def __init__(self, topic: SignalsTopic, effects: Effects | None) -> None:
        self._topic = topic
        self._effects = effects

    def send(self, topic: str, *, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes]]) -> Sent:
        try:
            if self._effects is not None:
                self._effects.before("log.produce", KafkaTimeoutError)
            self._topic.messages.append((key, value))
            if self._effects is not None:
                self._effects.after("log.produce", KafkaTimeoutError)
        except KafkaTimeoutError as error:
            return Sent(error)
        return Sent(None)

    def close(self, timeout: float) -> None:
        pass

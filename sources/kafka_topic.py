"""The topic that usage events are read from: made, or judged, before a flow starts.

What is counted depends on the topic: log times must be the broker's, nothing may be compacted away,
and offsets mean nothing in another topic of the same name. So each of these is a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from domain.ports import TallyError
from sources.kafka_client import Options, address, connected

_CONFIGS = ("message.timestamp.type", "cleanup.policy", "retention.ms", "retention.bytes")
_UNKNOWN_TOPIC = 3


class TopicMissing(TallyError):
    """There is no such topic, and it was not to be made."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic fit for counting."""

    name: str
    id: str
    """Another one after a topic was deleted and made again."""
    partitions: int
    retention_ms: int
    """-1: for ever."""

    def lasts(self) -> str:
        """How long it keeps messages, in words."""
        return "for ever" if self.retention_ms < 0 else f"{self.retention_ms / 86_400_000:g} days"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a missing topic is made with."""

    partitions: int
    replication: int | None
    """None: the brokers' default."""
    retention_ms: int


def open_topic(options: Options, name: str, *, plan: Plan | None, seconds_max: float) -> Topic:
    """The topic, judged; made first if it is missing and there is a plan.

    Raises:
        TallyError: Kafka cannot be used, or the topic is missing or not fit; says what to do.
    """
    with connected(options, seconds_max) as client:
        found = describe(client, name)
        if found is None and plan is not None:
            _make(client, name, plan)
            found = describe(client, name)
        if found is None:
            raise TopicMissing(
                f"Kafka at {address(options)} has no topic {name!r} that this user may see: check TALLY_KAFKA_TOPIC; "
                "a new deployment makes a missing topic, one that has read from it does not"
            )
        return Topic(name, *found, _judge(name, _configs(client, name)))


def describe(client: KafkaAdminClient, name: str) -> tuple[str, int] | None:
    """A topic's id and number of partitions; None if it is missing.

    Raises:
        KafkaError: it cannot be told.
    """
    (topic,) = client.describe_topics([name])
    if topic["error_code"] == _UNKNOWN_TOPIC:
        return None
    if topic["error_code"]:
        raise for_code(topic["error_code"])(f"topic {name!r}")
    return str(topic["topic_id"]), len(topic["partitions"])


def check_known(topic: Topic, known_id: str, known_partitions: int) -> None:
    """Refuse a topic that is not the one that a deployment has read from.

    More partitions than known are fine: a new one is read from its beginning.

    Raises:
        TallyError: it is another topic, or partitions are gone.
    """
    if topic.id != known_id:
        raise recreated(topic.name, topic.id, known_id)
    if topic.partitions < known_partitions:
        raise TallyError(
            f"topic {topic.name} has {topic.partitions} partitions, and this deployment has read from "
            f"{known_partitions}: Kafka never takes partitions away, so this is another cluster or topic. Point "
            "TALLY_KAFKA_BROKERS and TALLY_KAFKA_TOPIC at the old one, or start a new deployment."
        )


def recreated(name: str, found: str, known: str) -> TallyError:
    """What to say of a topic that was deleted and made again."""
    return TallyError(
        f"topic {name} has the id {found}, but this deployment has read from the one with id {known}: it was deleted "
        "and made again (or this is another cluster), so the ledger's offsets mean other messages. Restore the old "
        "topic, or start a new deployment: a new topic name, TALLY_DATA_DIR, database and Redis."
    )


def _make(client: KafkaAdminClient, name: str, plan: Plan) -> None:
    config = {
        "message.timestamp.type": "LogAppendTime",
        "cleanup.policy": "delete",
        "retention.ms": str(plan.retention_ms),
    }
    topic: dict[str, Any] = {
        "num_partitions": plan.partitions,
        "replication_factor": -1 if plan.replication is None else plan.replication,
        "configs": config,
    }
    try:
        client.create_topics({name: topic}, wait_for_metadata=True)
    except TopicAlreadyExistsError:
        pass  # by another process; it is judged as any other
    except KafkaError as error:
        raise TallyError(
            f"topic {name!r} is missing, and making it was refused: {error}. Make it by hand with {plan.partitions} "
            f"partitions and {', '.join(f'{key}={value}' for key, value in config.items())}, or change "
            "TALLY_KAFKA_PARTITIONS, TALLY_KAFKA_REPLICATION or this user's rights."
        ) from error


def _configs(client: KafkaAdminClient, name: str) -> dict[str, str]:
    resource = ConfigResource(ConfigResourceType.TOPIC, name, dict.fromkeys(_CONFIGS))
    found = client.describe_configs([resource], config_filter="all")["topic"][name]
    return {key: str(config["value"]) for key, config in found.items()}


def _judge(name: str, config: Mapping[str, str]) -> int:
    """Refuse a topic that cannot be counted from; returns its retention."""
    missing = [key for key in _CONFIGS if key not in config]
    if missing:
        raise TallyError(
            f"topic {name}: this user may not read its configuration ({', '.join(missing)}), by which tally tells "
            "whether it can be counted from: allow DescribeConfigs on the topic"
        )
    faults = []
    if config["message.timestamp.type"] != "LogAppendTime":
        faults.append(
            "is on message.timestamp.type=CreateTime, where producers choose the log time: set LogAppendTime. Messages "
            "that are already there keep their producers' times and are refused; a new topic is simpler"
        )
    if config["cleanup.policy"] != "delete":
        faults.append(
            f"has cleanup.policy={config['cleanup.policy']}, under which Kafka removes events with equal keys: "
            "set cleanup.policy=delete"
        )
    if faults:
        raise TallyError("\n".join(f"topic {name} {fault}" for fault in faults))
    return int(config["retention.ms"])

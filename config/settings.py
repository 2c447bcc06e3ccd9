"""Settings from `TALLY_*` environment variables: where the services are, and how much at a time.

What decides an outcome is in the catalog, not here. What has no setting (log, Redis, ClickHouse)
falls back to an embedded engine under `data_dir`. Addresses may hold passwords, so they are masked
wherever settings are printed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from domain.ports import TallyError

PREFIX = "TALLY_"


def _url(schemes: tuple[str, ...], example: str) -> AfterValidator:
    """Checks an address without ever repeating it: it may hold a password."""
    remedy = f"write an address such as {example}"

    def check(value: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(value.get_secret_value())
            complete = parts.scheme in schemes and (parts.hostname or (parts.scheme == "unix" and parts.path))
            _ = parts.port
        except ValueError:
            complete = False
        if not complete:
            raise PydanticCustomError(
                "setting", "is no {schemes} address", {"schemes": "/".join(schemes), "remedy": remedy}
            )
        return value

    return AfterValidator(check)


def _brokers(value: str) -> str:
    for broker in value.split(","):
        host, colon, port = broker.strip().rpartition(":")
        if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            remedy = "write host:port, separated by commas"
            raise PydanticCustomError(
                "setting", "has no host and port in {broker}", {"broker": repr(broker), "remedy": remedy}
            )
    return value


class Settings(BaseSettings):
    """Every setting; a field `x` is read from `TALLY_X`. An empty variable counts as not set."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="ignore")

    kafka_brokers: Annotated[str, AfterValidator(_brokers)] | None = Field(
        None, description="Kafka brokers as host:port, separated by commas. Not set: files are the log."
    )
    kafka_topic: str = Field(
        "usage.events",
        pattern=r"^[A-Za-z0-9._-]{1,249}$",
        description="The Kafka topic that usage events are read from.",
    )
    redis_url: Annotated[SecretStr, _url(("redis", "rediss", "unix"), "redis://:password@host:6379/0")] | None = Field(
        None, description="Redis, where claims are kept. Not set: an embedded server."
    )
    clickhouse_url: Annotated[SecretStr, _url(("http", "https"), "http://user:password@host:8123/tallyflow")] | None = (
        Field(None, description="ClickHouse's HTTP interface and the database. Not set: an embedded engine.")
    )
    data_dir: Path = Field(Path(".tally"), description="Directory of embedded engines and of recovery snapshots.")
    batch_rows_max: int = Field(
        20_000,
        ge=1,
        le=100_000,
        description="Most messages in one batch of a partition. Only a backlog fills it: nothing is waited for.",
    )
    epoch_seconds: float = Field(
        5, ge=0.1, le=3600, description="How often a snapshot is taken: what a restart may have to read again."
    )
    shards: int = Field(
        64, ge=1, le=4096, description="Shards of the aggregation state. Changing it needs a rebuild from the ledger."
    )
    claim_shards: int = Field(
        1,
        ge=1,
        le=256,
        description="Shards of the claims in Redis, each with its own hash tag; more for a Redis cluster.",
    )
    recovery_partitions: int = Field(
        4, ge=1, le=256, description="Recovery database files; at least one for each worker lets them write at once."
    )
    flush_seconds: float = Field(
        1, ge=0.05, le=60, description="Longest time that a row waits in a sink's buffer before it is written."
    )
    flush_rows_max: int = Field(
        100_000, ge=1, le=10_000_000, description="Most rows in a sink's buffer before it is written."
    )
    redis_wait_seconds: float = Field(
        30, ge=0.1, le=3600, description="How long to wait for an unreachable Redis before the flow stops."
    )
    lease_seconds: float = Field(
        10,
        ge=1,
        le=600,
        description="How long a process that was killed may keep its place from its successor on another machine. "
        "A process that is paused for longer stops.",
    )
    start_wait_seconds: float = Field(
        60, ge=1, le=3600, description="How long the processes of a deployment wait for each other at the start."
    )
    clickhouse_wait_seconds: float = Field(
        30, ge=0.1, le=3600, description="How long to wait for an unreachable ClickHouse before the flow stops."
    )


def load_settings() -> Settings:
    """The settings of this process's environment.

    Raises:
        TallyError: with every bad variable: its name, its value (never an address) and a remedy.
    """
    try:
        return Settings()
    except ValidationError as error:
        lines = [f"  {_explain(dict(detail))}" for detail in error.errors(include_url=False)]
        raise TallyError("\n".join(["bad settings:", *lines])) from None


def _explain(detail: dict[str, Any]) -> str:
    name = str(detail["loc"][0])
    context = detail.get("ctx", {})
    value = "(hidden)" if name.endswith("_url") else repr(detail["input"])
    message, remedy = str(detail["msg"]), str(context.get("remedy", ""))
    match detail["type"]:
        case "greater_than_equal":
            message, remedy = "is too small", f"use {context['ge']:g} or more"
        case "less_than_equal":
            message, remedy = "is too large", f"use {context['le']:g} or less"
        case "int_parsing" | "int_from_float" | "int_parsing_size":
            message, remedy = "is no integer", "write digits"
        case "float_parsing" | "finite_number":
            message, remedy = "is no number", "write a number such as 1.5"
        case "string_pattern_mismatch":
            message, remedy = "is no topic name", "use letters, digits and ._- (at most 249)"
    return f"{PREFIX}{name.upper()}={value} {message}; {remedy or 'correct it'}"

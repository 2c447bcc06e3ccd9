"""Settings from `TALLY_*` environment variables: where the services are, and how much at a time.

What decides an outcome is in the catalog, not here. What has no setting (log, Redis, ClickHouse)
falls back to an embedded engine under `data_dir`. Addresses may hold passwords, so they are masked
wherever settings are printed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
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


def _readable(value: Path) -> Path:
    try:
        with value.expanduser().open("rb"):
            return value.expanduser()
    except OSError as error:
        raise PydanticCustomError(
            "setting",
            "cannot be read ({reason})",
            {"reason": error.strerror or str(error), "remedy": "give the path of a PEM file that this user may read"},
        ) from None


PemFile = Annotated[Path, AfterValidator(_readable)]


class Settings(BaseSettings):
    """Every setting; a field `x` is read from `TALLY_X`. An empty variable counts as not set."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="ignore")

    kafka_brokers: Annotated[str, AfterValidator(_brokers)] | None = Field(
        None, description="Kafka brokers as host:port, separated by commas. Not set: files are the log."
    )
    kafka_topic: str = Field(
        "usage.events",
        pattern=r"^[A-Za-z0-9._-]{1,249}$",
        description="The Kafka topic that usage events are read from; a new deployment makes it if it is missing.",
    )
    kafka_partitions: int = Field(8, ge=1, le=10_000, description="Partitions of a topic that tally makes.")
    kafka_replication: int | None = Field(
        None, ge=1, le=32, description="Copies of a topic that tally makes. Not set: the brokers' default."
    )
    kafka_group: str = Field(
        "tallyflow",
        min_length=1,
        max_length=249,
        description="Consumer group that durable offsets are committed under, for tools that show lag.",
    )
    kafka_wait_seconds: float = Field(
        60, ge=1, le=3600, description="How long to wait for an unreachable or stuck Kafka before the flow stops."
    )
    kafka_accept_loss: str = Field(
        "",
        description="Go on although Kafka deleted messages before they were counted: `partition:offset`, separated by "
        "commas, as the error message says it.",
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="How to connect to Kafka: with TLS (`SSL`), with a user (`SASL`), with both."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, description="How to authenticate to Kafka; needed with `SASL_*`."
    )
    kafka_username: str | None = Field(None, description="User at Kafka; needed with `SASL_*`.")
    kafka_password: SecretStr | None = Field(None, description="Password at Kafka; needed with `SASL_*`.")
    kafka_ca_file: Path | None = Field(
        None, description="PEM file of the authority that signed Kafka's certificate. Not set: the system's."
    )
    kafka_certificate_file: Path | None = Field(None, description="PEM file of the certificate to show to Kafka.")
    kafka_key_file: Path | None = Field(
        None, description="PEM file of that certificate's key. Not set: it is in the certificate's file."
    )
    redis_url: Annotated[SecretStr, _url(("redis", "rediss", "unix"), "redis://:password@host:6379/0")] | None = Field(
        None, description="Redis, where claims are kept. Not set: an embedded server."
    )
    redis_username: str | None = Field(None, description="Redis user (ACL); not needed with one in the address.")
    redis_password: SecretStr | None = Field(None, description="Redis password; not needed with one in the address.")
    redis_ca_file: PemFile | None = Field(
        None,
        description="PEM file of the authority that signed Redis's certificate. Not set: the system's.",
    )
    redis_certificate_file: PemFile | None = Field(None, description="PEM file of the certificate to show to Redis.")
    redis_key_file: PemFile | None = Field(
        None, description="PEM file of that certificate's key. Not set: it is in the certificate's file."
    )
    signals_topic: str = Field(
        "usage.signals",
        pattern=r"^[A-Za-z0-9._-]{1,249}$",
        description="The Kafka topic that signals go to, if `TALLY_KAFKA_BROKERS` is set; made if it is missing.",
    )
    signals_channel: str = Field(
        "usage.signals", min_length=1, max_length=200, description="The Redis channel that signals are published on."
    )
    webhooks_file: Path | None = Field(
        None, description="The file of endpoints that `tally webhooks` delivers signals to (docs/webhooks.md)."
    )
    webhooks_group: str = Field(
        "tallyflow-webhooks",
        pattern=r"^[A-Za-z0-9._-]{1,249}$",
        description="The consumer group whose members share the delivery of webhooks.",
    )
    webhooks_undelivered_max: int = Field(
        10_000, ge=100, le=1_000_000, description="Most signals that `tally webhooks` holds undelivered in memory."
    )
    clickhouse_url: Annotated[SecretStr, _url(("http", "https"), "http://user:password@host:8123/tallyflow")] | None = (
        Field(
            None,
            description="ClickHouse's HTTP interface and the database, else `tallyflow`. Not set: an embedded engine.",
        )
    )
    clickhouse_user: str | None = Field(
        None, description="ClickHouse user; not needed with one in the address. Neither: `default`."
    )
    clickhouse_password: SecretStr | None = Field(
        None, description="ClickHouse password; not needed with one in the address."
    )
    clickhouse_ca_file: PemFile | None = Field(
        None,
        description="PEM file of the authority that signed ClickHouse's certificate. Not set: the system's.",
    )
    clickhouse_certificate_file: PemFile | None = Field(
        None, description="PEM file of the certificate to show to ClickHouse; without a password it is the login too."
    )
    clickhouse_key_file: PemFile | None = Field(
        None, description="PEM file of that certificate's key. Not set: it is in the certificate's file."
    )
    clickhouse_cluster: str | None = Field(
        None,
        pattern=r"^(\{[A-Za-z0-9_]+\}|[A-Za-z0-9_.-]+)$",
        description="Cluster over whose replicas the tables are made and written (a name, or a macro such as "
        "`{cluster}`). Not set: one server.",
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
    clickhouse_timeout_seconds: int = Field(
        30, ge=1, le=3600, description="How long ClickHouse may be silent in the middle of a statement."
    )
    ingest_keys_file: Path | None = Field(
        None, description="The API keys of `tally ingest`, as YAML or JSON; see ingest.md. Required by it."
    )
    ingest_body_bytes_max: int = Field(
        8 * 1024 * 1024,
        ge=1024,
        le=256 * 1024 * 1024,
        description="Largest body of a request to `tally ingest`, as sent and unpacked.",
    )
    ingest_inflight_bytes_max: int = Field(
        64 * 1024 * 1024,
        ge=1024,
        le=1024**4,
        description="Bodies that `tally ingest` holds at a time, in bytes; more are refused with 503.",
    )
    ingest_connections_max: int = Field(
        1000, ge=1, le=100_000, description="Connections to `tally ingest` at a time; more are refused with 503."
    )
    ingest_read_seconds: float = Field(
        30, ge=0.1, le=3600, description="How long a client of `tally ingest` may take to send headers, and a body."
    )
    ingest_kafka_wait_seconds: float = Field(
        10, ge=1, le=300, description="How long `tally ingest` waits for Kafka to store events before it answers 503."
    )
    ingest_catalog_seconds: float = Field(
        30, ge=1, le=3600, description="How often `tally ingest` looks for a new catalog."
    )

    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port of `/metrics`, `/healthz` and `/readyz`. Not set: nothing listens. Each process of a machine "
        "needs its own.",
    )
    metrics_host: str = Field(
        "127.0.0.1", description="Address that they are served on. They ask for no password: keep them inside."
    )
    health_stuck_seconds: float = Field(
        120,
        ge=1,
        le=86_400,
        description="How long the flow may stand still before `/healthz` fails; more than it may wait for services.",
    )

    log_format: Literal["json", "text"] | None = Field(
        None,
        description="How standard error is written. Not set: JSON lines where Kafka is read or served and it is no "
        "terminal, else text.",
    )
    log_level: Literal["debug", "info", "warning", "error"] | None = Field(
        None,
        description="What is logged at least. Not set: `info` where Kafka is read or served, or `TALLY_LOG_FORMAT` is "
        "set; else `warning`.",
    )

    @model_validator(mode="after")
    def _services_agree(self) -> Self:
        """What belongs together is given together, and once."""
        for service in ("redis", "clickhouse"):
            _check_service(self, service)
        if self.clickhouse_cluster is not None and self.clickhouse_url is None:
            raise _contradiction(
                "clickhouse_cluster", "is set, but no server is", "set TALLY_CLICKHOUSE_URL, or leave it out"
            )
        if self.ingest_inflight_bytes_max < self.ingest_body_bytes_max:
            raise _contradiction(
                "ingest_inflight_bytes_max",
                "is less than TALLY_INGEST_BODY_BYTES_MAX: the largest bodies would always be refused",
                "make it as large at least",
            )
        return self


def _check_service(settings: Settings, service: str) -> None:
    """Refuse credentials that are given twice, and TLS files for an address without TLS."""
    url: SecretStr | None = getattr(settings, f"{service}_url")
    user = "username" if service == "redis" else "user"
    secure = {"redis": "rediss", "clickhouse": "https"}[service]
    given = {
        name for name in (user, "password", "ca_file", "certificate_file", "key_file")
        if getattr(settings, f"{service}_{name}") is not None
    }  # fmt: skip
    address = f"{PREFIX}{service.upper()}_URL"
    if url is None:
        if given:
            name = f"{service}_{min(given)}"
            raise _contradiction(name, f"is set, but {address} is not", "set the address, or leave it out")
        return
    parts = urlsplit(url.get_secret_value())
    for name, there in ((user, parts.username), ("password", parts.password)):
        if name in given and there:
            raise _contradiction(f"{service}_{name}", f"is set, but {address} has one too", "give it once")
    files = sorted(given & {"ca_file", "certificate_file", "key_file"})
    if files and parts.scheme != secure:
        raise _contradiction(
            f"{service}_{files[0]}",
            f"is set, but {address} is {parts.scheme}://",
            f"write {secure}://, or leave it out",
        )
    if "key_file" in given and "certificate_file" not in given:
        name = f"{PREFIX}{service.upper()}_CERTIFICATE_FILE"
        raise _contradiction(f"{service}_key_file", f"is set, but {name} is not", "give both")


def _contradiction(name: str, message: str, remedy: str) -> PydanticCustomError:
    """A setting that is fine by itself but not beside the others; its value is not shown."""
    return PydanticCustomError("contradiction", "{message}", {"name": name, "message": message, "remedy": remedy})


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
    context = detail.get("ctx", {})
    if detail["type"] == "contradiction":
        return f"{PREFIX}{context['name'].upper()} {context['message']}; {context['remedy']}"
    name = str(detail["loc"][0])
    value = "(hidden)" if name.endswith(("_url", "_password")) else repr(detail["input"])
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
        case "string_pattern_mismatch" if name.endswith("_cluster"):
            message, remedy = "is no cluster name", "use letters, digits and ._-, or one macro such as {cluster}"
        case "literal_error":
            message, remedy = "is not known", f"use {context['expected']}"
        case "string_pattern_mismatch":
            message, remedy = "is no topic name", "use letters, digits and ._- (at most 249)"
    return f"{PREFIX}{name.upper()}={value} {message}; {remedy or 'correct it'}"

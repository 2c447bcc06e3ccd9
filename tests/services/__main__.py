"""`make services`: Kafka, Redis and ClickHouse's HTTP interface on loopback, until Ctrl-C or SIGTERM.

Prints how to point tally at them, and writes the same to `.services/env` for other shells. Their data
is in a folder that is removed at the end.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from shlex import quote

from domain.ports import TallyError
from engines.redis_server import RedisServer
from flows.run import stopping_on_signals
from tests.services.clickhouse import ClickHouse
from tests.services.jars import FOLDER, Unavailable
from tests.services.kafka import Kafka


def main() -> None:
    """Start them all, say where they are, wait, and stop them in reverse."""
    stop = threading.Event()
    FOLDER.mkdir(exist_ok=True)
    with stopping_on_signals(stop), ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=FOLDER)))
        environment = {
            "TALLY_KAFKA_BROKERS": opened.enter_context(Kafka(folder / "kafka")).bootstrap,
            "TALLY_REDIS_URL": opened.enter_context(RedisServer(folder / "redis")).url,
            "TALLY_CLICKHOUSE_URL": opened.enter_context(ClickHouse(folder / "clickhouse")).url,
        }
        exports = "".join(f"export {name}={quote(value)}\n" for name, value in environment.items())
        record = FOLDER / "env"
        opened.callback(record.unlink, missing_ok=True)
        record.touch(mode=0o600)
        record.write_text(exports)
        print(
            f"{exports}# the same in another shell: . {record}\n# Ctrl-C stops them and removes their data", flush=True
        )
        stop.wait()


if __name__ == "__main__":
    try:
        main()
    except (Unavailable, TallyError) as error:
        print(f"services: {error}", file=sys.stderr)
        sys.exit(1)

"""The `tally` command. One module a subcommand; this one wires them and turns errors into messages."""

from __future__ import annotations

import logging
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from cli.check import check_command
from cli.convert import convert_access_log
from cli.demo import demo_command
from cli.generate import generate_command
from cli.health import health_command
from cli.ingest import ingest_command
from cli.ingest_key import ingest_key_command
from cli.migrate import migrate_command
from cli.query import query_command
from cli.run import run_command
from cli.webhooks import webhooks
from domain.ports import TallyError
from flows.start import use_packaged_time_zones
from telemetry import logs
from telemetry.plain import shown

commands = typer.Typer(
    name="tally",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
commands.command("demo", short_help="Generate sample events, count them, show what came out.")(demo_command)
commands.command("run", short_help="Count usage events exactly once.")(run_command)
commands.command("query", short_help="Run read-only SQL and print JSON lines.")(query_command)
commands.command("generate", short_help="Write sample usage events as NDJSON.")(generate_command)
commands.command("check", short_help="Say whether a run would start.")(check_command)
commands.command("health", short_help="Say whether the flow on this machine is well.")(health_command)
commands.command("migrate", short_help="Bring the ClickHouse schema up to this version.")(migrate_command)
commands.command("ingest", short_help="Take events in over HTTP and store them in Kafka.")(ingest_command)
commands.command("ingest-key", short_help="Make an API key for the ingest.")(ingest_key_command)
convert = typer.Typer(help="Turn other records into usage events.", no_args_is_help=True, rich_markup_mode=None)
convert.command("access-log", short_help="Turn a web server's access log into usage events.")(convert_access_log)
commands.add_typer(convert, name="convert")
commands.add_typer(webhooks, name="webhooks", short_help="Deliver signals over HTTP.")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tally {version('tallyflow')}")
        raise typer.Exit


@commands.callback()
def main(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """tallyflow: usage events in; exact usage, cost and quota signals out. Begin with `tally demo`."""


def app() -> None:
    """Entry point: an error that a user can act on is one message and exit code 1, without a traceback."""
    use_packaged_time_zones()
    logs.configure("text", "warning")
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)  # what it logs, it raises too
    logging.getLogger("kafka").propagate = False  # it logs every attempt; sources.kafka_client keeps what tells why
    try:
        commands(prog_name="tally")
    except TallyError as error:
        if logs.speaks_json():
            logs.logger().error(logs.Event.FAILED, error=str(error))
        else:
            print(shown(f"tally: {error}"), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    app()

"""The `tally` command. One module a subcommand; this one wires them and turns errors into messages."""

from __future__ import annotations

import sys

import typer

from cli.check import check_command
from cli.convert import convert_access_log
from cli.demo import demo_command
from cli.generate import generate_command
from cli.migrate import migrate_command
from cli.query import query_command
from cli.run import run_command
from domain.ports import TallyError

commands = typer.Typer(
    name="tally",
    help="tallyflow: usage events in; exact usage, cost and quota signals out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
commands.command("demo")(demo_command)
commands.command("run")(run_command)
commands.command("query")(query_command)
commands.command("generate")(generate_command)
commands.command("check")(check_command)
commands.command("migrate")(migrate_command)
convert = typer.Typer(help="Turn other records into usage events.", no_args_is_help=True)
convert.command("access-log")(convert_access_log)
commands.add_typer(convert, name="convert")


def app() -> None:
    """Entry point: an error that a user can act on is one message and exit code 1, without a traceback."""
    try:
        commands()
    except TallyError as error:
        print(f"tally: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    app()

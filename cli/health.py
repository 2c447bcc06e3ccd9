"""`tally health`: is the flow on this machine well? For the health checks of containers."""

from __future__ import annotations

import http.client
import json
import sys
from typing import Annotated

import typer

from config.settings import load_settings
from domain.ports import TallyError
from telemetry.plain import shown

_ANSWER_SECONDS_MAX = 5
_HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 # nothing listens here
"""Where to ask a process that listens everywhere."""


def health_command(
    ready: Annotated[
        bool, typer.Option("--ready", help="Whether it counts events now, not only whether it lives.")
    ] = False,
) -> None:
    """Is the flow that listens on TALLY_METRICS_PORT well? For the health checks of containers.

    Exit code: 0 it is, 1 it is not, or does not answer.
    """
    settings = load_settings()
    if settings.metrics_port is None:
        raise TallyError("no flow can be asked: set TALLY_METRICS_PORT, for the flow and here")
    host = _HERE.get(settings.metrics_host, settings.metrics_host)
    connection = http.client.HTTPConnection(host, settings.metrics_port, timeout=_ANSWER_SECONDS_MAX)
    try:
        connection.request("GET", "/readyz" if ready else "/healthz")
        answer = connection.getresponse()
        told = json.loads(answer.read())
        reasons = [str(reason) for reason in told["reasons"]]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise TallyError(
            f"the flow does not answer on {host}:{settings.metrics_port} ({error}): does it run, with the same "
            "TALLY_METRICS_HOST and TALLY_METRICS_PORT?"
        ) from None
    finally:
        connection.close()
    if answer.status != 200:
        typer.echo(shown("; ".join(reasons)))
        raise typer.Exit(1)
    typer.echo("ok")


def app() -> None:
    """`tally health` by itself, with `health` still among the arguments."""
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    command.command(context_settings={"help_option_names": ["-h", "--help"]})(health_command)
    try:
        command(args=sys.argv[2:], prog_name="tally health")
    except TallyError as error:
        print(shown(f"tally: {error}"), file=sys.stderr)
        sys.exit(1)

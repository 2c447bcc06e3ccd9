"""Whether the `tally` command understands arguments that a file gives it."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from cli.main import commands


def parse(arguments: Sequence[str]) -> dict[str, object]:
    """The options of a subcommand's arguments, without running it; fails if one is not known or of another type."""
    group = typer.main.get_command(commands)
    command = group.commands[arguments[0]]  # type: ignore[attr-defined]
    context = command.make_context(arguments[0], list(arguments[1:]))
    return dict(context.params)

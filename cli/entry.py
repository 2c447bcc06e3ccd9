"""The `tally` script. `tally health` runs every few seconds in a container, so it does not import what a flow needs."""

from __future__ import annotations

import sys


def app() -> None:
    """Run the command that the arguments name."""
    if sys.argv[1:2] == ["health"]:
        from cli.health import app as run
    else:
        from cli.main import app as run
    run()


if __name__ == "__main__":
    app()

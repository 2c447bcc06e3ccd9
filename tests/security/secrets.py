"""`python -m tests.security.secrets`: is there anything in the repository that looks like a secret?

detect-secrets looks; what it takes for one and is none stands in `known_secrets.txt`, by file and SHA-1, so that lines
may move. `--write` writes that file anew.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from detect_secrets.core.potential_secret import PotentialSecret
from detect_secrets.core.scan import scan_file
from detect_secrets.settings import default_settings

ROOT = Path(__file__).parents[2]
KNOWN = Path(__file__).with_name("known_secrets.txt")


def main() -> None:
    """Exit code 1 where there is something new."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    names = [name for name in listed.split("\0") if name and (ROOT / name).is_file() and ROOT / name != KNOWN]
    found = {
        f"{name} {secret.secret_hash}": f"{name}:{secret.line_number}: {secret.type}"
        for name in names
        for secret in secrets(ROOT / name)
    }
    if sys.argv[1:] == ["--write"]:
        KNOWN.write_text("".join(f"{each}\n" for each in sorted(found)))
        return
    new = [where for each, where in sorted(found.items()) if each not in KNOWN.read_text().splitlines()]
    print("\n".join([*new, f"secrets: {len(new)} new in {len(names)} files"]))
    sys.exit(bool(new))


def secrets(path: Path) -> list[PotentialSecret]:
    """What looks like one in a file."""
    with default_settings():
        return list(scan_file(str(path)))


if __name__ == "__main__":
    main()

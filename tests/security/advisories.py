"""`python -m tests.security.advisories`: are there known vulnerabilities in what `constraints.txt` pins?

pip-audit asks PyPI. Where nobody answers, or an index without advisories (a mirror), that is said and is no failure:
whoever works offline can lint, and CI, which reaches PyPI, decides.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
SECONDS_MAX = 120


def main() -> None:
    """Exit code 1 where there are some."""
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--requirement", str(CONSTRAINTS)]
    options = ["--format", "json", "--progress-spinner", "off", "--timeout", "5"]
    try:
        asked = subprocess.run(command + options, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
        report = asked.stdout
        why = asked.stderr.strip().rpartition("\n")[2]
    except subprocess.TimeoutExpired:
        report, why = "", f"no answer within {SECONDS_MAX} s"
    code, text = verdict(report, why)
    print(text)
    sys.exit(code)


def verdict(report: str, why: str) -> tuple[int, str]:
    """What pip-audit's JSON report comes to: an exit code, and what to say.

    Args:
        why: What pip-audit said where it made no report.
    """
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError):
        return 0, f"advisories: NOT CHECKED, PyPI could not be asked: {why}"
    known = [(package, fault) for package in packages for fault in package.get("vulns", [])]
    lines = [
        f"{package['name']} {package['version']}: {fault['id']}, mended in {', '.join(fault['fix_versions']) or 'none'}"
        for package, fault in known
    ]
    asked = sum("skip_reason" not in package for package in packages)
    if asked == 0:
        lines.append(f"advisories: NOT CHECKED, the index has none for any of {len(packages)} packages (a mirror?)")
    else:
        lines.append(f"advisories: {len(known)} in {asked} of {len(packages)} packages")
    return int(bool(known)), "\n".join(lines)


if __name__ == "__main__":
    main()

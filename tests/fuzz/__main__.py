"""`make fuzz`: atheris looks for inputs that break a target, guided by what code they reach.

An input that breaks one is kept in the target's corpus, where `make test` runs it from then on.
"""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256
from tempfile import TemporaryDirectory

SEED = 4


def main() -> None:
    """`python -m tests.fuzz SECONDS [TARGET]`: that long for each target, one after the other, each in a process."""
    seconds, *chosen = sys.argv[1:]
    from tests.fuzz.targets import TARGETS

    failed = []
    for name in chosen or TARGETS:
        print(f"fuzz: {name}, {seconds} s, seed {SEED}", flush=True)
        if subprocess.run([sys.executable, "-m", "tests.fuzz", "--one", name, seconds], check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"fuzz: failed: {', '.join(failed)}")


def one(name: str, seconds: str) -> None:
    """Fuzz one target; does not return."""
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        from tests.fuzz.targets import CORPUS, attempt

    def run(data: bytes) -> None:
        try:
            attempt(name, data, INSTRUMENTED_SLOWER)
        except BaseException:
            kept = CORPUS / name / f"found-{sha256(data).hexdigest()[:12]}"
            kept.write_bytes(data)
            print(f"fuzz: {name} fails on {kept}", flush=True)
            raise

    with TemporaryDirectory() as found:
        known = str(CORPUS / name)
        limits = [f"-max_total_time={seconds}", "-timeout=600", "-max_len=4096", "-rss_limit_mb=4096", f"-seed={SEED}"]
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={found}/", found, known], run)
        atheris.Fuzz()


INSTRUMENTED = ("api", "config", "domain", "engines", "sources", "tallyflow", "telemetry", "h11", "http")
INSTRUMENTED_SLOWER = 10.0
"""Every branch of what is instrumented is told to atheris."""

if __name__ == "__main__":
    if sys.argv[1] == "--one":
        one(*sys.argv[2:])
    else:
        main()

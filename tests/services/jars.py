"""The jars of Apache Kafka, fetched once by Maven into `.services/`, and the Java that runs them.

`pom.xml` beside this file says which version. A fetch goes to a folder of its own and is renamed, so
what is there is complete; a lock keeps two test runs from fetching at the same time.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from xml.etree import ElementTree

FOLDER = Path(__file__).resolve().parents[2] / ".services"
JAVA_MIN = 17
FETCH_SECONDS_MAX = 900
_POM = Path(__file__).with_name("pom.xml")
_MAVEN = "{http://maven.apache.org/POM/4.0.0}"
_INSTALL = "install it with .ci/setup, or by hand"


class Unavailable(Exception):
    """What is missing on this machine, and what to do about it."""


def find_java() -> str:
    """The path of a Java that runs Kafka.

    Raises:
        Unavailable: there is none, or it is too old.
    """
    java = shutil.which("java")
    if java is None:
        raise Unavailable(f"Kafka needs Java {JAVA_MIN} or later, and `java` is not on PATH: {_INSTALL}")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=False)
    found = re.search(r'version "(\d+)', said.stderr + said.stdout)
    if found is None or int(found[1]) < JAVA_MIN:
        raise Unavailable(f"Kafka needs Java {JAVA_MIN} or later, and {java} is {found[1] if found else 'unknown'}")
    return java


def kafka_version() -> str:
    """The version that `pom.xml` names."""
    for dependency in ElementTree.parse(_POM).iter(f"{_MAVEN}dependency"):
        if (dependency.findtext(f"{_MAVEN}artifactId") or "").startswith("kafka_"):
            return dependency.findtext(f"{_MAVEN}version") or ""
    raise AssertionError(f"{_POM} names no Kafka")


def kafka_jars() -> Path:
    """The folder with Kafka's jars; fetched from Maven Central if it is not there yet (45 MB, a few minutes).

    Raises:
        Unavailable: Maven is missing, or could not fetch them.
    """
    jars = FOLDER / f"kafka-{kafka_version()}"
    if jars.is_dir():
        return jars
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not jars.is_dir():
            _fetch(jars)
    return jars


def _fetch(jars: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise Unavailable(f"Kafka's jars come by Maven, and `mvn` is not on PATH: {_INSTALL}")
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=FOLDER) as scratch:
        command = [maven, "--quiet", "--batch-mode", f"--file={_POM}", "-Dmaven.artifact.threads=16"]
        command += ["dependency:copy-dependencies", f"-DoutputDirectory={scratch}/jars"]
        try:
            subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=FETCH_SECONDS_MAX, check=True
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(f"Maven did not fetch Kafka's jars within {FETCH_SECONDS_MAX} seconds") from None
        except subprocess.CalledProcessError as error:
            said = error.stdout.decode("utf-8", "replace")[-1000:]
            raise Unavailable(f"Maven could not fetch Kafka's jars ({' '.join(command)}):\n{said}") from None
        (Path(scratch) / "jars").rename(jars)

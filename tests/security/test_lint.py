"""What lint asks of strangers: known vulnerabilities and secrets are seen, and silence is not taken for an answer."""

from __future__ import annotations

import json
from pathlib import Path

from tests.security.advisories import verdict
from tests.security.secrets import KNOWN, secrets

FOUND = {"name": "pyyaml", "version": "5.3", "vulns": [{"id": "PYSEC-2021-142", "fix_versions": ["5.4"]}]}
CLEAN = {"name": "rich", "version": "15.0.0", "vulns": []}
SKIPPED = {"name": "numpy", "skip_reason": "Dependency not found on PyPI"}


def test_advisories() -> None:
    def of(*packages: object) -> tuple[int, str]:
        return verdict(json.dumps({"dependencies": packages, "fixes": []}), "")

    assert of(FOUND, CLEAN, SKIPPED) == (
        1,
        "pyyaml 5.3: PYSEC-2021-142, mended in 5.4\nadvisories: 1 in 2 of 3 packages",
    )
    assert of(CLEAN) == (0, "advisories: 0 in 1 of 1 packages")
    for code, text in (of(SKIPPED), verdict("", "ConnectionError"), verdict("{}", "")):
        assert code == 0 and "NOT CHECKED" in text


def test_secrets_are_seen(tmp_path: Path) -> None:
    kinds = {
        "Private Key": "-----BEGIN " + "RSA PRIVATE KEY-----\nMIIE\n",
        "AWS Access Key": "key = 'AKIA" + "Q3EGRIWBZL2XQJ5N'\n",
        "Basic Auth Credentials": "url = 'https://me:" + "hunter2hunter2@example.com'\n",
        "Base64 High Entropy String": "token = '" + "c3VwZXIgbG9uZyBzdHJpbmcgc2hvdWxkIGNhdXNlIGVub3VnaCBlbnRyb3B5'\n",
    }
    for kind, text in kinds.items():
        (tmp_path / "settings.py").write_text(text)
        assert kind in {secret.type for secret in secrets(tmp_path / "settings.py")}


def test_every_known_secret_is_in_a_file_that_exists() -> None:
    assert [line for line in KNOWN.read_text().splitlines() if not (KNOWN.parents[2] / line.split()[0]).is_file()] == []

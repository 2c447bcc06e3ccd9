"""The file of endpoints: what it means, and that all its faults are told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.webhooks.receiver import SECRET
from webhooks.endpoints import RETRY_AFTER_SECONDS, EndpointsError, load_endpoints


def load(tmp_path: Path, text: str) -> object:
    path = tmp_path / "endpoints.yaml"
    path.write_text(text)
    return load_endpoints(path, {"SECRET": SECRET, "SHORT": "whsec_c2hvcnQ=", "EMPTY": ""})


def test_every_key(tmp_path: Path) -> None:
    (tmp_path / "old").write_text(f"{SECRET}\n")
    path = tmp_path / "endpoints.yaml"
    path.write_text(f"""
endpoints:
  all: {{url: "https://hooks.example.com", secrets: [{{env: SECRET}}]}}
  some:
    url: http://10.0.0.1:8080/hook?x=1
    secrets: [{{env: SECRET}}, {{file: {tmp_path / "old"}}}]
    signals: [quota.exceeded]
    subjects: ["cust-*", other]
    internal: true
    timeout: 500ms
    concurrency: 1
retry_after: [1s, 2m, 3h]
""")
    loaded = load_endpoints(path, {"SECRET": SECRET})
    everything, some = loaded.endpoints
    assert loaded.retry_after_seconds == (1, 120, 10_800)
    assert (everything.name, everything.internal, everything.timeout_seconds) == ("all", False, 10)
    assert everything.wants("spend.threshold_reached", "anybody")
    assert (some.timeout_seconds, some.concurrency, len(some.secrets)) == (0.5, 1, 2)
    asked = [("quota.exceeded", "cust-1"), ("quota.exceeded", "other"), ("quota.exceeded", "Cust-1"), ("x", "cust-1")]
    assert [some.wants(*one) for one in asked] == [True, True, False, False]
    assert "tallyflow webhooks test" not in repr(loaded)


def test_the_default_schedule_takes_about_three_days(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.yaml"
    path.write_text('endpoints: {a: {url: "https://a.example", secrets: [{env: SECRET}]}}')
    assert load_endpoints(path, {"SECRET": SECRET}).retry_after_seconds == RETRY_AFTER_SECONDS
    assert 3 * 86_400 < sum(RETRY_AFTER_SECONDS) < 4 * 86_400


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(EndpointsError) as caught:
        load(
            tmp_path,
            """
endpoints:
  a: {url: http://example.com, secrets: [{env: MISSING}]}
  b: {url: "ftp://x", secrets: [], signals: [quota.exceded], colour: red}
  c: {url: "https://user:hunter2@x", secrets: [whsec_hunter2, {env: SHORT}], subjects: cust-1, internal: perhaps}
  d: {secrets: [{file: /no/such}, {env: EMPTY}], timeout: 2h, concurrency: 0}
  "e e": 5
retry_after: [soon]
""",
        )
    text = str(caught.value)
    for said in (
        "19 faults",
        "line 3: endpoints.a.url: is not https",
        "line 3: endpoints.a.secrets[0]: the variable MISSING is empty or missing",
        "line 4: endpoints.b.url: is no http(s) address",
        "line 4: endpoints.b.secrets: names no secret",
        "line 4: endpoints.b.signals[0]: unknown signal 'quota.exceded'",
        "line 4: endpoints.b.colour: is no key here",
        "line 5: endpoints.c.url: holds a login",
        "line 5: endpoints.c.secrets[0]: is neither {env: NAME} nor {file: PATH}",
        "line 5: endpoints.c.secrets[1]: the variable SHORT holds 5 bytes",
        "line 5: endpoints.c.subjects: is no list of texts",
        "line 5: endpoints.c.internal: is neither true nor false",
        "line 6: endpoints.d.url: is missing",
        "line 6: endpoints.d.secrets[0]: the file /no/such cannot be read",
        "line 6: endpoints.d.timeout: '2h' is no duration from 0.1 s to 60 s",
        "line 6: endpoints.d.concurrency: 0 is no number from 1 to 64",
        "endpoints.e e: 'e e' is no name",
        "line 8: retry_after[0]: 'soon' is no duration",
    ):
        assert said in text, said
    assert "hunter2" not in text


@pytest.mark.parametrize(
    "text", ["", "[]", "endpoints:", "endpoints: {}", "endpoints: [a]", "a: [", "endpoints: {a: }"]
)
def test_no_endpoint_at_all(tmp_path: Path, text: str) -> None:
    with pytest.raises(EndpointsError, match="fault"):
        load(tmp_path, text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(EndpointsError, match="cannot be read"):
        load_endpoints(tmp_path / "none.yaml", {})

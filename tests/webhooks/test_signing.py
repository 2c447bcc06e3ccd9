"""Signatures: against the specification's example, and the reference library."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook

from webhooks.signing import headers, read_secret


def test_the_example_of_the_reference_library() -> None:
    key = read_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert headers([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}') == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@given(st.lists(st.binary(min_size=24, max_size=64), min_size=1, max_size=3), st.text(max_size=200))
def test_a_receiver_with_any_of_the_secrets_accepts(keys: list[bytes], text: str) -> None:
    body = text.encode("utf-8", "replace")
    made = headers(keys, "id", int(datetime.now(UTC).timestamp()), body)
    for key in keys:
        Webhook(key).verify(body, made, json_parse=False)


@pytest.mark.parametrize(
    ("secret", "complaint"),
    [
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "does not begin with whsec_"),
        ("whsec_%%%", "is not base64"),
        ("whsec_" + base64.b64encode(b"x" * 23).decode(), "holds 23 bytes, not 24 to 64"),
        ("whsec_" + base64.b64encode(b"x" * 65).decode(), "holds 65 bytes"),
    ],
)
def test_a_bad_secret_is_refused_and_not_repeated(secret: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        read_secret(secret)
    assert secret.removeprefix("whsec_") not in str(caught.value)

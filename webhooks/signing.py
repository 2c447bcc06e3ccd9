"""Signatures by the Standard Webhooks convention (https://www.standardwebhooks.com, version 1.0.0).

`webhook-signature` is `v1,` and the base64 of HMAC-SHA256 over `{id}.{timestamp}.{body}`; with several
secrets it holds one signature for each, separated by spaces, so that a receiver may use either while a
secret is being replaced.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence

SECRET_PREFIX = "whsec_"  # noqa: S105 # begins secrets, and is none
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 24, 64


def read_secret(text: str) -> bytes:
    """The key in a secret such as `whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw`.

    Raises:
        ValueError: it is none; the message does not repeat it.
    """
    if not text.startswith(SECRET_PREFIX):
        raise ValueError(f"does not begin with {SECRET_PREFIX}")
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"is not base64 after {SECRET_PREFIX}") from None
    if not SECRET_BYTES_MIN <= len(key) <= SECRET_BYTES_MAX:
        raise ValueError(f"holds {len(key)} bytes, not {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}")
    return key


def headers(secrets: Sequence[bytes], id: str, timestamp_seconds: int, body: bytes) -> dict[str, str]:
    """The three headers of a message."""
    signed = b".".join((id.encode(), str(timestamp_seconds).encode(), body))
    signatures = [base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in secrets]
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp_seconds),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }

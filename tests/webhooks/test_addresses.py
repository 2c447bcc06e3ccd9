"""Which addresses are public."""

from __future__ import annotations

import pytest

from webhooks.addresses import Forbidden, is_public, resolve


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34"])
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "240.0.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a00:1", "2002:7f00:1::", "2001:0:7f00:1::",
    ],
)  # fmt: skip
def test_not_public(address: str) -> None:
    assert not is_public(address)


def test_a_name_of_a_private_address_is_refused_unless_internal() -> None:
    with pytest.raises(Forbidden, match=r"localhost is at .*, which is no public address"):
        resolve("localhost", 80, internal=False)
    assert resolve("127.0.0.1", 80, internal=True) == "127.0.0.1"
    with pytest.raises(Forbidden):  # other spellings of 127.0.0.1
        resolve("2130706433", 80, internal=False)

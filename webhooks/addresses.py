"""Where a request may go: public addresses, unless an endpoint is said to be internal.

A host name that resolves to a private address could reach what only this machine may reach (databases,
a cloud's metadata service). The address that was judged is the one that is connected to, so a name that
resolves differently the next moment changes nothing; and redirects are not followed.
"""

from __future__ import annotations

import ipaddress
import socket

_EMBEDDED_V4 = ipaddress.ip_network("64:ff9b::/96")  # NAT64: the last 32 bits are an IPv4 address


class Forbidden(Exception):
    """The host is not at a public address."""


def resolve(host: str, port: int, *, internal: bool) -> str:
    """The address to connect to: the first that is allowed.

    Raises:
        OSError: the name cannot be resolved.
        Forbidden: none of its addresses is public.
    """
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        if internal or is_public(address):
            return address
    raise Forbidden(f"{host} is at {', '.join(dict.fromkeys(found))}, which is no public address")


def is_public(text: str) -> bool:
    """Whether an IP address is reachable from anywhere, also through the IPv4 address that an IPv6 one may hold."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        held = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if address in _EMBEDDED_V4:
            held = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if held is not None:
            return is_public(str(held))
    return address.is_global and not address.is_multicast and not address.is_reserved

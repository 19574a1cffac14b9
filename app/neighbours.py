"""Which Host and Origin a browser may send: what keeps the pages of other sites, and names that were pointed at this machine, out.

A page can make its visitor's browser send requests to any address. The browser says in Origin which page it was; and where a name of the
page's own was pointed at this server (DNS rebinding), Host has that name. Programs send no Origin. Knows no web framework.
"""

import ipaddress
from collections.abc import Container
from dataclasses import dataclass

# A proxy on this machine calls for others, and says so in one of these.
PROXY_HEADERS = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
HOW_TO_ALLOW_HOST = "if people reach the server by this name, add it to security.hosts"
HOW_TO_ALLOW_ORIGIN = "if this page may call the server, add it to security.cors_origins; if it is the server's own name, to security.hosts"


@dataclass(frozen=True, slots=True)
class Neighbours:
    """`hosts` and `origins` are the settings security.hosts and security.cors_origins."""

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def allows_host(self, host: str) -> bool:
        """An address is nobody else's name, so it is always allowed; so is no Host at all, as every browser sends one."""
        name = _name(host)
        return not name or name == "localhost" or name in self.hosts or _is_address(name)

    def allows_origin(self, origin: str | None, host: str) -> bool:
        """None is a program, or a browser that opens an address. The page's own server is allowed, and what the settings name."""
        if origin is None or origin in self.origins or "*" in self.origins:
            return True
        place = origin.partition("://")[2]
        return bool(place) and (place.lower() == host.lower() or _name(place) in self.hosts)


def is_from_here(address: str, headers: Container[str]) -> bool:
    """Whether a program or a browser of this machine sent a request, by the address that it came from and the names of its headers."""
    if any(header in headers for header in PROXY_HEADERS):
        return False
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def _name(host: str) -> str:
    """Without the port; an IPv6 address keeps its brackets."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True

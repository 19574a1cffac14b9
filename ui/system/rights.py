"""Who may change something through the page: the page must not do for a visitor what the server would not do for them. Knows no routes."""

import ipaddress
from collections.abc import Container

from starlette.requests import HTTPConnection

from ui.client import ServerError
from ui.visitors import Visitors

PROXIED = ("forwarded", "x-forwarded-for")  # a proxy on this machine calls for others, and says so in a header
NOT_FROM_HERE = (
    "Without keys, models are loaded, unloaded and estimated from the server's own machine only. Open the page there, or give the server "
    "keys (security.keys_file)."
)


def may_administer(visitors: Visitors, request: HTTPConnection | None) -> bool:
    """Of a visitor with a key, the server decides. Without keys it trusts its own machine, and the page calls it from there: so the
    visitor has to be on this machine, too.
    """
    if visitors.share_a_key or request is None:
        return False
    return visitors.is_logged_in(request) or is_local(request.client.host if request.client else "", request.headers)


def check(visitors: Visitors, request: HTTPConnection | None) -> None:
    """Raises `ServerError` for a visitor who may not administer."""
    if not may_administer(visitors, request):
        raise ServerError(NOT_FROM_HERE)


def is_local(host: str, headers: Container[str]) -> bool:
    if any(header in headers for header in PROXIED):
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

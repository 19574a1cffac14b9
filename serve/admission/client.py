"""Who a request is counted for: the name of its key, or its address. The lines of a client's batches count apart."""

import ipaddress
from contextvars import ContextVar
from functools import lru_cache

from starlette.types import Scope

KEY: ContextVar[str | None] = ContextVar("key", default=None)  # the name of the key of the request that is served, set by what checks keys


def client_of(scope: Scope) -> str:
    """The key's name, which the check of keys leaves in the state; where none was needed, the address that the connection comes from."""
    state = scope.get("state", {})
    name = state.get("client")
    if state.get("worker"):
        return f"batches:{name or ''}"
    if name is not None:
        return f"key:{name}"
    peer = scope.get("client")
    return f"address:{network_of(peer[0])}" if peer else "address:unknown"


@lru_cache(4096)
def network_of(host: str) -> str:
    """An IPv4 address; of an IPv6 one the first 64 bits, as one customer has all addresses behind them."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host[:64]
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))

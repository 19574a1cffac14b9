"""Who may change something through the page: the page must not do for a visitor what the server would not do for them. Knows no routes."""

from starlette.requests import HTTPConnection

from app.neighbours import is_from_here
from ui.client import ServerError
from ui.visitors import Visitors

NOT_FROM_HERE = (
    "Without keys, models are loaded, unloaded and estimated from the server's own machine only. Open the page there, or give the server "
    "keys (security.keys_file)."
)


async def may_administer(visitors: Visitors, request: HTTPConnection | None) -> bool:
    """With keys, the server decides by the key of the visitor's login. Without keys it trusts its own machine, and the page calls it from
    there: so the visitor has to be on this machine, too, and no login counts. Raises `ServerError` if the server cannot be asked.
    """
    if visitors.share_a_key or request is None:
        return False
    if await visitors.wants_keys():
        return visitors.is_logged_in(request)
    return is_from_here(request.client.host if request.client else "", request.headers)


async def check(visitors: Visitors, request: HTTPConnection | None) -> None:
    """Raises `ServerError` for a visitor who may not administer, and if the server cannot be asked."""
    if not await may_administer(visitors, request):
        raise ServerError(NOT_FROM_HERE)

"""Where there are no keys, those who sit at the machine are its administrators. Knows no route but these."""

from starlette.datastructures import Headers
from starlette.types import Scope

from app.errors import Forbidden
from app.neighbours import Neighbours, is_from_here

PREFIX = "/admin"
GUARDED = (PREFIX, "/v1/load_lora_adapter", "/v1/unload_lora_adapter")


class LocalAdmins:
    """`hosts` are the further names of this server. A page of another origin may never call it, whatever security.cors_origins allows."""

    def __init__(self, hosts: tuple[str, ...]) -> None:
        self._neighbours = Neighbours(hosts)

    def check(self, scope: Scope, path: str) -> None:
        """Raises `Forbidden` for a request that changes the server and does not come from this machine."""
        if path not in GUARDED and not path.startswith(f"{PREFIX}/"):
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        here = is_from_here((scope.get("client") or ("",))[0], headers)
        if not (here and self._neighbours.allows_host(host) and self._neighbours.allows_origin(origin, host)):
            place = path if path in GUARDED else PREFIX
            raise Forbidden(
                f"{place} is for this machine only, as this server has no keys: security.keys_file lets admins in from elsewhere",
                code="admin_only",
            )

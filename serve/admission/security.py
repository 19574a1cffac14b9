"""What the settings say of security, as middleware around the routes. Knows the order in which the parts stand, not what they do."""

import logging
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware

from app.neighbours import Neighbours
from app.settings import Settings
from serve.admission.access import OPEN, Access, BlockedContent
from serve.admission.bans import Bans
from serve.admission.headers import SecurityHeaders
from serve.admission.jobs import JobAccess
from serve.admission.keys import Keys
from serve.admission.local import LocalAdmins
from serve.admission.neighbours import Browsers

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
SCHEMES = {"bearer": {"type": "http", "scheme": "bearer"}, "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"}}


class Security:
    """Raises `SetupError` for a file of keys or bans that cannot be read.

    A request meets the headers, the neighbours, CORS (`serve.middleware.install`), the gate, `access`, the limits of clients, the limit of
    bodies, and the blocked content.
    """

    def __init__(self, settings: Settings) -> None:
        security, server = settings.security, settings.server
        self.bans = Bans(security)
        self._jobs = JobAccess(settings.jobs)
        self.keys = Keys(security.keys, security.keys_file) if security.needs_keys else None
        self._neighbours = Neighbours(security.hosts, security.cors_origins)
        self._local = LocalAdmins(security.hosts)
        self._check_host = bool(security.hosts) or (server.host == LOOPBACK and self.keys is None)
        if server.host != LOOPBACK and self.keys is None:
            log.warning(
                "the server listens on %s and has no keys: whoever reaches port %d may use it. `python -m serve.keys new` makes a key, and "
                "the setting security.keys_file asks for it (docs/security.md)",
                server.host,
                server.port,
            )

    @property
    def access(self) -> Middleware:
        return Middleware(Access, self.keys, self.bans, self._local, self._jobs)

    def add_inner(self, app: FastAPI) -> None:
        """Behind the limit of bodies, so before `install`: middleware that is added last runs first."""
        app.add_middleware(BlockedContent, bans=self.bans)
        app.state.bans = self.bans

    def add_outer(self, app: FastAPI) -> None:
        """Around everything else, so after `install`."""
        page_only = self.keys is not None
        app.add_middleware(Browsers, neighbours=self._neighbours, check_host=self._check_host, page_only=page_only)
        app.add_middleware(SecurityHeaders)
        if self.keys is not None:
            describe = app.openapi
            app.openapi = lambda: _with_keys(describe())  # type: ignore[method-assign]


def _with_keys(document: dict[str, Any]) -> dict[str, Any]:
    """Says in the OpenAPI document how a key is sent, so that /docs asks for one, and what an answer without one is."""
    refused = {"description": "no key, or none of this server's"}
    for path, operations in document["paths"].items():
        for operation in operations.values() if path not in OPEN else ():
            operation["responses"].setdefault("401", refused)
    document.setdefault("components", {})["securitySchemes"] = SCHEMES
    document["security"] = [{name: []} for name in SCHEMES]
    return document

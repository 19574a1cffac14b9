"""ASGI middleware that lets a request in, or not: its key, the role of the key, and the content of its body.

After `Access`, `scope["state"]["client"]` is the name of the request's key, never the key itself. It is None without keys, and on routes
that need none. `scope["state"]["worker"]` says whether it is a worker's request for a batch of that key. What limits or counts by client
reads them there.
"""

import json
from collections.abc import Iterator

import anyio.to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Forbidden, LitmusError, Unauthorized
from serve.admission.bans import Bans
from serve.admission.client import KEY
from serve.admission.jobs import FILES, JobAccess
from serve.admission.keys import Key, Keys
from serve.admission.local import GUARDED, LocalAdmins
from serve.body import replay
from serve.observe.record import current_record
from serve.wire.errors import error_response

# Routes that say nothing of anybody: probes, the documentation, and the page, which has a login of its own.
OPEN = frozenset({"/", "/health", "/ready", "/favicon.ico", "/docs", "/openapi.json", "/ui"})
OPEN_FOLDERS = ("/docs/static/", "/ui/")
ADMINS = ("/slots", "/metrics", "/overview", *GUARDED)
CHALLENGE = 'Bearer realm="litmus"'


class Access:
    """Answers 401 to a request without a known key, and 403 to one whose key may not do this. Without `keys`, everybody is let in, and
    to what `LocalAdmins` guards whoever is on this machine.
    """

    def __init__(self, app: ASGIApp, keys: Keys | None, bans: Bans, local: LocalAdmins, jobs: JobAccess | None = None) -> None:
        self.app = app
        self.keys = keys
        self.bans = bans
        self.local = local
        self.jobs = jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].rstrip("/") or "/"
        client, headers = None, Headers(scope=scope)
        try:
            owner = None if self.jobs is None else self.jobs.owner_of(headers, path, self.keys)
            if owner is not None:
                self.bans.check_key(owner)
                client = owner or None
            elif self.keys is None:
                self.local.check(scope, path)
            elif not (path in OPEN or path.startswith(OPEN_FOLDERS)):
                client = self._client(self.keys, headers, path)
        except LitmusError as error:
            response = error_response(error, path)
            if isinstance(error, Unauthorized):
                response.headers["WWW-Authenticate"] = CHALLENGE
            await response(scope, receive, send)
            return
        scope.setdefault("state", {}).update(client=client, worker=owner is not None)
        if client is not None and (record := current_record()) is not None:
            record.key = client
        before = KEY.set(client)
        try:
            await self.app(scope, receive, send)
        finally:
            KEY.reset(before)

    def _client(self, keys: Keys, headers: Headers, path: str) -> str:
        """The name of the request's key. Raises `Unauthorized` or `Forbidden`."""
        sent = list(_sent_keys(headers))
        if not sent:
            raise Unauthorized(
                "this server needs a key: send the header `Authorization: Bearer KEY`, or `x-api-key: KEY`", code="missing_api_key"
            )
        key = next((key for key in map(keys.find, sent) if key is not None), None)
        if key is None:
            raise Unauthorized("this key is not one of this server's keys: ask who runs the server for one")
        self.bans.check_key(key.name)
        _check_role(key, path)
        return key.name


def _sent_keys(headers: Headers) -> Iterator[str]:
    """OpenAI's clients send the first, Anthropic's the second; some send both, one of them with a placeholder."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        yield secret.strip()
    if headers.get("x-api-key", "").strip():
        yield headers["x-api-key"].strip()


def _check_role(key: Key, path: str) -> None:
    if key.role != "admin" and any(path == admin or path.startswith(f"{admin}/") for admin in ADMINS):
        raise Forbidden(f"{path} needs a key whose role is admin; this one's is {key.role}", code="admin_only")


class BlockedContent:
    """Answers 403 to a body with a blocked text. The page's own calls, and the lines of a file, are left to the requests that they become.

    Wants the whole body in one message, as `serve.body.RequestBody` passes it on.
    """

    def __init__(self, app: ASGIApp, bans: Bans) -> None:
        self.app = app
        self.bans = bans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"].startswith(("/ui/", FILES)) or not self.bans.block_content:
            await self.app(scope, receive, send)
            return
        body = (await receive()).get("body", b"")
        try:
            await anyio.to_thread.run_sync(self._check, body)  # in a thread: a body may have megabytes
        except Forbidden as error:
            await error_response(error, scope["path"])(scope, receive, send)
            return
        await self.app(scope, replay(body, receive), send)

    def _check(self, body: bytes) -> None:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            return  # the route refuses it
        self.bans.check_content(content)

"""Who visits the page: their logins, and the client that calls the server with their keys.

A login lives in this process only: the browser has a cookie with a random token, and the key stays here. Knows no Gradio component.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from starlette.requests import HTTPConnection

from ui.client import Client, ServerError

IDLE_S = 12 * 3600.0  # how long a login lasts after its last use
MAX_LOGINS = 1000  # beyond these, the one that was used longest ago ends
NO_LOGIN = "Nobody logs in here: the server has no keys, or this page calls it with a key of its own. Open the page without logging in."


@dataclass(slots=True)
class Login:
    key: str = field(repr=False)
    used_s: float


class Visitors:
    """`login` says whether visitors must give a key; None asks the server. `key` is one that all visitors use instead."""

    def __init__(
        self, server_url: str, login: bool | None = False, key: str | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.server_url = server_url
        self._client = Client(server_url, key)
        self._setting = False if key is not None else login
        self._login = self._setting  # None where nobody has asked yet
        self._clock = clock
        self._logins: dict[str, Login] = {}  # by token, the one that was used last at the end

    @property
    def all_log_in(self) -> bool:
        """Whether it is certain that each visitor has logged in."""
        return bool(self._login)

    async def need_login(self) -> bool:
        """Whether the server wanted keys when it was last asked. A server that could not be asked is asked again."""
        if self._login is None:
            try:
                return await self.wants_keys()
            except ServerError:
                return False  # the page says that there is no server
        return self._login

    async def wants_keys(self) -> bool:
        """Whether the server wants a key of each visitor: what gives a login its meaning. Asks the server now, which may have been started
        again, unless the settings say it. Raises `ServerError` if it cannot be asked.
        """
        if self._setting is None:
            self._login = await self._client.refusal() is not None
            return self._login
        return self._setting

    async def log_in(self, key: str) -> str:
        """The token for the cookie. Raises `ServerError`, with the server's reason, for a key that it refuses, and where it wants none: a
        server without keys refuses no key, so a login there would say nothing of the visitor.
        """
        if not await self.wants_keys():
            raise ServerError(NO_LOGIN)
        refusal = await replace(self._client, key=key).refusal()
        if refusal is not None:
            raise refusal
        token = secrets.token_urlsafe(32)
        self._logins[token] = Login(key, self._clock())
        while len(self._logins) > MAX_LOGINS:
            del self._logins[next(iter(self._logins))]
        return token

    @property
    def share_a_key(self) -> bool:
        """Whether all visitors use one key, which says nothing of any of them."""
        return self._client.key is not None

    def log_out(self, request: HTTPConnection) -> None:
        self._logins.pop(token_of(request), None)

    def is_logged_in(self, request: HTTPConnection) -> bool:
        return self._key(request) is not None

    def client(self, request: HTTPConnection | None) -> Client:
        """Calls the server with the key of this visitor. None is a call that no visitor made."""
        key = None if request is None else self._key(request)
        return self._client if key is None else replace(self._client, key=key)

    def _key(self, request: HTTPConnection) -> str | None:
        token, now_s = token_of(request), self._clock()
        login = self._logins.pop(token, None)
        if login is None or now_s - login.used_s > IDLE_S:
            return None
        self._logins[token] = Login(login.key, now_s)
        return login.key


def cookie_name(request: HTTPConnection) -> str:
    """With the port, because browsers send a cookie to every port of a host."""
    server = request.scope.get("server") or ("", "")
    return f"litmus_login_{server[1]}"


def token_of(request: HTTPConnection) -> str:
    return request.cookies.get(cookie_name(request), "")

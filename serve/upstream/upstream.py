"""One upstream: its connections, whether it lives, and how many requests it has. Knows no body and no answer."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace

import httpx

from app.settings import ModelSettings
from serve.upstream.probe import Abilities, Unreachable, explore, find_model

log = logging.getLogger(__name__)

LOOK_S = 2.0  # between two looks at one that lives
LOOK_TIMEOUT_S = 5.0
FIRST_WAIT_S, LAST_WAIT_S = 0.25, 10.0  # between two looks at one that is dead; each wait is twice the one before
MAX_MISSES = 3  # looks in a row without an answer in time: it may be busy
KEEP_ALIVE_S = 4.0  # less than the 5 seconds after which most servers close an idle connection
AGENT = "litmus"


class Upstream:
    """`changed` is called when it comes, goes, or another request has room."""

    def __init__(self, name: str, settings: ModelSettings) -> None:
        assert settings.upstream is not None
        self.name, self.settings, self.url = name, settings, settings.upstream
        self.abilities: Abilities | None = None  # None: it is not reachable
        self.load = 0  # requests that it has
        self.deaths = 0
        self.reason = "it has not been asked yet"  # why it is not reachable
        self.changed: Callable[[], None] = lambda: None
        self._complaint: str | None = None  # what the log said last of its answers
        self._misses = 0
        self._http: httpx.AsyncClient | None = None
        self._hurry = asyncio.Event()

    @property
    def alive(self) -> bool:
        return self.abilities is not None

    @property
    def limit(self) -> int:
        return self.settings.upstream_concurrency

    @property
    def http(self) -> httpx.AsyncClient:
        """Made when it is first asked for: in the process and on the event loop that use it."""
        if self._http is None:
            self._http = httpx.AsyncClient(
                base_url=self.url,
                headers=self._headers(),
                timeout=httpx.Timeout(LOOK_TIMEOUT_S, pool=None),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=self.limit, keepalive_expiry=KEEP_ALIVE_S),
                verify=self.url.startswith("https:"),
                trust_env=False,  # neither proxies nor the passwords of a .netrc
                follow_redirects=False,
            )
        return self._http

    @property
    def timeout(self) -> httpx.Timeout:
        """Of a request; a look has its own."""
        return httpx.Timeout(self.settings.upstream_timeout_s, connect=self.settings.upstream_connect_s, pool=None)

    def _headers(self) -> dict[str, str]:
        key = self.settings.upstream_key
        authorization = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
        return {"User-Agent": AGENT, "Accept-Encoding": "identity", **authorization}

    async def watch(self) -> None:
        """Look at it again and again, as long as the server runs."""
        failures = 0
        try:
            while True:
                await self._look()
                failures = 0 if self.alive else failures + 1
                await self._wait(LOOK_S if self.alive else min(FIRST_WAIT_S * 2 ** min(failures, 10), LAST_WAIT_S))
        finally:
            if self._http is not None:
                await self._http.aclose()

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), seconds)
        self._hurry.clear()

    def doubt(self) -> None:
        """Look at it now: a connection to it broke off."""
        self._hurry.set()

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                found = await find_model(self.http, self.settings.upstream_model, self.name)
                known = self.abilities
                found = await explore(self.http, found) if known is None else replace(found, routes=known.routes, tools=known.tools)
        except (TimeoutError, httpx.TimeoutException):
            self._misses += 1
            if self._misses >= MAX_MISSES or not self.alive:
                self.lost("it does not answer in time")
        except (httpx.HTTPError, Unreachable) as error:
            self.lost(str(error) if isinstance(error, Unreachable) else f"no connection ({type(error).__name__})")
        else:
            self._found(found)

    def _found(self, abilities: Abilities) -> None:
        was_alive, self._misses = self.alive, 0
        self.abilities = abilities
        if not was_alive:
            log.info("upstream %s of %s answers (%s, context %s)", self.url, self.name, abilities.kind, abilities.context or "unknown")
            self.changed()

    def note(self, complaint: str | None) -> None:
        """What is wrong with its answers, None for one that is right. It is logged when it changes."""
        if complaint is not None and complaint != self._complaint:
            log.warning("upstream %s of %s %s", self.url, self.name, complaint)
        self._complaint = complaint

    def lost(self, reason: str) -> None:
        """Take it out until it answers again."""
        if self.alive or self.reason != reason:
            log.warning("upstream %s of %s is taken out: %s", self.url, self.name, reason)
        self.reason = reason
        if self.alive:
            self.abilities, self.deaths = None, self.deaths + 1
            self.doubt()
            self.changed()

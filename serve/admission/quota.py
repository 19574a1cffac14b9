"""What one client may do: requests and tokens in a minute, and requests at once. Refuses beyond that, and says on answers what is left.

Runs behind the check of keys, so that it knows whose request it is. Knows no model and no queue.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import RateLimited
from app.settings import LimitSettings
from serve.admission.client import client_of
from serve.admission.gate import expects_word, is_work, work_of
from serve.admission.store import PERIOD_S, Store, Window
from serve.admission.usage import Usage, estimated_tokens
from serve.observe.record import current_record, note_route
from serve.wire.errors import error_response


@dataclass(frozen=True, slots=True)
class Measure:
    """One of the two things that are counted by the minute."""

    name: str  # as in the headers
    limit: int
    setting: str
    code: str

    def key(self, client: str) -> str:
        return f"{self.name}/{client}"

    def headers(self, window: Window) -> dict[str, str]:
        """OpenAI's."""
        return {
            f"x-ratelimit-limit-{self.name}": str(self.limit),
            f"x-ratelimit-remaining-{self.name}": str(min(max(self.limit - window.used, 0), self.limit)),
            f"x-ratelimit-reset-{self.name}": duration(window.reset_s),
        }


def duration(seconds: float) -> str:
    """As OpenAI writes it: `6m0s`, `1.5s`, `20ms`."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"


class Refused(Exception):
    """A limit is reached: the answer to it."""

    def __init__(self, error: RateLimited, headers: Mapping[str, str]) -> None:
        super().__init__(error.message)
        self.error, self.headers = error, headers


class Quota:
    """Applies the limits that are set. `store` counts for all servers; requests at once are those of this server."""

    def __init__(self, app: ASGIApp, settings: LimitSettings, store: Store) -> None:
        self.app = app
        self.store = store
        self.concurrent = settings.concurrent_requests
        self.requests = _measure("requests", settings.requests_per_minute)
        self.tokens = _measure("tokens", settings.tokens_per_minute)
        self.running: Counter[str] = Counter()  # requests by client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_work(scope):
            await self.app(scope, receive, send)
            return
        client = client_of(scope)
        try:
            self._check_concurrency(client)
            self.running[client] += 1
            try:
                await self._count(client, scope, receive, send)
            finally:
                self.running[client] -= 1
                if not self.running[client]:
                    del self.running[client]
        except Refused as refused:
            note_route(work_of(scope))
            headers = {**refused.headers, **({"Connection": "close"} if expects_word(scope) else {})}
            await error_response(refused.error, scope["path"], headers)(scope, receive, send)

    def _check_concurrency(self, client: str) -> None:
        if self.concurrent is not None and self.running[client] >= self.concurrent:
            message = f"{self.running[client]} requests of this client are running and {self.concurrent} may (limits.concurrent_requests)"
            raise Refused(RateLimited(f"{message}; wait until one of them is answered", code="too_many_concurrent_requests"), {})

    async def _count(self, client: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises `Refused` before anything was sent."""
        bill = Bill(self, client, min(estimated_tokens(scope), self.tokens.limit) if self.tokens else 0)
        headers = await bill.open()

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                bill.succeeded = message["status"] < 400
                MutableHeaders(scope=message).update(headers)
            elif self.tokens is not None:
                bill.usage.read(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, send_counted if headers else send)
        finally:
            await bill.settle()


class Bill:
    """What one request is charged: an estimate when it comes, what it really took when it is answered."""

    def __init__(self, quota: Quota, client: str, estimate: int) -> None:
        self.quota, self.client = quota, client
        self.usage = Usage(estimate)
        self.succeeded = False
        self._began = time.monotonic()

    async def open(self) -> dict[str, str]:
        """Charge one request and the estimate. Returns the headers of the answer. Raises `Refused`, with nothing charged."""
        store, headers, charged = self.quota.store, dict[str, str](), list[tuple[Measure, int]]()
        for measure, cost in ((self.quota.requests, 1), (self.quota.tokens, self.usage.estimate)):
            if measure is None:
                continue
            key = measure.key(self.client)
            has_room = await store.take(key, cost, measure.limit)
            window = await store.window(key)
            headers |= measure.headers(window)
            if not has_room:
                for earlier, used in charged:
                    await store.add(earlier.key(self.client), -used)
                    headers |= earlier.headers(await store.window(earlier.key(self.client)))
                raise _refused(measure, window, cost, headers)
            charged.append((measure, cost))
        return headers

    async def settle(self) -> None:
        """Charge the difference between the estimate and what the answer took; nothing for one that failed."""
        if self.quota.tokens is None:
            return
        difference = (self.usage.tokens(current_record()) if self.succeeded else 0) - self.usage.estimate
        if difference > 0 or (difference < 0 and time.monotonic() - self._began < PERIOD_S):  # what has faded is not given back
            await self.quota.store.add(self.quota.tokens.key(self.client), difference)


def _measure(name: str, limit: int | None) -> Measure | None:
    return None if limit is None else Measure(name, limit, f"limits.{name}_per_minute", f"{name}_per_minute_exceeded")


def _refused(measure: Measure, window: Window, cost: int, headers: Mapping[str, str]) -> Refused:
    wait_s = math.floor(window.wait_s(cost, measure.limit)) + 1
    wants = "" if cost == 1 else f", and this request needs about {cost}"
    used = f"this client has used {max(window.used, 0)} of its {measure.limit} {measure.name} a minute ({measure.setting}){wants}"
    return Refused(RateLimited(f"{used}; try again in {wait_s} s", code=measure.code), {**headers, "Retry-After": str(wait_s)})

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

from app.errors import DeadlineExceeded, RateLimited
from app.settings import LimitSettings
from serve.admission.client import client_of
from serve.admission.gate import expects_word, is_work, work_of
from serve.admission.store import PERIOD_S, Counts, Store, Window
from serve.admission.usage import AnswerLimit, Usage, estimated_tokens
from serve.observe.record import CLIENT_LEFT, RequestRecord, current_record, note_route
from serve.wire.errors import error_response

ENDED_BY_CLIENT = frozenset({CLIENT_LEFT, DeadlineExceeded.code})


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
            f"x-ratelimit-remaining-{self.name}": str(0 if window.owed_s else min(max(self.limit - window.used, 0), self.limit)),
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
        bill = Bill(self, client, estimated_tokens(scope))
        headers = await bill.open()

        async def receive_counted() -> Message:
            message = await receive()
            if message["type"] == "http.request" and self.tokens is not None:
                headers.update(await bill.read(message))
            return message

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                bill.status = message["status"]
                MutableHeaders(scope=message).update(headers)
            elif self.tokens is not None:
                bill.usage.read(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive_counted, send_counted if headers else send)
        finally:
            await bill.settle()


class Bill:
    """What one request is charged: an estimate of its prompt when it comes, the limit of its answer when its body is here, what it really
    took when it is answered.
    """

    def __init__(self, quota: Quota, client: str, estimate: int) -> None:
        self.quota, self.client = quota, client
        self.usage, self.answer = Usage(estimate), AnswerLimit()
        self.status = 0  # of the answer; 0 until it begins
        self._taken = list[tuple[Measure, int, Counts]]()  # what was charged so far, and where
        self._began = time.monotonic()

    @property
    def _tokens_taken(self) -> int:
        return sum(cost for measure, cost, _ in self._taken if measure is self.quota.tokens)

    async def open(self) -> dict[str, str]:
        """Charge one request and the estimate. Returns the headers of the answer. Raises `Refused`, with nothing charged."""
        headers = {} if self.quota.requests is None else await self._take(self.quota.requests, 1)
        tokens = self.quota.tokens
        return headers if tokens is None else headers | await self._take(tokens, min(self.usage.estimate, tokens.limit))

    async def read(self, message: Message) -> dict[str, str]:
        """At the end of the body, charge the answer's limit, too: as much of it as the client's limit holds beside the prompt. Returns the
        headers that change. Raises `Refused`, with nothing charged.
        """
        self.answer.read(message.get("body", b""))
        tokens = self.quota.tokens
        if tokens is None or message.get("more_body"):
            return {}
        cost = min(self.answer.tokens, tokens.limit - self._tokens_taken)
        return await self._take(tokens, cost) if cost > 0 else {}

    async def _take(self, measure: Measure, cost: int) -> dict[str, str]:
        key = measure.key(self.client)
        counts = await self.quota.store.take(key, cost, measure.limit)
        window = await self.quota.store.window(key)
        if counts is not None:
            self._taken.append((measure, cost, counts))
            return measure.headers(window)
        if measure is self.quota.tokens:
            cost += self._tokens_taken
        await self._give_back()
        headers = dict[str, str]()
        for each in filter(None, (self.quota.requests, self.quota.tokens)):
            window = await self.quota.store.window(each.key(self.client))
            headers |= each.headers(window)
            if each is measure:
                break
        raise _refused(measure, window, cost, headers)

    async def _give_back(self) -> None:
        taken, self._taken = self._taken, []
        for measure, cost, counts in taken:
            await self.quota.store.give_back(measure.key(self.client), cost, counts)

    async def settle(self) -> None:
        """Charge the difference between the estimate and what was computed."""
        tokens = self.quota.tokens
        if tokens is None or not self._taken:
            return
        record = current_record()
        difference = (self.usage.tokens(record) if self._is_charged(record) else 0) - self._tokens_taken
        key = tokens.key(self.client)
        if difference > 0:
            await self.quota.store.charge(key, difference, tokens.limit)
        elif time.monotonic() - self._began < PERIOD_S:  # what has faded is not given back
            for measure, cost, counts in reversed(self._taken):
                if measure is tokens and difference < 0:
                    returned = min(cost, -difference)
                    difference += returned
                    await self.quota.store.give_back(key, returned, counts)

    def _is_charged(self, record: RequestRecord | None) -> bool:
        """One that was answered, and one that reached a model and has tokens or was ended by its client or its deadline: otherwise leaving
        before the answer would make it free.
        """
        if 0 < self.status < 400:
            return True
        return record is not None and record.jobs > 0 and (record.generated_tokens > 0 or record.code in ENDED_BY_CLIENT)


def _measure(name: str, limit: int | None) -> Measure | None:
    return None if limit is None else Measure(name, limit, f"limits.{name}_per_minute", f"{name}_per_minute_exceeded")


def _refused(measure: Measure, window: Window, cost: int, headers: Mapping[str, str]) -> Refused:
    wait_s = math.floor(window.wait_s(cost, measure.limit)) + 1
    wants = "" if cost == 1 else f", and this request needs about {cost}"
    count = max(window.used, 0) + round(window.owed_s * measure.limit / PERIOD_S)
    used = f"this client has used {count} of its {measure.limit} {measure.name} a minute ({measure.setting}){wants}"
    return Refused(RateLimited(f"{used}; try again in {wait_s} s", code=measure.code), {**headers, "Retry-After": str(wait_s)})

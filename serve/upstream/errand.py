"""One request on its way to an upstream and back: it waits for room, is tried on another upstream if one fails before its first byte, and
ends when its deadline passes or its client leaves.

Knows no route and no client of ours.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from app.engine.notices import Waiting
from app.errors import DeadlineExceeded, LitmusError, UpstreamFailed
from serve.observe.record import CLIENT_LEFT
from serve.upstream.answer import Naming, dump, rename
from serve.upstream.dialects import our_form, own_form
from serve.upstream.errors import complaint_of, refusal
from serve.upstream.events import Events
from serve.upstream.meter import Meter
from serve.upstream.pool import Place, Pool
from serve.upstream.upstream import Upstream
from serve.upstream.wires import Wire
from serve.wire.sse import comments
from serve.workers.router import TIMEOUTS

T = TypeVar("T")
MAX_TRIES = 2  # upstreams that may fail with one request; it may be the cause
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
TELL_S = 1.0  # between two looks at the place in the queue
SILENT = "upstream_timeout"
IGNORED = "X-Litmus-Ignored"  # the only header of an upstream's answer that is passed on


@dataclass(frozen=True, slots=True)
class Order:
    """What is sent. `body` has not yet the model's name there."""

    wire: Wire
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    stream: bool
    hide_usage: bool


class Errand:
    def __init__(self, pool: Pool, order: Order, naming: Naming, meter: Meter, timeout_s: float | None) -> None:
        self.pool, self.order, self.naming, self.meter = pool, order, naming, meter
        self.place: Place
        self.response: httpx.Response | None = None
        self.content = b""  # of a whole answer
        self._pieces: AsyncIterator[bytes]  # of a stream, after the first one
        self._first = b""
        self._answering: Upstream | None = None  # whose answer has begun, and is not counted yet
        self._there = ""  # the model's name at the upstream that answers
        self._late: LitmusError = DeadlineExceeded(f"the answer was not complete after {timeout_s} s ({TIMEOUTS})")
        self._loop = asyncio.get_running_loop()
        self._deadline = None if timeout_s is None else self._loop.time() + timeout_s
        self._timer: asyncio.Timeout | None = None

    @property
    def headers(self) -> dict[str, str]:
        ignored = None if self.response is None else self.response.headers.get(IGNORED)
        return {} if ignored is None else {IGNORED: ignored}

    def end(self, error: LitmusError) -> None:
        """Let it fail with this error, wherever it is."""
        self._late, self._deadline = error, self._loop.time()
        if self._timer is not None:
            self._timer.reschedule(self._deadline)

    async def close(self) -> None:
        """What has not ended by now was left by its client."""
        self._tell("answered")
        self.meter.failed(CLIENT_LEFT)
        if self.response is not None:
            await self.response.aclose()

    async def _in_time(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout_at(self._deadline) as self._timer:
                return await work
        except TimeoutError:
            raise self._late from None
        finally:
            self._timer = None

    async def whole(self) -> bytes:
        """The body of our answer."""
        try:
            await self.send()
            content = rename(self.content, self.order.wire, self.naming, self.meter)
        except LitmusError as error:
            self._tell("failed")
            self.meter.failed(error.code)
            raise
        self._tell("answered")
        self.meter.finished()
        return bytes(content)

    async def begin(self) -> None:
        """Send it, until the first bytes of the answer are here."""
        try:
            await self.send()
        except LitmusError as error:
            self.meter.failed(error.code)
            raise

    async def send(self) -> None:
        for tries in range(1, MAX_TRIES + 1):
            upstream = await self._in_time(self.pool.seat(self.place))
            if tries == 1:
                self.meter.sent()
            try:
                await self._in_time(self._try(upstream))
            except UpstreamFailed as error:
                self.meter.told(upstream.url, "failed")
                if self.response is not None:
                    await self.response.aclose()
                if error.code == SILENT or not self.pool.failed(self.place) or tries == MAX_TRIES:
                    raise
            except LitmusError:
                self.meter.told(upstream.url, "refused")
                raise
            else:
                self._answering = upstream
                return

    def _tell(self, outcome: str) -> None:
        """What became of an answer that had begun. Once."""
        upstream, self._answering = self._answering, None
        if upstream is not None:
            self.meter.told(upstream.url, outcome)

    async def _try(self, upstream: Upstream) -> None:
        """Raises `UpstreamFailed`, and what the upstream refuses."""
        assert upstream.abilities is not None
        abilities, path = upstream.abilities, self.order.wire.path
        self._there = abilities.model
        content = dump({**own_form(abilities, path, self.order.body), "model": self._there})
        request = upstream.http.build_request("POST", path, content=content, headers=dict(self.order.headers), timeout=upstream.timeout)
        with as_failure(upstream):
            self.response = await upstream.http.send(request, stream=True)
            if self.response.status_code >= 300:
                content = await _read(self.response, MAX_ERROR_BYTES, cut=True)
                complaint = complaint_of(self.response.status_code, content)
                if complaint is not None:
                    upstream.note(complaint)
                raise refusal(self.response, content, (self._there, self.naming.model))
            upstream.note(None)
            if not self.order.stream:
                self.content = our_form(abilities, path, await _read(self.response, MAX_ANSWER_BYTES))
                return
            if "text/event-stream" not in self.response.headers.get("content-type", ""):
                raise UpstreamFailed("the model's server answered without a stream")
            self._pieces = self.response.aiter_raw()
            self._first = await anext(self._pieces, b"")
            if not self._first:
                raise UpstreamFailed("the model's server closed the connection before its answer")

    async def lines(self) -> AsyncIterator[bytes]:
        """The events of our answer. A failure is one of them."""
        events = Events(self.order.wire, self.naming, self._there, self.meter, self.order.hide_usage)
        try:
            if self.response is None:
                async for comment in self._queued():
                    yield comment
                await self.send()
                events = Events(self.order.wire, self.naming, self._there, self.meter, self.order.hide_usage)
            async with aclosing(self._fed(events)) as fed:
                async for line in fed:
                    yield line
        except LitmusError as error:
            self._tell("failed" if isinstance(error, UpstreamFailed) else "answered")
            self.meter.failed(error.code)
            for line in events.fail(error):
                yield line
            return
        self._tell("answered")
        self.meter.finished()
        for line in events.finish():
            yield line

    async def _queued(self) -> AsyncIterator[bytes]:
        """Comments that tell the place in the queue, until it is this request's turn."""
        told = 0
        while self.place.called is not None and not self.place.called.done():
            position = self.pool.position(self.place)
            if position != told:
                told = position
                for comment in comments(Waiting(self.naming.id, position, None), has_started=False):
                    yield comment.encode()
            await self._in_time(asyncio.wait({self.place.called}, timeout=TELL_S))

    async def _fed(self, events: Events) -> AsyncGenerator[bytes, None]:
        """Raises `UpstreamFailed` for an answer that breaks off."""
        upstream, piece = self.place.upstream, self._first
        assert upstream is not None
        while piece:
            for line in events.feed(piece):
                yield line
            if events.ended:
                return
            with as_failure(upstream):
                piece = await self._in_time(anext(self._pieces, b""))
        if not events.complete:
            upstream.doubt()
            raise UpstreamFailed("the model's server broke off its answer; send the request again")


@contextmanager
def as_failure(upstream: Upstream) -> Iterator[None]:
    """httpx's errors as ours; an upstream that cannot be reached is taken out, one whose connection broke is looked at."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        upstream.lost(f"no connection ({type(error).__name__})")
        raise UpstreamFailed("the model's server cannot be reached at the moment; send the request again") from None
    except httpx.TimeoutException:
        message = f"the model's server sent nothing for {upstream.settings.upstream_timeout_s} s (upstream_timeout_s)"
        raise UpstreamFailed(message, code=SILENT) from None
    except (httpx.HTTPError, httpx.StreamError):
        upstream.doubt()
        raise UpstreamFailed("the connection to the model's server broke off; send the request again") from None


async def _read(response: httpx.Response, limit: int, cut: bool = False) -> bytes:
    """The body, or with `cut` its beginning. Raises `UpstreamFailed` for one that is larger."""
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > limit:
            if cut:
                break
            raise UpstreamFailed(f"the answer of the model's server has more than {limit} bytes")
    return bytes(content)

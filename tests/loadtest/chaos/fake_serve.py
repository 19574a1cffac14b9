"""A fake of `python -m serve` for the tests of loadtest.chaos: one API process and one worker process that does nothing but live.

GOOD: requests outlive their worker. BAD: it breaks streams, answers 503 to others, overlooks a stopped worker, needs its log to start.

What a run is to see of it does not depend on who is faster: a crowd waits until it has filled the queue; a good server is ready again when
it has said that it is not, and stops when it has refused a request.
"""

import asyncio
import hashlib
import json
import multiprocessing
import signal
import sys
import time
from pathlib import Path

import psutil
from aiohttp import web

WORDS, GAP_S, LOAD_S, SLOTS = 6, 0.02, 0.3, 4
CROWD = 2 * SLOTS  # requests at once; steady clients are fewer
LIMIT_S = 10.0  # of waiting for somebody
QUIET_S = 0.3  # without a request, before a server that is asked to stop closes its port: a connection that is just being made would break


WORKER_NAME = "litmus-worker"


def work():
    Path("/proc/self/comm").write_text(WORKER_NAME)
    time.sleep(3600)


class Fake:
    def __init__(self, good, max_waiting):
        self.good, self.capacity, self.in_flight, self.since, self.draining = good, SLOTS + max_waiting, 0, 0.0, False
        self.has_shed = self.has_refused = False  # since the crowd came; while it drains
        self.says_no = self.is_unseen = False  # /ready; a death of which it has not told
        self.spawn()

    def spawn(self):
        self.worker = multiprocessing.get_context("spawn").Process(target=work, daemon=True)
        self.worker.start()
        self.since = time.monotonic()

    @property
    def ready(self):
        alive = self.worker.is_alive() and time.monotonic() > self.since + LOAD_S
        return alive and not (self.good and self.is_unseen) and Path(f"/proc/{self.worker.pid}/comm").read_text().strip() == WORKER_NAME

    async def watch(self, _):
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, lambda: setattr(self, "stopping", loop.create_task(self.drain())))
        task = asyncio.create_task(self.replace_dead_workers())
        yield
        task.cancel()

    async def drain(self):
        """Clients whose answers end now come back, and are refused."""
        self.draining, come_back, end_s = True, self.in_flight > 0, time.monotonic() + LIMIT_S
        quiet_since = time.monotonic()
        while time.monotonic() < quiet_since + QUIET_S:
            await asyncio.sleep(0.02)
            waits = come_back and not self.has_refused and time.monotonic() < end_s
            quiet_since = time.monotonic() if self.in_flight or waits else quiet_since
        signal.raise_signal(signal.SIGINT)

    async def replace_dead_workers(self):
        while True:
            await asyncio.sleep(0.02)
            if self.good and self.worker.is_alive() and psutil.Process(self.worker.pid).status() == psutil.STATUS_STOPPED:
                self.worker.kill()
                self.worker.join()
            if not self.worker.is_alive():
                self.is_unseen = not self.says_no
                self.spawn()

    async def state(self, request):
        self.says_no = not self.ready
        if self.is_unseen:
            self.is_unseen, self.since = False, time.monotonic()
        return web.json_response({}, status=503 if self.says_no else 200)

    async def models(self, request):
        return web.json_response({"data": [{"slots": SLOTS}]})

    async def answer(self, request):
        body = await request.json()
        if self.draining or (not self.ready and not self.good):
            self.has_refused = self.draining
            return refusal(503, "not_ready")
        if self.in_flight >= self.capacity:
            self.has_shed = True
            return refusal(429, "queue_full")
        self.in_flight += 1
        try:
            return await (self.stream(request, body) if body.get("stream") else self.whole(body))
        finally:
            self.in_flight -= 1
            self.has_shed = self.has_shed and self.in_flight > CROWD

    async def words(self, body):
        """None in the place of a word: the worker died."""
        worker, end_s = self.worker, time.monotonic() + LIMIT_S
        while self.in_flight > CROWD and not self.has_shed and time.monotonic() < end_s:
            await asyncio.sleep(GAP_S)
        for index in range(WORDS):
            await asyncio.sleep(GAP_S)
            while not self.ready and self.good:
                await asyncio.sleep(GAP_S)
            if self.good or self.worker is worker:
                yield hashlib.md5(f"{index}{json.dumps(body, sort_keys=True)}".encode()).hexdigest()
            else:
                yield None

    async def whole(self, body):
        words = [word async for word in self.words(body)]
        if None in words:
            return refusal(503, "worker_died")
        usage = {"prompt_tokens": 1, "completion_tokens": WORDS}
        if "text" in body:
            return web.json_response({"data": [{"object": "score", "scores": {"x": 0.5}}], "usage": usage})
        text = {"message": {"content": "".join(words)}} if "messages" in body else {"text": "".join(words)}
        return web.json_response({"id": str(time.time()), "choices": [{"index": 0, "finish_reason": "stop", **text}], "usage": usage})

    async def stream(self, request, body):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": queued position=1\n\n")
        async for word in self.words(body):
            if word is None:
                request.transport.abort()
                return response
            text = {"delta": {"content": word}} if "messages" in body else {"text": word}
            await response.write(event({"choices": [{"index": 0, "finish_reason": None, **text}]}))
        end = {"delta": {}} if "messages" in body else {"text": ""}
        await response.write(event({"choices": [{"index": 0, "finish_reason": "stop", **end}]}) + b"data: [DONE]\n\n")
        return response


def event(content):
    return f"data: {json.dumps(content)}\n\n".encode()


def refusal(status, code):
    return web.json_response({"error": {"message": code, "code": code}}, status=status, headers={"Retry-After": "1"})


if __name__ == "__main__":
    mode, port, max_waiting = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if mode == "BAD":
        sys.stderr.write("starts\n")
        sys.stderr.flush()
    fake = Fake(mode == "GOOD", max_waiting)
    app = web.Application()
    app.cleanup_ctx.append(fake.watch)
    app.router.add_get("/ready", fake.state)
    app.router.add_get("/v1/models", fake.models)
    app.router.add_post("/{path:.*}", fake.answer)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)

"""Locust users of Litmus: one streams chats, one scores texts. `make load`, or `locust -f loadtest/locustfile.py` for its web page.

Locust's own table shows each request and, as rows of their own, TTFT and TPOT; runs/load-*.jsonl holds every request.
"""

from locust import HttpUser, between, events, task  # isort: skip  # first: it makes the standard library cooperative (gevent)

import itertools
import logging
import random
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import requests
from locust.env import Environment

from loadtest import prompts
from loadtest.record import Kind, Record, Start, Stream, score_record
from loadtest.run import Run, create_run

log = logging.getLogger(__name__)
numbers = itertools.count()
MAX_TOKENS, SCORE_WORDS, SEED = 64, 150, 0


class LitmusUser(HttpUser):
    """A person who reads the answer for a moment before asking again. The class variables belong to the run."""

    abstract = True
    host = "http://127.0.0.1:8000"
    wait_time = between(0.5, 1.5)
    opened: ClassVar[Run | None] = None
    began_s: ClassVar[float] = 0.0
    clients: ClassVar[int] = 0

    def on_start(self) -> None:
        self.draw = random.Random(f"{SEED}/{type(self).__name__}/{next(numbers)}")

    def depart(self, kind: Kind) -> Start:
        return Start(kind, self.clients, time.perf_counter(), self.began_s)

    def settle(self, response: Any, record: Record) -> None:
        """Hand the record to Locust's table and to the run. Shed requests are a row of their own, and no failure."""
        if self.opened is not None:
            self.opened.add(record)
        name = f"{record.kind} (shed)" if record.outcome == "shed" else record.kind
        response.request_meta.update(name=name, response_time=record.e2e_ms)
        if record.outcome == "failed":
            response.failure(record.reason)
            return
        response.success()
        for metric, value in (("TTFT", record.ttft_ms), ("TPOT", record.tpot_ms)):
            if value is not None:
                events.request.fire(
                    request_type=metric, name=record.kind, response_time=value, response_length=0, exception=None, context={}
                )


def served(environment: Environment) -> tuple[str, dict[str, Any] | None]:
    """The server's address and the first model card it shows; None, with a line in the log, where no server answers."""
    url = (environment.host or LitmusUser.host).rstrip("/")
    try:
        answer = requests.get(f"{url}/v1/models", timeout=10)
        answer.raise_for_status()
        return url, answer.json()["data"][0]
    except (requests.RequestException, KeyError, IndexError) as error:
        log.error("No server answers at %s (%s). Start one with `make run`, or give another with URL=...", url, type(error).__name__)
        return url, None


@events.init.add_listener
def check_server(environment: Environment, **_: Any) -> None:
    """Without a server there is nothing to push. Locust's web page may start before it; a run without a page may not."""
    options: Any = environment.parsed_options
    if options.headless and served(environment)[1] is None:
        sys.exit(2)


@events.test_start.add_listener
def open_run(environment: Environment, **_: Any) -> None:
    url, card = served(environment)
    if card is None:
        return
    options: Any = environment.parsed_options
    facts = {"url": url, "model": card, "users": options.num_users, "options": {"run_time_s": options.run_time, "seed": SEED}}
    LitmusUser.opened = create_run(Path("runs"), "load", facts)
    LitmusUser.began_s = time.perf_counter()
    LitmusUser.clients = options.num_users or 0


@events.test_stop.add_listener
def close_run(**_: Any) -> None:
    if LitmusUser.opened is not None:
        LitmusUser.opened.close()
        log.info("each request: %s", LitmusUser.opened.path)
        LitmusUser.opened = None


class ChatUser(LitmusUser):
    weight = 3

    @task
    def chat(self) -> None:
        body = prompts.chat(self.draw, MAX_TOKENS)
        start = self.depart("chat")
        with self.client.post("/v1/chat/completions", json=body, stream=True, catch_response=True, name="chat") as response:
            if response.status_code != requests.codes.ok:
                self.settle(response, _refused(start, response))
                return
            stream = Stream(start)
            try:
                for data in response.iter_content(chunk_size=None):
                    stream.feed(data, time.perf_counter())
            except requests.RequestException as error:
                stream.error = f"truncated: {type(error).__name__}"
            self.settle(response, stream.record(time.perf_counter()))


class ScoreUser(LitmusUser):
    weight = 1

    @task
    def score(self) -> None:
        body = prompts.score(self.draw, SCORE_WORDS)
        start = self.depart("score")
        with self.client.post("/v1/score", json=body, catch_response=True, name="score") as response:
            end_s = time.perf_counter()
            ok = response.status_code == requests.codes.ok
            self.settle(response, score_record(start, end_s, response.json(), texts=1) if ok else _refused(start, response))


def _refused(start: Start, response: Any) -> Record:
    """Any status but 200. Locust gives status 0 and the error where no answer came."""
    error = getattr(response, "error", None)
    return start.record(time.perf_counter(), response.status_code, type(error).__name__ if error and not response.status_code else None)

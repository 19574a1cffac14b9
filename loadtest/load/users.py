"""The kinds of Locust users: each sends its kind of requests and times the responses as their bytes arrive.

In a closed loop a user sends its next request after a pause, which is at least the Retry-After of a server that shed the last one.
In an open loop loadtest.load.arrivals decides when a user sends a request.
"""

from locust import User, task  # isort: skip  # first: it makes the standard library cooperative (gevent)

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPResponse
from itertools import count
from typing import ClassVar

import gevent  # type: ignore[import-untyped]
from locust.exception import StopUser
from locust.user.task import LOCUST_STATE_RUNNING

from app.schemas import Message
from loadtest import prompts
from loadtest.load.probe import Capabilities
from loadtest.load.session import LoadSession
from loadtest.load.transport import CONNECTION_ERRORS, body_chunks, encode, retry_after_s
from loadtest.record import Record, Start, Stream, score_record

OK = 200
MAX_BACKOFF_S = 60.0
DEFAULT_BACKOFF_S = 1.0  # after a shed request without a Retry-After
CHATS_PER_SCORE = 3


class LitmusUser(User):
    """Base of all users. `session` is the load test they report to; the locustfile sets it on this class from test start to test end.

    `label` is the user's name in the records.
    """

    abstract = True
    session: ClassVar[LoadSession | None] = None
    user_numbers: ClassVar[Iterator[int]] = count()
    label: ClassVar[str]

    @classmethod
    def is_supported(cls, capabilities: Capabilities) -> bool:
        """Whether the server supports the requests of this user."""
        return capabilities.can_chat

    @property
    def active_session(self) -> LoadSession:
        assert self.session is not None, "a user without a session stops before its first request"
        return self.session

    def on_start(self) -> None:
        if self.session is not None:
            self.initialize(next(self.user_numbers))

    def initialize(self, number: int) -> None:
        """Prepares the state of user `number`, which also seeds its random numbers."""
        self.rng = random.Random(f"{self.active_session.load.seed}/{self.label}/{number}")
        self.backoff_s = 0.0

    def wait_time(self) -> float:
        backoff_s, self.backoff_s = self.backoff_s, 0.0
        return max(backoff_s, self.active_session.load.think_s * (0.5 + self.rng.random()))

    @task
    def run_task(self) -> None:
        if self.session is None:  # Locust accepts StopUser from a task, but not from `on_start`
            raise StopUser
        self.send_request()

    def send_request(self, planned_s: float | None = None) -> Record:
        """Sends one request. In an open loop `planned_s` is its planned arrival (`time.perf_counter`)."""
        raise NotImplementedError

    @property
    def is_mid_conversation(self) -> bool:
        """Whether the user's next request continues a conversation. If so, the open loop uses it again for a later arrival."""
        return False

    def chat(self, prompt: prompts.Prompt, planned_s: float | None, turn: int = 1, leave_after: int | None = None) -> tuple[Record, str]:
        """Streams a chat; returns its record and the text of the answer. Disconnects after `leave_after` deltas."""
        session = self.active_session
        load, capabilities = session.load, session.capabilities
        body = encode({**prompts.chat_body(self.rng, prompt.messages, load.max_tokens, capabilities.card["id"]), **load.extra})
        max_tokens = load.extra.get("max_tokens", load.max_tokens)
        known_fields = {"user": self.label, "length": prompt.length, "prefix": prompt.prefix, "turn": turn}
        stream = Stream(session.start_request("chat", planned_s, known_fields), replace(capabilities.expected, max_tokens=max_tokens))
        record = self._send("/v1/chat/completions", body, stream.start, lambda response: _read_stream(response, stream, leave_after))
        return record, stream.text

    def score(self, planned_s: float | None) -> Record:
        session = self.active_session
        body = encode(prompts.score_body(self.rng, session.load.score_words, session.capabilities.card["id"]))
        start = session.start_request("score", planned_s, {"user": self.label})
        return self._send("/v1/score", body, start, lambda response: _read_score(response, start))

    def _send(self, route: str, body: bytes, start: Start, read: Callable[[HTTPResponse], Record]) -> Record:
        """Sends a request and adds its record to the session.

        A request without an answer at the end of the run counts as failed: without it the slowest would be missing from the statistics.
        """
        try:
            with self.active_session.host.post(route, body) as response:
                record = read(response) if response.status == OK else _refusal_record(response, start)
        except CONNECTION_ERRORS as error:
            record = start.record(time.perf_counter(), 0, type(error).__name__)
        except gevent.GreenletExit:
            # In state RUNNING Locust killed the user for being in its pause, which ended at that moment: no request that stayed unanswered.
            if self._state != LOCUST_STATE_RUNNING:
                self.active_session.add(start.record(time.perf_counter(), 0, "unanswered when the run ended"))
            raise
        self.active_session.add(record)
        if record.outcome == "shed":
            self.backoff_s = min(MAX_BACKOFF_S, DEFAULT_BACKOFF_S if record.retry_after_s is None else record.retry_after_s)
        return record


class ChatUser(LitmusUser):
    """Starts a new conversation with each request."""

    weight = 4
    label = "chat"

    def send_request(self, planned_s: float | None = None) -> Record:
        return self.chat(prompts.first_prompt(self.rng, self.active_session.load.mix), planned_s)[0]


class ScoreUser(LitmusUser):
    """Sends texts to score."""

    weight = 1
    label = "score"

    @classmethod
    def is_supported(cls, capabilities: Capabilities) -> bool:
        return capabilities.can_score

    def send_request(self, planned_s: float | None = None) -> Record:
        return self.score(planned_s)


class MixedUser(LitmusUser):
    """Sends one score for every `CHATS_PER_SCORE` chats on average; only chats or only scores if the server supports no others."""

    weight = 2
    label = "mixed"

    @classmethod
    def is_supported(cls, capabilities: Capabilities) -> bool:
        return capabilities.can_chat or capabilities.can_score

    def send_request(self, planned_s: float | None = None) -> Record:
        capabilities = self.active_session.capabilities
        scores = not capabilities.can_chat or (capabilities.can_score and self.rng.random() < 1 / (1 + CHATS_PER_SCORE))
        return self.score(planned_s) if scores else self.chat(prompts.first_prompt(self.rng, self.active_session.load.mix), planned_s)[0]


class SeveralTurnsUser(LitmusUser):
    """Holds conversations of several turns; each turn sends all messages so far.

    The order of the class names decides, with the seed, which user sends a request: another order makes runs of one seed differ.
    """

    weight = 2
    label = "talk"

    def initialize(self, number: int) -> None:
        super().initialize(number)
        self.prompt: prompts.Prompt | None = None
        self.turn = 1

    def send_request(self, planned_s: float | None = None) -> Record:
        """A shed turn is sent again next time; a failed one ends the conversation."""
        self.prompt = self.prompt or prompts.first_prompt(self.rng, self.active_session.load.mix)
        record, answer = self.chat(self.prompt, planned_s, self.turn)
        if record.outcome == "ok" and self.turn < self.active_session.load.turns:
            self.turn += 1
            messages = (*self.prompt.messages, Message(role="assistant", content=answer), prompts.next_message(self.rng))
            self.prompt = prompts.Prompt(messages, self.prompt.length, self.prompt.prefix)
        elif record.outcome != "shed":
            self.prompt, self.turn = None, 1
        return record

    @property
    def is_mid_conversation(self) -> bool:
        return self.prompt is not None


class LeavingUser(LitmusUser):
    """Disconnects in the middle of the answer, after `--leave-after` deltas."""

    weight = 1
    label = "leave"

    def send_request(self, planned_s: float | None = None) -> Record:
        load = self.active_session.load
        return self.chat(prompts.first_prompt(self.rng, load.mix), planned_s, leave_after=load.leave_after)[0]


def _read_stream(response: HTTPResponse, stream: Stream, leave_after: int | None) -> Record:
    """The record of a stream. If the connection breaks, the record says "truncated" and keeps what was measured before."""
    try:
        for chunk in body_chunks(response):
            stream.feed(chunk, time.perf_counter())
            if leave_after is not None and len(stream.deltas_s) >= leave_after and not stream.done:
                stream.client_left = True
                break
    except CONNECTION_ERRORS as error:
        stream.error = f"truncated: {type(error).__name__}"
    return stream.record(time.perf_counter())


def _read_score(response: HTTPResponse, start: Start) -> Record:
    raw = response.read()
    end_s = time.perf_counter()
    try:
        return score_record(start, end_s, json.loads(raw), texts=1)
    except ValueError:
        return start.record(end_s, response.status, "wrong: the body is not JSON")


def _refusal_record(response: HTTPResponse, start: Start) -> Record:
    """The record of a response with a status other than 200."""
    wait_s = retry_after_s(response.headers.get("Retry-After"))
    return start.record(time.perf_counter(), response.status, None, retry_after_s=wait_s)

"""The users: who chats, who scores, who does both, who converses, who leaves. Each request is timed here as its bytes come.

A user asks again after a pause, and no sooner than a server that shed the request wants. In an open loop
each asks once, and it is loadtest.load.arrivals that says when.
"""

from locust import User, task  # isort: skip  # first: it makes the standard library cooperative (gevent)

import json
import random
import time
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from itertools import count
from typing import ClassVar

import gevent  # type: ignore[import-untyped]
from locust.exception import StopUser
from locust.user.task import LOCUST_STATE_RUNNING

from app.schemas import Message
from loadtest import prompts
from loadtest.load.probe import Abilities
from loadtest.load.session import Push
from loadtest.load.transport import BROKEN, encode, pieces, retry_after_s
from loadtest.record import Record, Start, Stream, Wants, score_record

OK = 200
LONGEST_HOLD_S = 60.0
SHED_HOLD_S = 1.0  # where a server sheds and does not say for how long
CHATS_PER_SCORE = 3


class LitmusUser(User):
    """Belongs to the run that stands in the class variable, from the start of the test to its end."""

    abstract = True
    push: ClassVar[Push | None] = None
    numbers: ClassVar[Iterator[int]] = count()
    label: ClassVar[str]

    @classmethod
    def can(cls, abilities: Abilities) -> bool:
        """Whether the server has what this user asks for."""
        return abilities.chat

    @property
    def run_of(self) -> Push:
        assert self.push is not None, "users without a run stop at once"
        return self.push

    def on_start(self) -> None:
        if self.push is not None:
            self.appear(next(self.numbers))

    def appear(self, number: int) -> None:
        self.draw = random.Random(f"{self.run_of.load.seed}/{self.label}/{number}")
        self.hold_s = 0.0

    def wait_time(self) -> float:
        held, self.hold_s = self.hold_s, 0.0
        return max(held, self.run_of.load.think_s * (0.5 + self.draw.random()))

    @task
    def act(self) -> None:
        if self.push is None:  # Locust takes this from a task, and not from `on_start`
            raise StopUser
        self.step()

    def step(self, planned_s: float | None = None) -> Record:
        """One request."""
        raise NotImplementedError

    @property
    def returns(self) -> bool:
        """Whether somebody who arrives later may be this one again."""
        return False

    def chat(self, prompt: prompts.Prompt, planned_s: float | None, turn: int = 1, leave_after: int | None = None) -> tuple[Record, str]:
        """Streams an answer, and its text; leaves it after so many deltas."""
        push = self.run_of
        load, abilities = push.load, push.abilities
        body = encode({**prompts.body(self.draw, prompt.messages, load.max_tokens, abilities.card["id"]), **load.extra})
        asked = load.extra.get("max_tokens", load.max_tokens)
        traits = {"user": self.label, "length": prompt.length, "prefix": prompt.prefix, "turn": turn}
        wants = Wants(asked, abilities.wants.usage, abilities.wants.done)
        stream = Stream(push.start("chat", planned_s, traits), wants)
        return self._ask("/v1/chat/completions", body, stream.start, lambda response: _follow(response, stream, leave_after)), stream.text

    def score(self, planned_s: float | None) -> Record:
        push = self.run_of
        body = encode(prompts.score(self.draw, push.load.score_words, push.abilities.card["id"]))
        start = push.start("score", planned_s, {"user": self.label})
        return self._ask("/v1/score", body, start, lambda response: _read_score(response, start))

    def _ask(self, route: str, body: bytes, start: Start, read: Callable[[HTTPResponse], Record]) -> Record:
        """A request that is still under way when the run ends has failed: left out, the slowest would be missing."""
        try:
            with self.run_of.host.post(route, body) as response:
                record = read(response) if response.status == OK else _refused(response, start)
        except BROKEN as error:
            record = start.record(time.perf_counter(), 0, type(error).__name__)
        except gevent.GreenletExit:
            if self._state != LOCUST_STATE_RUNNING:  # else Locust took it for waiting, in the moment in which it asked
                self.run_of.settle(start.record(time.perf_counter(), 0, "unanswered when the run ended"))
            raise
        self.run_of.settle(record)
        if record.outcome == "shed":
            self.hold_s = min(LONGEST_HOLD_S, SHED_HOLD_S if record.retry_after_s is None else record.retry_after_s)
        return record


class ChatUser(LitmusUser):
    """Asks something new each time."""

    weight = 4
    label = "chat"

    def step(self, planned_s: float | None = None) -> Record:
        return self.chat(prompts.prompt(self.draw, self.run_of.load.mix), planned_s)[0]


class ScoreUser(LitmusUser):
    """Has texts scored."""

    weight = 1
    label = "score"

    @classmethod
    def can(cls, abilities: Abilities) -> bool:
        return abilities.score

    def step(self, planned_s: float | None = None) -> Record:
        return self.score(planned_s)


class MixedUser(LitmusUser):
    """Chats, and now and then has a text scored; only one of them where the server has no other."""

    weight = 2
    label = "mixed"

    @classmethod
    def can(cls, abilities: Abilities) -> bool:
        return abilities.chat or abilities.score

    def step(self, planned_s: float | None = None) -> Record:
        abilities = self.run_of.abilities
        scores = not abilities.chat or (abilities.score and self.draw.random() < 1 / (1 + CHATS_PER_SCORE))
        return self.score(planned_s) if scores else self.chat(prompts.prompt(self.draw, self.run_of.load.mix), planned_s)[0]


class TalkUser(LitmusUser):
    """Holds conversations of several turns; each turn sends all that was said."""

    weight = 2
    label = "talk"

    def appear(self, number: int) -> None:
        super().appear(number)
        self.prompt: prompts.Prompt | None = None
        self.turn = 1

    def step(self, planned_s: float | None = None) -> Record:
        """A turn that is shed is asked again; one that fails ends the conversation."""
        self.prompt = self.prompt or prompts.prompt(self.draw, self.run_of.load.mix)
        record, said = self.chat(self.prompt, planned_s, self.turn)
        if record.outcome == "ok" and self.turn < self.run_of.load.turns:
            self.turn += 1
            messages = (*self.prompt.messages, Message(role="assistant", content=said), prompts.turn(self.draw))
            self.prompt = prompts.Prompt(messages, self.prompt.length, self.prompt.prefix)
        elif record.outcome != "shed":
            self.prompt, self.turn = None, 1
        return record

    @property
    def returns(self) -> bool:
        """In the middle of a conversation."""
        return self.prompt is not None


class LeavingUser(LitmusUser):
    """Goes away in the middle of the answer."""

    weight = 1
    label = "leave"

    def step(self, planned_s: float | None = None) -> Record:
        load = self.run_of.load
        return self.chat(prompts.prompt(self.draw, load.mix), planned_s, leave_after=load.leave_after)[0]


def _follow(response: HTTPResponse, stream: Stream, leave_after: int | None) -> Record:
    """A connection that breaks in mid-stream leaves a truncated stream, with what was measured up to there."""
    try:
        for piece in pieces(response):
            stream.feed(piece, time.perf_counter())
            if leave_after is not None and len(stream.deltas_s) >= leave_after and not stream.done:
                stream.left = True
                break
    except BROKEN as error:
        stream.error = f"truncated: {type(error).__name__}"
    return stream.record(time.perf_counter())


def _read_score(response: HTTPResponse, start: Start) -> Record:
    raw = response.read()
    end_s = time.perf_counter()
    try:
        return score_record(start, end_s, json.loads(raw), texts=1)
    except ValueError:
        return start.record(end_s, response.status, "wrong: the body is not JSON")


def _refused(response: HTTPResponse, start: Start) -> Record:
    held_s = retry_after_s(response.headers.get("Retry-After"))
    return start.record(time.perf_counter(), response.status, None, retry_after_s=held_s)

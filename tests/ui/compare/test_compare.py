"""The Compare tab without a browser: settings, both streams, stop, and what is drawn."""

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from app.schemas import ModelCard, Usage
from tests.ui.fakelitmus import BASE, CARD, NO_CHAT
from ui.client import Chunk, Pause, QueueStatus, ServerError
from ui.compare.run import run
from ui.compare.side import Settings, Side, differences
from ui.compare.tab import NO_CHAT as NO_CHAT_SENTENCE
from ui.compare.tab import NO_PROMPT, begin, default_names, finish, models_handler, stream_handler
from ui.compare.view import CUT, CUT_THOUGHT, difference_html, drawn

LEFT, RIGHT = Settings("storyteller", "0", seed="7", max_tokens="9"), Settings("base", top_p="0.5", max_tokens="9", system="Be <brief>.")
FORM = ("storyteller", "0", "", "7", "9", "", "base", "", "0.5", "", "9", "Be <brief>.")


class Upstream:
    """Streams a word at a time for each request, and notes what is open."""

    def __init__(self, words: int = 3, wait_s: float = 0.0) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.open: set[str] = set()
        self.most_open = 0
        self.words, self.wait_s = words, wait_s
        self.failing: set[str] = set()

    async def chat(self, body: dict[str, Any]) -> AsyncGenerator[Chunk, None]:
        self.bodies.append(body)
        model = body["model"]
        self.open.add(model)
        self.most_open = max(self.most_open, len(self.open))
        try:
            yield Chunk(queue=QueueStatus(2, 3))
            for _ in range(self.words):
                await asyncio.sleep(self.wait_s)
                yield Chunk(f"<{model}> ")
            if model in self.failing:
                raise ServerError("The model's process died.")
            yield Chunk(finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=self.words, total_tokens=1 + self.words))
        finally:
            self.open.discard(model)

    async def models(self) -> list[ModelCard]:
        return [ModelCard.model_validate(card) for card in (BASE, CARD, NO_CHAT)]

    def client(self, request: Any) -> "Upstream":
        return self


REQUEST: Any = SimpleNamespace(request=None)


def begun() -> list[Side]:
    return begin([], "A prompt", *FORM)[1]


def ran(upstream: Upstream, in_turn: bool = False) -> list[Side]:
    async def main() -> list[Side]:
        sides = begun()
        async for _ in run(sides, upstream, in_turn):
            pass
        return sides

    return asyncio.run(main())


def test_each_side_sends_its_own_settings() -> None:
    upstream = Upstream()
    ran(upstream)
    by_model = {body["model"]: body for body in upstream.bodies}
    question = {"role": "user", "content": "A prompt"}
    assert by_model["storyteller"] == {"model": "storyteller", "messages": [question], "temperature": 0, "seed": 7, "max_tokens": 9}
    system = {"role": "system", "content": "Be <brief>."}
    assert by_model["base"] == {"model": "base", "messages": [system, question], "top_p": 0.5, "max_tokens": 9}


@pytest.mark.parametrize(("in_turn", "most_open"), [(False, 2), (True, 1)])
def test_both_run_at_once_or_in_turn(in_turn: bool, most_open: int) -> None:
    upstream = Upstream()
    sides = ran(upstream, in_turn)
    assert upstream.most_open == most_open and upstream.open == set()
    for side in sides:
        assert side.has_ended and not side.problem and side.answer.completion_tokens == 3
        assert side.answer.text == f"<{side.settings.model}> " * 3
        assert side.total_s is not None and side.answer.ttft_ms is not None and side.answer.ttft_ms <= side.total_s * 1000


def test_one_side_fails_and_the_other_goes_on() -> None:
    upstream = Upstream()
    upstream.failing = {"storyteller"}
    failed, whole = ran(upstream)
    assert (failed.problem, whole.problem) == ("The model's process died.", "")
    head, answer, _ = drawn(failed)
    assert 'role="alert">The model&#x27;s process died.' in head and "&lt;storyteller>" in answer


def test_a_number_that_is_none_is_said_on_its_side() -> None:
    async def main() -> list[Side]:
        sides = begin([], "A prompt", "storyteller", "warm", *FORM[2:])[1]
        async for _ in run(sides, Upstream(), False):
            pass
        return sides

    wrong, right = asyncio.run(main())
    assert "Temperature must be a number from 0 to 2, not “warm”" in wrong.problem and not right.problem


def test_stop_closes_both_requests_and_keeps_the_texts() -> None:
    upstream = Upstream(words=10_000, wait_s=0.001)

    async def main() -> list[Side]:
        sides = begun()
        drawings = stream_handler(upstream)(REQUEST, sides, False)
        async for _ in drawings:
            if all(side.answer.text for side in sides):
                break
        await drawings.aclose()
        return sides

    sides = asyncio.run(main())
    assert upstream.open == set() and len(upstream.bodies) == 2
    compare, stop, *parts = finish(sides)
    assert (compare["interactive"], stop["interactive"]) == (True, False)
    assert all(">stopped<" in head and "Copy answer" in foot for head, _, foot in (parts[:3], parts[3:]))


def test_a_second_start_while_both_run_changes_nothing() -> None:
    sides = begun()
    assert begin(sides, "Another", *FORM) == (gr.skip(),) * 10
    sides[0].begin(1.0)

    async def streamed() -> list[Any]:
        return [update async for update in stream_handler(Upstream())(REQUEST, sides, False)]

    assert asyncio.run(streamed()) == [(gr.skip(),) * 6]
    finish(sides)
    assert begin(sides, "Another", *FORM)[1][0].prompt == "Another"


def test_what_is_missing_is_said() -> None:
    assert NO_PROMPT in begin([], "  ", *FORM)[0]


def test_without_a_choice_the_server_chooses_the_model() -> None:
    """As long as the page does not know yet which models there are."""
    left, right = begin([], "A prompt", None, *FORM[1:])[1]
    assert "model" not in left.settings.body("A prompt") and right.settings.body("A prompt")["model"] == "base"
    assert "default model" in drawn(left)[0] and "A: the server&#x27;s default" in difference_html(left.settings, right.settings)


def test_the_differences_are_shown() -> None:
    assert set(differences(LEFT, RIGHT)) == {"model", "temperature", "top_p", "seed", "system"}
    html = difference_html(LEFT, RIGHT)
    for words in ("<b>Seed</b> <span>A: 7</span> <span>B: random</span>", "B: model&#x27;s default", "Be &lt;brief&gt;."):
        assert words in html
    assert "only their random seeds differ" in difference_html(Settings("m"), Settings("m"))
    assert difference_html(Settings("m", seed="1"), Settings("m", seed="1 ")) == '<p class="hint">Both sides have the same settings.</p>'
    assert "only their random seeds differ" in difference_html(Settings("m", seed="-1"), Settings("m"))
    assert "…" in difference_html(Settings(system="x" * 1000), Settings())


def test_a_side_says_how_far_it_is() -> None:
    side = Side("A", LEFT, "A prompt")
    assert "waits for the other answer" in drawn(side)[0]
    side.begin(10.0)
    assert "waiting for the first token" in drawn(side)[0]
    side.answer.add(Chunk(loading="The server is loading a."), 10.0)
    assert "The server is loading a." in drawn(side)[0]
    side.answer.add(Chunk(queue=QueueStatus(2, 3)), 10.1)
    assert "position 2 in the queue, about 3 s" in drawn(side)[0]
    side.answer.add(Chunk("{x} <b>"), 10.25)
    head, answer, foot = drawn(side)
    side.answer.add(Chunk(pause=Pause("paused", "The cache is full")), 10.3)
    assert "The cache is full" in drawn(side)[0]
    side.answer.add(Chunk(), 10.4)
    assert "streaming" in head and answer == "{x} &lt;b>" and "<dd>250 ms</dd>" in foot and "Copy" not in foot
    side.answer.add(Chunk(finish_reason="length", usage=Usage(prompt_tokens=1, completion_tokens=5, total_tokens=6)), 10.5)
    side.answer.add(Chunk("y"), 10.75)
    side.end(11.0)
    head, _, foot = drawn(side)
    assert CUT in head
    for words in ("<dd>80.0</dd>", "<dd>5</dd>", "<dd>1.00 s</dd>", "Copy answer A", "&#123;x&#125; &lt;b&gt;y"):
        assert words in foot


def test_a_thought_is_folded_and_one_that_reached_the_limit_is_said() -> None:
    side = Side("A", LEFT, "A prompt")
    side.begin(10.0)
    side.answer.add(Chunk(thought="Hm <i>."), 10.1)
    head, answer, _ = drawn(side)
    assert "thinking" in head and '<details class="thought" open><summary>Thinking</summary>\n\nHm &lt;i>.' in answer
    side.answer.add(Chunk(finish_reason="length"), 10.2)
    side.end(10.3)
    head, answer, foot = drawn(side)
    assert CUT_THOUGHT in head and '<details class="thought"><summary>Thought</summary>' in answer and "Copy" not in foot


def test_stopped_before_the_first_token() -> None:
    head, answer, _ = finish([side := Side("A", LEFT, "A prompt")])[2:]
    assert "stopped before the first token" in head and answer == "" and side.stopped
    assert finish([])[2:] == (gr.skip(),) * 6


def test_the_default_model_stands_beside_another_that_chats() -> None:
    cards = asyncio.run(Upstream().models())
    assert default_names(cards) == ("storyteller", "base")
    assert default_names(cards[1:2]) == ("storyteller", "storyteller")
    assert default_names(cards[2:]) == (None, None)


def test_a_choice_stays_while_it_is_served() -> None:
    problem, left, right = asyncio.run(models_handler(Upstream())(REQUEST, "base", "gone"))
    assert (problem, left["value"], right["value"], left["choices"]) == ("", "base", "base", ["base", "storyteller"])

    class Mute(Upstream):
        async def models(self) -> list[ModelCard]:
            return [ModelCard.model_validate(NO_CHAT)]

    assert NO_CHAT_SENTENCE in asyncio.run(models_handler(Mute())(REQUEST, None, None))[0]

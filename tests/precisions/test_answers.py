"""Chats and completions in every precision: whole and streamed, and whatever ends them."""

from itertools import pairwise
from typing import Any

import httpx
import pytest
from inprocess import CHAT, TEXT, LocalModel
from reference import Reference
from serving import wait_for

PROMPT = "The fox said to the crow: give me half of your cheese, and"
MESSAGES = [{"role": "system", "content": "You tell tales."}, {"role": "user", "content": "A fox?"}]
SAMPLED: dict[str, Any] = {"seed": 3, "temperature": 0.9, "max_tokens": 32}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.parametrize(("path", "body"), [(CHAT, {"messages": MESSAGES}), (TEXT, {"prompt": PROMPT})])
def test_a_stream_is_the_answer_in_pieces(model: LocalModel, path: str, body: dict[str, Any]) -> None:
    whole = model.post(path, **body, **SAMPLED)
    choice, usage = whole["choices"][0], whole["usage"]
    chunks = model.stream(path, **body, **SAMPLED, stream_options={"include_usage": True})
    assert text_of(chunks) == (choice["message"]["content"] if path == CHAT else choice["text"]) != ""
    assert len(chunks) > usage["completion_tokens"] / 2
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]][-1] == choice["finish_reason"]
    assert chunks[-1]["usage"]["completion_tokens"] == usage["completion_tokens"] <= 32
    assert chunks[-1]["usage"]["prompt_tokens"] == usage["prompt_tokens"]


def test_greedy_answers_are_the_models_own_choices(model: LocalModel, reference: Reference) -> None:
    for prompt in (PROMPT, "Once upon a time", "x = 12;"):
        ids = model.answer_ids(prompt, **GREEDY)
        reference.check_greedy(model.encode(prompt), ids)
        assert len(set(ids)) > 8


def test_the_official_client_is_answered(model: LocalModel) -> None:
    with model.client() as client:
        chat = client.chat.completions.create(model=model.name, messages=MESSAGES, **GREEDY)  # type: ignore[arg-type]
        text = client.completions.create(model=model.name, prompt=PROMPT, **GREEDY)
    assert chat.choices[0].message.content == model.post(CHAT, messages=MESSAGES, **GREEDY)["choices"][0]["message"]["content"]
    assert (chat.choices[0].finish_reason, chat.usage and chat.usage.completion_tokens) == ("length", 24)
    assert text.choices[0].text == model.complete(PROMPT, **GREEDY)["text"]


def test_a_prompt_in_every_shape(steady: LocalModel) -> None:
    ids, other = steady.encode(PROMPT), "Once upon a time"
    expected = [steady.complete(prompt, **GREEDY)["text"] for prompt in (PROMPT, other)]
    assert expected[0] != expected[1]
    for prompts in ([PROMPT, other], [ids, steady.encode(other)]):
        assert [choice["text"] for choice in steady.post(TEXT, prompt=prompts, **GREEDY)["choices"]] == expected
    assert steady.complete(ids, **GREEDY)["text"] == expected[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_before_it(model: LocalModel, stream: bool) -> None:
    """A part of a token, or parts of two."""
    tokens = model.complete(PROMPT, **GREEDY, logprobs=0)["logprobs"]["tokens"]
    long = next(place for place in range(6, 20) if len(tokens[place]) > 1)
    whole = "".join(tokens)
    for stop in (tokens[long][1:], tokens[long][-1] + tokens[long + 1][0]):
        fields = {"prompt": PROMPT, **GREEDY, "stop": ["never to be seen", stop]}
        if stream:
            chunks = model.stream(TEXT, **fields)
            text, finish = text_of(chunks), chunks[-1]["choices"][0]["finish_reason"]
        else:
            choice = model.post(TEXT, **fields)["choices"][0]
            text, finish = choice["text"], choice["finish_reason"]
        assert (text, finish) == (whole[: whole.index(stop)], "stop")


def test_end_tokens_stop_tokens_and_min_tokens(model: LocalModel) -> None:
    end, plain = "1", model.answer_ids(PROMPT, **GREEDY)
    forced = model.post(TEXT, prompt=PROMPT, **GREEDY, logit_bias={end: 100})
    assert (forced["choices"][0]["text"], forced["choices"][0]["finish_reason"]) == ("", "stop")
    assert forced["usage"]["completion_tokens"] == 1
    ignored = model.post(TEXT, prompt=PROMPT, **GREEDY, logit_bias={end: 100}, ignore_eos=True)
    assert (ignored["choices"][0]["finish_reason"], ignored["usage"]["completion_tokens"]) == ("length", 24)
    delayed = model.post(TEXT, prompt=PROMPT, **GREEDY, logit_bias={end: 100}, min_tokens=5)
    assert (delayed["choices"][0]["finish_reason"], delayed["usage"]["completion_tokens"]) == ("stop", 6)
    stopped = model.post(TEXT, prompt=PROMPT, **GREEDY, stop_token_ids=[plain[7]])
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["usage"]["completion_tokens"] == plain.index(plain[7]) + 1


def test_max_tokens_and_the_end_of_the_context(model: LocalModel, reference: Reference) -> None:
    for count in (1, 2, 17):
        answer = model.post(CHAT, messages=MESSAGES, max_tokens=count, temperature=0, ignore_eos=True)
        assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (count, "length")
    prompt = model.encode("Once upon a time there was a crow. " * 40)[: model.facts.context - 40]
    ids = model.answer_ids(prompt, max_tokens=40, temperature=0, ignore_eos=True)
    assert len(ids) == 40
    reference.check_greedy(prompt, ids)
    assert model.refused(TEXT, prompt=prompt, max_tokens=41)["code"] == "context_length_exceeded"
    assert model.refused(TEXT, prompt=prompt * 2)["code"] == "context_length_exceeded"
    whole = model.post(CHAT, messages=[{"role": "user", "content": "A fox? " * 75}], ignore_eos=True, seed=1)
    assert whole["usage"]["total_tokens"] == model.facts.context


def test_n_answers_are_seeded_apart(steady: LocalModel) -> None:
    answer = steady.post(CHAT, messages=MESSAGES, **SAMPLED, n=3)
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    alone = [steady.post(CHAT, messages=MESSAGES, **{**SAMPLED, "seed": 3 + i})["choices"][0]["message"]["content"] for i in range(3)]
    assert texts == alone and len(set(texts)) == 3
    chunks = steady.stream(CHAT, messages=MESSAGES, **SAMPLED, n=3)
    assert [text_of(chunks, index) for index in range(3)] == texts


def test_best_of_returns_the_likeliest_answers(steady: LocalModel) -> None:
    def mean(choice: dict[str, Any]) -> float:
        values = choice["logprobs"]["token_logprobs"]
        return sum(values) / len(values)

    every = sorted(steady.post(TEXT, prompt=PROMPT, **SAMPLED, n=5, logprobs=0)["choices"], key=mean, reverse=True)
    assert all(mean(one) > mean(other) for one, other in pairwise(every))
    best = steady.post(TEXT, prompt=PROMPT, **SAMPLED, n=2, best_of=5)
    assert [choice["text"] for choice in best["choices"]] == [choice["text"] for choice in every[:2]]


def test_a_flexible_request_is_answered_like_any_other(model: LocalModel) -> None:
    answer = model.post(TEXT, prompt=PROMPT, **SAMPLED, service_tier="flex")
    assert (answer["service_tier"], answer["choices"][0]["text"]) == ("flex", model.complete(PROMPT, **SAMPLED)["text"])


def test_a_client_that_leaves_frees_its_slot(model: LocalModel) -> None:
    body = {"model": model.name, "prompt": PROMPT, "max_tokens": 200, "ignore_eos": True, "temperature": 0, "stream": True}
    model.worker.holds_after = 3
    try:
        with httpx.Client(timeout=60) as leaver, leaver.stream("POST", f"{model.url}{TEXT}", json=body) as response:
            assert next(response.iter_lines()).startswith("data: ")
        wait_for(lambda: model.engine.idle, 60)
    finally:
        model.worker.holds_after = None
    wait_for(lambda: not any(slot["request"] for slot in model.slots()["slots"]), 60)
    state = model.slots()
    decision = state["decisions"][-1]
    assert decision["prompt_tokens"] == len(model.encode(PROMPT))
    cached = state["slots"][decision["slot"]]["cached_tokens"]
    assert cached < decision["prompt_tokens"] + 199, "the answer was complete before its client left"
    assert model.complete(PROMPT, **GREEDY)["finish_reason"] == "length"

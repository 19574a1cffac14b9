"""Drafts change no answer, in every precision, beside every feature; wrong drafts are as if they had never been run."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from drafting import free_rows, guided, listening, undrafted
from inprocess import CHAT, TEXT, LocalModel
from precisions.test_crowd import CALL, CHOICE, NUMBERS, check_same, prompt, requests

WILD: dict[str, Any] = {"temperature": 1.2, "top_k": 0, "top_p": 1, "min_p": 0, "ignore_eos": True, "max_tokens": 40}
FORM = {
    "type": "object",
    "properties": {"the_name_of_the_thief": {"type": "string", "maxLength": 9}, "what_was_stolen_yesterday": NUMBERS},
    "required": ["the_name_of_the_thief", "what_was_stolen_yesterday"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": FORM}}


def features() -> list[tuple[str, dict[str, Any]]]:
    rng = random.Random(3)
    ask: dict[str, Any] = {"messages": [{"role": "user", "content": prompt(rng, 5)}]}
    tell: dict[str, Any] = {"prompt": prompt(rng, 9)}
    bias = {"300": 6.0, "301": 5.0, "302": 4.0}
    return [
        (TEXT, {**tell, "temperature": 0, "max_tokens": 60, "ignore_eos": True, "logprobs": 3}),
        (TEXT, {**tell, **WILD, "seed": 1, "repetition_penalty": 1.4, "logit_bias": bias}),
        (TEXT, {**tell, **WILD, "seed": 2, "presence_penalty": 1.5, "frequency_penalty": 0.7, "logit_bias": bias, "logprobs": 1}),
        (TEXT, {**tell, **WILD, "seed": 3, "bad_words": ["the", "a fox"], "top_p": 0.8}),
        (TEXT, {**tell, **WILD, "seed": 4, "ignore_eos": False, "min_tokens": 9, "stop_token_ids": list(range(300, 340)), "n": 3}),
        (TEXT, {**tell, **WILD, "seed": 5, "stop": ["e", "qu"], "min_tokens": 6, "n": 3, "logprobs": 0}),
        (TEXT, {**tell, **WILD, "seed": 6, "top_k": 4, "echo": True, "logprobs": 1}),
        (CHAT, {**ask, **WILD, "seed": 7, "ignore_eos": False, "max_tokens": 90, "response_format": FORMAT, "logprobs": True}),
        (CHAT, {**ask, **WILD, "seed": 8, "ignore_eos": False, "max_tokens": 34, "response_format": FORMAT}),  # completed to fit
        (CHAT, {**ask, **WILD, "seed": 9, "ignore_eos": False, "response_format": CHOICE}),
        (CHAT, {**ask, **WILD, "seed": 10, "ignore_eos": False, "max_tokens": 80, "tools": [CALL], "n": 2}),
    ]


def ask_all(model: LocalModel, sent: list[tuple[str, dict[str, Any]]], at_once: bool) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(len(sent) if at_once else 1) as pool:
        return list(pool.map(lambda request: model.post(request[0], **request[1]), sent))


def prediction(answers: list[dict[str, Any]], name: str) -> int:
    details = (answer.get("usage", {}).get("completion_tokens_details") for answer in answers)
    return sum(detail[f"{name}_prediction_tokens"] for detail in details if detail is not None)


@dataclass
class Plain:
    """What is sent, each answer to it without drafts, and the tokens of those answers."""

    sent: list[tuple[str, dict[str, Any]]]
    answers: list[dict[str, Any]]
    heard: list[list[int]]


@pytest.fixture(scope="module")
def plain_by_model() -> dict[str, Plain]:
    return {}


@pytest.fixture
def plain(steady: LocalModel, plain_by_model: dict[str, Plain]) -> Plain:
    if steady.name not in plain_by_model:
        sent = [*features(), *requests()]
        with undrafted(steady.engine.scheduler) as heard:
            answers = ask_all(steady, sent, at_once=False)
        plain_by_model[steady.name] = Plain(sent, answers, heard)
    return plain_by_model[steady.name]


@pytest.mark.parametrize("at_once", [False, True], ids=["alone", "crowd"])
def test_an_answer_is_the_same_with_right_and_wrong_drafts(steady: LocalModel, plain: Plain, at_once: bool) -> None:
    assert prediction(plain.answers, "accepted") == prediction(plain.answers, "rejected") == 0
    with guided(steady.engine.drafter, plain.heard):
        drafted = ask_all(steady, plain.sent, at_once)
    for (path, body), one, other in zip(plain.sent, plain.answers, drafted, strict=True):
        check_same(one, other, f"{path} {sorted(body)}")
    assert prediction(drafted, "accepted") > 150 and prediction(drafted, "rejected") > 150


def test_an_answer_is_the_same_with_drafts_from_its_own_text(steady: LocalModel) -> None:
    """Of what repeats itself: a bias makes a few tokens likely."""
    bias = {str(token): 9.0 for token in range(300, 304)}
    fields = {**WILD, "logit_bias": bias, "max_tokens": 80}
    sent = [(TEXT, {"prompt": "fox crow king", **fields, "seed": seed, "temperature": heat}) for seed in (1, 2) for heat in (0, 0.3)]
    with undrafted(steady.engine.scheduler):
        plain = ask_all(steady, sent, at_once=False)
    with free_rows():
        drafted = ask_all(steady, sent, at_once=True) + ask_all(steady, sent, at_once=False)
    for one, other in zip(plain * 2, drafted, strict=True):
        check_same(one, other)
    assert prediction(drafted, "accepted") > 20


def test_a_prediction_makes_the_answer_fewer_steps(steady: LocalModel) -> None:
    """The tokens of its text are not always those that were sampled; over a few answers most are."""
    plain, helped = [], []
    with free_rows():
        for seed in range(6):
            ask = {"messages": [{"role": "user", "content": "Who stole the cheese?"}], **WILD, "seed": seed}
            plain.append(steady.post(CHAT, **ask))
            text = plain[-1]["choices"][0]["message"]["content"]
            helped.append(steady.post(CHAT, **ask, prediction={"type": "content", "content": text}))
            misled = steady.post(CHAT, **ask, prediction={"type": "content", "content": [{"type": "text", "text": text[::-1]}]})
            check_same(plain[-1], helped[-1])
            check_same(plain[-1], misled)
    assert prediction(helped, "accepted") > prediction(plain, "accepted") + 20


def test_a_stream_is_the_whole_answer(steady: LocalModel) -> None:
    fields = {"prompt": "Once upon a time", **WILD, "seed": 4, "logprobs": 2}
    with listening(steady.engine.drafter) as heard:
        whole = steady.post(TEXT, **fields)["choices"][0]
    with guided(steady.engine.drafter, heard):
        chunks = [choice for chunk in steady.stream(TEXT, **fields) for choice in chunk["choices"]]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        streamed = [value for chunk in chunks for value in (chunk["logprobs"] or {}).get(name, [])]
        check_same(whole["logprobs"][name], streamed, name)
    assert len(chunks) < len(whole["logprobs"]["tokens"]), "a step with a draft is one event"


def test_an_adapters_answer_is_the_same(steady: LocalModel) -> None:
    adapted = [steady.adapted(f"{steady.name}-{name}") for name in ("tuned", "other")]
    sent = [{"prompt": "The fox said", **WILD, "seed": seed} for seed in (1, 2)]
    with listening(steady.engine.drafter) as heard:
        plain = [model.post(TEXT, **body) for model in adapted for body in sent]
    with guided(steady.engine.drafter, heard), ThreadPoolExecutor(4) as pool:
        drafted = list(pool.map(lambda pair: pair[0].post(TEXT, **pair[1]), [(model, body) for model in adapted for body in sent]))
    for one, other in zip(plain, drafted, strict=True):
        check_same(one, other)
    assert prediction(drafted, "accepted") > 20 and prediction(drafted, "rejected") > 20


@pytest.mark.parametrize("limit", [0, 3, 20, None])
def test_a_limited_thought_is_the_same(thinking: LocalModel, limit: int | None) -> None:
    if thinking.name != "float32" and not thinking.engine.performer.is_on_kernel:
        pytest.skip("without the compiled kernel rounding depends on the batch")
    fields = {"messages": [{"role": "user", "content": "Who?"}], **WILD, "max_tokens": 70, "n": 2, "logprobs": True}
    budget = {} if limit is None else {"thinking_token_budget": limit}
    sent = [
        (CHAT, {**fields, **budget, "seed": 1}),
        (CHAT, {**fields, **budget, "seed": 2, "ignore_eos": False, "response_format": FORMAT}),
    ]
    with listening(thinking.engine.drafter) as heard:
        plain = ask_all(thinking, sent, at_once=False)
    with guided(thinking.engine.drafter, heard):
        drafted = ask_all(thinking, sent, at_once=True)
    for one, other in zip(plain, drafted, strict=True):
        check_same(one, other)
        counted = (answer["usage"]["completion_tokens_details"]["reasoning_tokens"] for answer in (one, other))
        assert len(set(counted)) == 1
    assert prediction(drafted, "accepted") > 20


def test_an_answer_that_goes_on_after_a_death_is_the_same(steady: LocalModel) -> None:
    body = {"prompt": "Once upon a time", **WILD, "seed": 5, "frequency_penalty": 0.5}
    with listening(steady.engine.drafter) as heard:
        undisturbed = steady.post(TEXT, **body)
    for steps in (1, 2, 4):
        steady.worker.dies_after = steps
        with guided(steady.engine.drafter, heard, seed=steps):
            check_same(undisturbed, steady.post(TEXT, **body))
        assert steady.worker.dies_after is None, "the answer was complete before the worker could die"

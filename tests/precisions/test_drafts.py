"""Drafts change no answer, in every precision, beside every feature; wrong drafts are as if they had never been run."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from drafting import free_rows, guided, listening, undrafted
from inprocess import CHAT, TEXT, LocalModel
from precisions.asking import FORMAT, WILD, Plain, ask_all, check_same
from precisions.conftest import PRECISIONS, RECORDED


def prediction(answers: list[dict[str, Any]], name: str) -> int:
    details = (answer.get("usage", {}).get("completion_tokens_details") for answer in answers)
    return sum(detail[f"{name}_prediction_tokens"] for detail in details if detail is not None)


ALONE = ["float32", "int4"]  # others: beside each other alone


@pytest.mark.parametrize(
    ("model", "at_once"), [*((name, False) for name in ALONE), *((name, True) for name in (*PRECISIONS, RECORDED))], indirect=["model"]
)
def test_an_answer_is_the_same_with_right_and_wrong_drafts(steady: LocalModel, plain: Plain, at_once: bool) -> None:
    assert prediction(plain.answers, "accepted") == prediction(plain.answers, "rejected") == 0
    with guided(steady.engine.drafter, plain.heard):
        drafted = ask_all(steady, plain.sent, at_once)
    for (path, body), one, other in zip(plain.sent, plain.answers, drafted, strict=True):
        check_same(one, other, f"{path} {sorted(body)}")
    assert prediction(drafted, "accepted") > 60 and prediction(drafted, "rejected") > 60


def test_an_answer_is_the_same_with_drafts_from_its_own_text(steady: LocalModel) -> None:
    """Of what repeats itself: a bias makes a few tokens likely."""
    bias = {str(token): 9.0 for token in range(300, 304)}
    fields = {**WILD, "logit_bias": bias, "max_tokens": 60}
    sent = [(TEXT, {"prompt": "fox crow king", **fields, "seed": seed, "temperature": heat}) for seed, heat in ((1, 0), (2, 0.3))]
    with undrafted(steady.engine.scheduler):
        plain = ask_all(steady, sent, at_once=False)
    with free_rows():
        drafted = ask_all(steady, sent, at_once=True) + ask_all(steady, sent, at_once=False)
    for one, other in zip(plain * 2, drafted, strict=True):
        check_same(one, other)
    assert prediction(drafted, "accepted") > 10


def test_a_prediction_makes_the_answer_fewer_steps(steady: LocalModel) -> None:
    """The tokens of its text are not always those that were sampled; over a few answers most are."""
    plain, helped = [], []
    with free_rows():
        for seed in range(3):
            ask = {"messages": [{"role": "user", "content": "Who stole the cheese?"}], **WILD, "max_tokens": 40, "seed": seed}
            plain.append(steady.post(CHAT, **ask))
            text = plain[-1]["choices"][0]["message"]["content"]
            helped.append(steady.post(CHAT, **ask, prediction={"type": "content", "content": text}))
            misled = steady.post(CHAT, **ask, prediction={"type": "content", "content": [{"type": "text", "text": text[::-1]}]})
            check_same(plain[-1], helped[-1])
            check_same(plain[-1], misled)
    assert prediction(helped, "accepted") > prediction(plain, "accepted") + 10


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
    sent = [{"prompt": "The fox said", **WILD, "max_tokens": 40, "seed": seed} for seed in (1, 2)]
    with listening(steady.engine.drafter) as heard:
        plain = [model.post(TEXT, **body) for model in adapted for body in sent]
    with guided(steady.engine.drafter, heard), ThreadPoolExecutor(4) as pool:
        drafted = list(pool.map(lambda pair: pair[0].post(TEXT, **pair[1]), [(model, body) for model in adapted for body in sent]))
    for one, other in zip(plain, drafted, strict=True):
        check_same(one, other)
    assert prediction(drafted, "accepted") > 20 and prediction(drafted, "rejected") > 20


@pytest.mark.parametrize(
    ("model", "limit"), [("float32", 0), ("float32", None), ("int4", 20), *((name, 3) for name in PRECISIONS)], indirect=["model"]
)
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
    body = {"prompt": "Once upon a time", **WILD, "max_tokens": 40, "seed": 5, "frequency_penalty": 0.5}
    with listening(steady.engine.drafter) as heard:
        undisturbed = steady.post(TEXT, **body)
    for steps in (1, 2, 4):
        steady.worker.dies_after = steps
        with guided(steady.engine.drafter, heard, seed=steps):
            check_same(undisturbed, steady.post(TEXT, **body))
        assert steady.worker.dies_after is None, "the answer was complete before the worker could die"

"""Log-probabilities of answers and prompts in every precision, against those of transformers."""

import math
from itertools import pairwise
from typing import Any

import pytest
from inprocess import CHAT, TEXT, LocalModel
from reference import Reference

PROMPT = "The fox said to the crow: give me half of your cheese, and"
MESSAGES = [{"role": "user", "content": "A fox?"}]
WILD: dict[str, Any] = {
    "temperature": 1.5,
    "top_k": 0,
    "top_p": 1,
    "min_p": 0,
    "frequency_penalty": 1,
    "repetition_penalty": 1.5,
    "seed": 5,
}


def test_an_echo_has_the_log_probabilities_of_prompt_and_answer(model: LocalModel, reference: Reference) -> None:
    choice = model.complete(PROMPT, echo=True, logprobs=0, max_tokens=30, **WILD)
    ids, values = model.ids_of(choice["logprobs"]["tokens"]), choice["logprobs"]["token_logprobs"]
    assert ids[: len(ids) - 30] == model.encode(PROMPT) and choice["text"].startswith(PROMPT)
    assert values[0] is None
    assert values[1:] == pytest.approx(reference.logprobs(ids), abs=reference.tolerance)
    alone = model.complete(PROMPT, echo=True, logprobs=0, max_tokens=0)["logprobs"]
    assert alone["tokens"] == choice["logprobs"]["tokens"][:-30]
    assert alone["token_logprobs"][1:] == pytest.approx(values[1:-30], abs=1e-4)


def test_the_likeliest_tokens_of_a_chat(model: LocalModel) -> None:
    content = model.post(CHAT, messages=MESSAGES, logprobs=True, top_logprobs=20, max_tokens=30, **WILD)["choices"][0]["logprobs"][
        "content"
    ]
    assert len(content) == 30
    for entry in content:
        likeliest = [one["logprob"] for one in entry["top_logprobs"]]
        assert len({one["token"] for one in entry["top_logprobs"]}) == len(likeliest) == 20
        assert all(math.isfinite(value) and value <= 0 for value in [entry["logprob"], *likeliest])
        assert all(one >= other for one, other in pairwise(likeliest))
        assert sum(map(math.exp, likeliest)) <= 1 + 1e-4
        of_itself = [one["logprob"] for one in entry["top_logprobs"] if one["token"] == entry["token"]]
        assert of_itself == [entry["logprob"]] if of_itself else entry["logprob"] <= likeliest[-1]
    assert any(entry["logprob"] < entry["top_logprobs"][0]["logprob"] for entry in content)


def test_a_greedy_answer_takes_the_likeliest_token(model: LocalModel) -> None:
    answer = model.post(CHAT, messages=MESSAGES, logprobs=True, top_logprobs=1, max_tokens=30, temperature=0)
    content = answer["choices"][0]["logprobs"]["content"]
    assert [entry["logprob"] for entry in content] == [entry["top_logprobs"][0]["logprob"] for entry in content]
    assert "".join(entry["token"] for entry in content) == answer["choices"][0]["message"]["content"]


def test_a_stream_has_the_same_log_probabilities(model: LocalModel) -> None:
    whole = model.complete(PROMPT, logprobs=2, max_tokens=20, **WILD)["logprobs"]
    parts = [
        choice["logprobs"] for chunk in model.stream(TEXT, prompt=PROMPT, logprobs=2, max_tokens=20, **WILD) for choice in chunk["choices"]
    ]
    assert [token for part in parts if part for token in part["tokens"]] == whole["tokens"]
    assert [value for part in parts if part for value in part["token_logprobs"]] == pytest.approx(whole["token_logprobs"], abs=1e-4)
    assert [offset for part in parts if part for offset in part["text_offset"]] == whole["text_offset"]


def test_the_score_of_a_text_has_the_log_probabilities_of_its_echo(model: LocalModel) -> None:
    text = "The old king sat by the fire, and none of his three sons would stay at home."
    echoed = model.complete(text, echo=True, logprobs=0, max_tokens=0)["logprobs"]["token_logprobs"]
    (item,) = model.post("/v1/score", text=text, granularity="token")["data"]
    assert [token["logprob"] for token in item["tokens"]] == pytest.approx(echoed[1:], abs=1e-4)

"""Ids of tokens, what ended an answer, and allowed tokens, in every precision, with drafts and after a death."""

from typing import Any

import pytest
from inprocess import CHAT, TEXT, LocalModel
from precisions.conftest import PRECISIONS, RECORDED

PROMPT = "The fox said to the crow: give me half of your cheese, and"
FREE: dict[str, Any] = {"temperature": 1.2, "seed": 5, "max_tokens": 24, "ignore_eos": True}
MESSAGES = [{"role": "user", "content": "A fox?"}]


@pytest.mark.parametrize("model", [*PRECISIONS, RECORDED], indirect=True)
def test_no_other_token_comes_than_those_that_are_allowed(model: LocalModel) -> None:
    allowed = [300, 301, 302, 303]
    free = model.complete(PROMPT, return_token_ids=True, **FREE)["token_ids"]
    for temperature in (0, 1.2):
        found = model.complete(PROMPT, return_token_ids=True, allowed_token_ids=allowed, **{**FREE, "temperature": temperature})
        assert len(found["token_ids"]) == 24 and set(found["token_ids"]) <= {*allowed} and found["finish_reason"] == "length"
    assert not {*free} <= {*allowed}
    (end, *_) = model.tokenizer.end_tokens()
    ended = model.complete(PROMPT, return_token_ids=True, allowed_token_ids=[end], max_tokens=5)
    assert (ended["token_ids"], ended["finish_reason"], ended["stop_reason"]) == ([end], "stop", None)


@pytest.mark.parametrize("model", [*PRECISIONS, RECORDED], indirect=True)
def test_the_ids_are_those_of_the_text_whole_and_streamed(steady: LocalModel) -> None:
    whole = steady.complete(PROMPT, return_token_ids=True, **FREE)
    assert whole["prompt_token_ids"] == steady.encode(PROMPT) and len(whole["token_ids"]) == 24
    assert steady.answer_ids(PROMPT, **FREE) == whole["token_ids"]
    for steps in (None, 5):
        steady.worker.dies_after = steps
        sent = [chunk["choices"][0] for chunk in steady.stream(TEXT, prompt=PROMPT, return_token_ids=True, **FREE)]
        assert steady.worker.dies_after is None
        assert [token for choice in sent for token in choice["token_ids"]] == whole["token_ids"]
        assert [choice.get("prompt_token_ids") for choice in sent] == [whole["prompt_token_ids"], *[None] * (len(sent) - 1)]
        assert "".join(choice["text"] for choice in sent) == whole["text"]


def test_a_stop_string_of_several_tokens_may_stay(steady: LocalModel) -> None:
    text = steady.complete(PROMPT, **FREE)["text"]
    stop = text[len(text) // 2 : len(text) // 2 + 6]
    end = text.index(stop)
    for steps in (None, 5):
        steady.worker.dies_after = steps
        kept = steady.complete(PROMPT, stop=[stop], include_stop_str_in_output=True, **FREE)
        steady.worker.dies_after = None
        assert (kept["text"], kept["stop_reason"], kept["finish_reason"]) == (text[: end + len(stop)], stop, "stop")
    assert steady.complete(PROMPT, stop=[stop], **FREE)["text"] == text[:end]


def test_a_stop_token_is_named_and_may_stay(steady: LocalModel) -> None:
    ids = steady.complete(PROMPT, return_token_ids=True, **FREE)["token_ids"]
    stop = next(token for token in ids[3:] if not steady.tokenizer.piece(token).special and steady.tokenizer.piece(token).data.isascii())
    ended = steady.complete(PROMPT, stop_token_ids=[stop], return_token_ids=True, include_stop_str_in_output=True, **FREE)
    assert ended["stop_reason"] == stop == ended["token_ids"][-1] and ended["token_ids"] == ids[: ids.index(stop) + 1]
    cut = steady.complete(PROMPT, stop_token_ids=[stop], **FREE)["text"]
    assert ended["text"] == cut + steady.tokenizer.piece(stop).text


def test_the_log_probabilities_of_a_prompt_are_those_of_its_echo(model: LocalModel) -> None:
    echo = model.complete(PROMPT, echo=True, max_tokens=0, logprobs=3)["logprobs"]
    told = model.complete(PROMPT, max_tokens=1, prompt_logprobs=3)["prompt_logprobs"]
    own = [None if entry is None else entry[str(token)] for entry, token in zip(told, model.encode(PROMPT), strict=True)]
    assert own[0] is None and [entry["logprob"] for entry in own[1:]] == pytest.approx(echo["token_logprobs"][1:], abs=1e-4)
    assert [entry["decoded_token"] for entry in own[1:]] == echo["tokens"][1:]
    for entry in told[1:]:
        ranked = sorted((each for each in entry.values() if each["rank"] is not None), key=lambda each: each["rank"])
        assert [each["rank"] for each in ranked] == [1, 2, 3]
        assert [each["logprob"] for each in ranked] == sorted((each["logprob"] for each in ranked), reverse=True)
    chat = model.post(CHAT, messages=MESSAGES, max_tokens=1, prompt_logprobs=0, return_token_ids=True)
    assert [list(entry)[0] for entry in chat["prompt_logprobs"][1:]] == [str(token) for token in chat["prompt_token_ids"][1:]]

"""What each sampling parameter does in every precision, seen in the log-probabilities of the answer or against transformers' logits."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from inprocess import CHAT, LocalModel
from reference import Reference

PROMPT = "The fox said to the crow: give me half of your cheese, and"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 30}
FREE: dict[str, Any] = {"temperature": 1.5, "top_k": 0, "top_p": 1, "min_p": 0, "max_tokens": 30, "seed": 5, "ignore_eos": True}


def logprobs(model: LocalModel, **fields: Any) -> list[dict[str, Any]]:
    messages = [{"role": "user", "content": "A fox?"}]
    answer = model.post(CHAT, messages=messages, logprobs=True, top_logprobs=20, **FREE | fields)
    content: list[dict[str, Any]] = answer["choices"][0]["logprobs"]["content"]
    return content


def likeliest(entry: dict[str, Any]) -> list[float]:
    return [one["logprob"] for one in entry["top_logprobs"]]


def test_top_k_keeps_the_likeliest(model: LocalModel) -> None:
    assert all(entry["logprob"] >= likeliest(entry)[3] for entry in logprobs(model, top_k=4))
    assert any(entry["logprob"] < likeliest(entry)[3] for entry in logprobs(model))


def test_top_p_keeps_the_nucleus(model: LocalModel) -> None:
    def mass_before(entry: dict[str, Any]) -> float:
        return sum(math.exp(value) for value in likeliest(entry) if value > entry["logprob"])

    assert all(mass_before(entry) < 0.3 for entry in logprobs(model, temperature=1, top_p=0.3))
    assert any(mass_before(entry) > 0.3 for entry in logprobs(model, temperature=1))


def test_min_p_keeps_what_is_not_far_behind_the_likeliest(model: LocalModel) -> None:
    def behind(entry: dict[str, Any]) -> float:
        return (likeliest(entry)[0] - entry["logprob"]) / 1.5

    assert all(behind(entry) <= -math.log(0.3) + 1e-4 for entry in logprobs(model, min_p=0.3))
    assert any(behind(entry) > -math.log(0.3) for entry in logprobs(model))


def test_a_low_temperature_is_nearly_greedy_and_a_filter_to_one_token_is(model: LocalModel, reference: Reference) -> None:
    def surprise(temperature: float) -> float:
        return -sum(entry["logprob"] for entry in logprobs(model, temperature=temperature))

    assert surprise(0) < surprise(0.3) < surprise(2)
    for fields in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1}):
        reference.check_greedy(model.encode(PROMPT), model.answer_ids(PROMPT, **FREE | fields | {"max_tokens": 16}))


def test_penalties_change_the_logits_as_they_say(model: LocalModel, reference: Reference) -> None:
    """Of tokens that a bias makes likely, so that a plain answer repeats them."""
    prompt, bias = model.encode(PROMPT), {300: 6.0, 301: 5.0, 302: 4.0}
    fields: dict[str, Any] = {**GREEDY, "logit_bias": {str(token): value for token, value in bias.items()}}

    def favour(row: torch.Tensor, _: Sequence[int]) -> torch.Tensor:
        row[list(bias)] += torch.tensor(list(bias.values()))
        return row

    def subtract(row: torch.Tensor, answer: Sequence[int]) -> torch.Tensor:
        row = favour(row, answer)
        for token, count in Counter(answer).items():
            row[token] -= 0.75 + 0.5 * count
        return row

    def divide(row: torch.Tensor, answer: Sequence[int]) -> torch.Tensor:
        row, seen = favour(row, answer), list({*prompt, *answer})
        row[seen] = torch.where(row[seen] < 0, row[seen] * 1.8, row[seen] / 1.8)
        return row

    plain = model.answer_ids(PROMPT, **fields)
    reference.check_greedy(prompt, plain, favour)
    penalized = model.answer_ids(PROMPT, **fields, presence_penalty=0.75, frequency_penalty=0.5)
    reference.check_greedy(prompt, penalized, subtract)
    repeated = model.answer_ids(PROMPT, **fields, repetition_penalty=1.8)
    reference.check_greedy(prompt, repeated, divide)
    assert len(set(plain)) < min(len(set(penalized)), len(set(repeated)))


def test_logit_bias_and_bad_words_ban_and_force(model: LocalModel, reference: Reference) -> None:
    prompt, plain = model.encode(PROMPT), model.answer_ids(PROMPT, **GREEDY)
    common, _ = Counter(plain).most_common(1)[0]

    def ban(row: torch.Tensor, _: Sequence[int]) -> torch.Tensor:
        row[common] -= 100
        return row

    banned = model.answer_ids(PROMPT, **GREEDY, logit_bias={str(common): -100})
    reference.check_greedy(prompt, banned, ban)
    assert common not in banned
    assert set(model.answer_ids(PROMPT, **GREEDY, logit_bias={"40": 100})) == {40}
    place, word = next((place, model.tokenizer.decode(plain[place : place + 2])) for place in range(28) if is_word(model, plain, place))
    changed = model.answer_ids(PROMPT, **GREEDY, bad_words=[word])
    assert changed[: place + 1] == plain[: place + 1] and changed[place + 1] != plain[place + 1]
    assert plain[place : place + 2] not in [changed[first : first + 2] for first in range(29)]


def is_word(model: LocalModel, tokens: list[int], place: int) -> bool:
    """Whether two tokens are how the tokenizer writes their text, and no such two come before."""
    pair = tuple(tokens[place : place + 2])
    return model.tokenizer.word_encodings(model.tokenizer.decode(list(pair)), "bad_words") == [pair]

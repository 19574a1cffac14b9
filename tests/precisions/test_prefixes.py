"""What the cache holds is used again, and long prompts come in pieces, in every precision; neither changes an answer."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from inprocess import CHAT, TEXT, LocalModel
from reference import Reference

STORY = "There was a fox who wanted half of a crow's cheese. The crow sat on a gate and had a great deal to say about nothing at all. "
ANSWER: dict[str, Any] = {"seed": 8, "temperature": 0.8, "max_tokens": 24, "logprobs": True, "ignore_eos": True}


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def check_answer(model: LocalModel, reference: Reference, messages: list[dict[str, str]], answer: dict[str, Any]) -> None:
    """The log-probabilities are those of the whole conversation; in float32 the answer is that of a conversation computed anew."""
    ids, choice = model.post("/tokenize", messages=messages)["tokens"], answer["choices"][0]
    tokens = model.ids_of([entry["token"] for entry in choice["logprobs"]["content"]])
    values = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    assert values == pytest.approx(reference.logprobs([*ids, *tokens])[len(ids) - 1 :], abs=reference.tolerance)
    if model.name == "float32":
        anew = model.post(TEXT, prompt=ids, **{**ANSWER, "logprobs": 0}, echo=True)  # an echo needs every token of the prompt computed
        assert cached(anew) == 0 and model.ids_of(anew["choices"][0]["logprobs"]["tokens"]) == [*ids, *tokens]


def test_a_second_turn_reuses_the_first(model: LocalModel, reference: Reference) -> None:
    messages = [{"role": "user", "content": f"{model.name}: {STORY}"}]
    first = model.post(CHAT, messages=messages, **ANSWER)
    messages += [{"role": "assistant", "content": first["choices"][0]["message"]["content"]}, {"role": "user", "content": "And then?"}]
    second = model.post(CHAT, messages=messages, **ANSWER)
    assert first["usage"]["prompt_tokens"] <= cached(second) < second["usage"]["prompt_tokens"]
    decision = model.slots()["decisions"][-1]
    assert decision["reused_tokens"] == cached(second) and decision["reason"].startswith(f"the cache holds {cached(second)} of")
    check_answer(model, reference, messages, second)


def test_answers_at_once_share_a_prefix(model: LocalModel, reference: Reference) -> None:
    """Full pages are shared; of the page in which the conversations begin to differ each gets a copy of what they have in common."""
    shared = {"role": "system", "content": f"{model.name} {STORY}"}
    model.post(CHAT, messages=[shared, {"role": "user", "content": "Hello"}], max_tokens=2)
    conversations = [[shared, {"role": "user", "content": question}] for question in ("Who?", "Where?", "Why did it happen?")]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda messages: model.post(CHAT, messages=messages, **ANSWER), conversations))
    for messages, answer in zip(conversations, answers, strict=True):
        assert cached(answer) > 100
        check_answer(model, reference, messages, answer)


def test_a_long_prompt_in_pieces_beside_an_answer(model: LocalModel, reference: Reference) -> None:
    """A prompt of more than three steps, while another answer is under way."""
    prompt = model.encode(STORY * 3)[:220]
    assert len(prompt) > 3 * model.engine.limits.step_tokens
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(model.answer_ids, "Once upon a time", max_tokens=120, temperature=0, ignore_eos=True)
        ids = pool.submit(model.answer_ids, prompt, max_tokens=30, temperature=0).result(60)
        reference.check_greedy(model.encode("Once upon a time"), other.result(60))
    reference.check_greedy(prompt, ids)
    echoed = model.complete(prompt, echo=True, logprobs=0, max_tokens=0)["logprobs"]["token_logprobs"]
    assert echoed[1:] == pytest.approx(reference.logprobs(prompt), abs=reference.tolerance)

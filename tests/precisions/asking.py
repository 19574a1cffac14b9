"""Requests of every kind and every feature; the answer to each by itself, without drafts; and whether two answers are the same."""

import math
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from drafting import undrafted
from inprocess import CHAT, TEXT, LocalModel

Request = tuple[str, dict[str, Any]]

WORDS = "fox crow king wolf girl bear lamp ship tower garden mouse giant".split()
PASSING = frozenset({"id", "created", "timing", "prompt_tokens_details", "completion_tokens_details"})  # differ from answer to answer
CHOICE = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["fox", "crow", "wolf"]}}}
NUMBERS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 5}
CALL = {"type": "function", "function": {"name": "count", "parameters": {"type": "object", "properties": {"numbers": NUMBERS}}}}


WILD: dict[str, Any] = {"temperature": 1.2, "top_k": 0, "top_p": 1, "min_p": 0, "ignore_eos": True, "max_tokens": 24}
FORM = {
    "type": "object",
    "properties": {"the_name_of_the_thief": {"type": "string", "maxLength": 9}, "what_was_stolen_yesterday": NUMBERS},
    "required": ["the_name_of_the_thief", "what_was_stolen_yesterday"],
    "additionalProperties": False,
}
GBNF = 'root ::= "The animals are " animal (" and " animal){1,3} "."\nanimal ::= "foxes" | "crows" | [a-z]{2,5}'
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": FORM}}


def prompt(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def requests() -> list[Request]:
    """One of each kind; prompts and texts of more than one step among them."""
    rng = random.Random(1)
    message = [{"role": "user", "content": prompt(rng, 4)}]
    return [
        (CHAT, {"messages": message, "seed": 1, "temperature": 1.1, "max_tokens": 20, "logprobs": True, "top_logprobs": 3}),
        (CHAT, {"messages": message, "seed": 1, "temperature": 1.3, "max_tokens": 60, "response_format": CHOICE}),
        (CHAT, {"messages": message, "seed": 1, "temperature": 1.3, "max_tokens": 60, "tools": [CALL], "tool_choice": "required"}),
        (TEXT, {"prompt": prompt(rng, 40), "seed": 1, "temperature": 0.9, "top_p": 0.9, "max_tokens": 20, "frequency_penalty": 1}),
        (TEXT, {"prompt": prompt(rng, 3), "seed": 2, "n": 2, "best_of": 3, "temperature": 1.5, "max_tokens": 16, "min_p": 0.02}),
        (TEXT, {"prompt": prompt(rng, 30), "temperature": 0, "echo": True, "logprobs": 2, "max_tokens": 12, "service_tier": "flex"}),
        ("/generate", {"prompt": prompt(rng, 6), "num_beams": 3, "max_length": 12}),
        ("/generate", {"prompt": prompt(rng, 6), "penalty_alpha": 0.6, "top_k": 3, "max_length": 12}),
        ("/v1/score", {"texts": [prompt(rng, 20), prompt(rng, 90)], "granularity": "token"}),
        ("/v1/score", {"text": prompt(rng, 30), "methods": ["fast_detect", "log_rank"], "granularity": "sentence"}),
    ]


def check_same(one: Any, other: Any, where: str = "") -> None:
    """Numbers may differ by what float32 sums differ by; whatever passes is not looked at."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one.keys() - PASSING:
            check_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for place, pair in enumerate(zip(one, other, strict=True)):
            check_same(*pair, f"{where}.{place}")
    elif where.endswith(".rank"):
        assert abs(one - other) <= 1, where  # two tokens may be as likely but for those digits
    elif isinstance(one, float):
        assert math.isclose(one, other, rel_tol=1e-5, abs_tol=2e-4), (where, one, other)
    else:
        assert one == other, where


def features() -> list[Request]:
    rng = random.Random(3)
    ask: dict[str, Any] = {"messages": [{"role": "user", "content": prompt(rng, 5)}]}
    tell: dict[str, Any] = {"prompt": prompt(rng, 9)}
    bias = {"300": 6.0, "301": 5.0, "302": 4.0}
    return [
        (TEXT, {**tell, "temperature": 0, "max_tokens": 30, "ignore_eos": True, "logprobs": 3}),
        (TEXT, {**tell, **WILD, "seed": 1, "repetition_penalty": 1.4, "logit_bias": bias}),
        (TEXT, {**tell, **WILD, "seed": 2, "presence_penalty": 1.5, "frequency_penalty": 0.7, "logit_bias": bias, "logprobs": 1}),
        (TEXT, {**tell, **WILD, "seed": 3, "bad_words": ["the", "a fox"], "top_p": 0.8}),
        (TEXT, {**tell, **WILD, "seed": 4, "ignore_eos": False, "min_tokens": 9, "stop_token_ids": list(range(300, 340)), "n": 2}),
        (TEXT, {**tell, **WILD, "seed": 5, "stop": ["e", "qu"], "min_tokens": 6, "n": 2, "logprobs": 0}),
        (TEXT, {**tell, **WILD, "seed": 6, "top_k": 4, "echo": True, "logprobs": 1}),
        (CHAT, {**ask, **WILD, "seed": 7, "ignore_eos": False, "max_tokens": 90, "response_format": FORMAT, "logprobs": True}),
        (CHAT, {**ask, **WILD, "seed": 8, "ignore_eos": False, "max_tokens": 34, "response_format": FORMAT}),  # completed to fit
        (CHAT, {**ask, **WILD, "seed": 9, "ignore_eos": False, "response_format": CHOICE}),
        (CHAT, {**ask, **WILD, "seed": 10, "ignore_eos": False, "max_tokens": 80, "tools": [CALL], "n": 2}),
        (CHAT, {**ask, **WILD, "seed": 11, "ignore_eos": False, "structured_outputs": {"regex": "the [a-z]{3,9} of the (north|south)"}}),
        (
            CHAT,
            {**ask, **WILD, "seed": 12, "ignore_eos": False, "guided_choice": ["the fox of the north", "the fox of the south", "crow"]},
        ),
        (TEXT, {**tell, **WILD, "seed": 13, "ignore_eos": False, "grammar": GBNF, "n": 2, "logprobs": 1}),
    ]


def ask_all(model: LocalModel, sent: list[Request], at_once: bool) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(len(sent) if at_once else 1) as pool:
        return list(pool.map(lambda request: model.post(request[0], **request[1]), sent))


@dataclass
class Plain:
    """What is sent, each answer to it by itself and without drafts, and the tokens of those answers."""

    sent: list[Request]
    answers: list[dict[str, Any]]
    heard: list[list[int]]

    @property
    def features(self) -> list[dict[str, Any]]:
        return self.answers[: len(features())]

    @property
    def requests(self) -> list[dict[str, Any]]:
        return self.answers[len(features()) :]


def ask_plainly(model: LocalModel) -> Plain:
    sent = [*features(), *requests()]
    with undrafted(model.engine.scheduler) as heard:
        answers = ask_all(model, sent, at_once=False)
    return Plain(sent, answers, heard)

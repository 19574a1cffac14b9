"""The requests of the load, a fixed list for each client, so that every answer can be known before anything is disturbed. Pure."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from loadtest.prompts import random_text, story_request

Kind = Literal["stream", "chat", "completion", "score", "probe"]
KINDS: tuple[Kind, ...] = ("stream", "chat", "completion", "score")
CHAT, COMPLETIONS, SCORE = "/v1/chat/completions", "/v1/completions", "/v1/score"
FORM = {
    "type": "json_schema",
    "json_schema": {
        "name": "animal",
        "schema": {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 40}, "legs": {"type": "integer", "minimum": 0, "maximum": 8}},
            "required": ["name", "legs"],
            "additionalProperties": False,
        },
    },
}
# What an answer that goes on after a worker's death has to carry over: penalties, stop strings, forms, log-probabilities, several choices.
VARIANTS: tuple[Mapping[str, Any], ...] = (
    {},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.4},
    {"stop": [" and the", "\n\n"]},
    {"n": 2},
    {"logprobs": True, "top_logprobs": 2},
    {"response_format": FORM},
)
COMPLETION_VARIANTS: tuple[Mapping[str, Any], ...] = ({}, {"presence_penalty": 0.5}, {"logprobs": 2}, {"stop": ["."]})


@dataclass(frozen=True, slots=True)
class Request:
    """`name` is unique in a run; undisturbed answers are kept under it."""

    name: str
    kind: Kind
    path: str
    body: Mapping[str, Any]

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))


PROBE = Request("probe", "probe", COMPLETIONS, {"prompt": "Once", "max_tokens": 1, "temperature": 0})


def client_requests(client: int, count: int, seed: int, tokens: int) -> list[Request]:
    """The list of one client: the kinds in turn, each client beginning with another one."""
    return [_request(client, index, seed, tokens) for index in range(count)]


def _request(client: int, index: int, seed: int, tokens: int) -> Request:
    rng = random.Random(f"{seed}/{client}/{index}")
    kind = KINDS[(client + index) % len(KINDS)]
    name = f"{client}/{index}"
    if kind == "score":
        return Request(name, kind, SCORE, {"text": random_text(rng, rng.randint(40, 200))})
    sampling = {"max_tokens": rng.randint(tokens // 2, tokens), "temperature": rng.choice([0, 0.7, 1.0]), "seed": rng.randrange(2**31)}
    if kind == "completion":
        variant = rng.choice(COMPLETION_VARIANTS)
        return Request(name, kind, COMPLETIONS, {"prompt": random_text(rng, 12), "stream": rng.random() < 0.5, **sampling, **variant})
    usage = {"stream_options": {"include_usage": True}} if kind == "stream" else {}
    messages = [{"role": "user", "content": story_request(rng, rng.randint(5, 40))}]
    return Request(name, kind, CHAT, {"messages": messages, "stream": kind == "stream", **usage, **sampling, **rng.choice(VARIANTS)})


def shuffled(requests: Sequence[Request], count: int, seed: str) -> list[Request]:
    """`count` of the requests in a random order, again from the start where there are fewer."""
    order = random.Random(seed).sample(list(requests), len(requests))
    return [order[index % len(order)] for index in range(count)]

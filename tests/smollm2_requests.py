"""Requests to SmolLM2-135M-Instruct, and what must not differ between two answers to one."""

import json
from typing import Any, Literal

import httpx
from pydantic import BaseModel, Field
from serving import RunningServer

NAME = "smollm2-135m-instruct"
PARAGRAPH = (
    "My grandmother kept the key to the attic on a nail behind the clock, where every child in the house knew to look for it. Up there the "
    "air smelled of apples and old newspaper. She had promised us a sledge, and when the first snow came she kept her word; it took three "
    "of us to drag the thing down two flights of stairs, past my uncle's bicycle, and out into the yard."
)
GREEDY: dict[str, Any] = {"model": NAME, "temperature": 0}
LETTERS = "Grüße: 日本語, 한국어, 🦊🧀 and 👨‍👩‍👧!"


class Animal(BaseModel):
    name: Literal["fox", "crow", "whale"]
    legs: int = Field(ge=0, le=8)
    can_fly: bool
    sounds: list[Literal["bark", "caw", "song"]] = Field(min_length=1, max_length=2)


def post(server: RunningServer, path: str, **body: Any) -> dict[str, Any]:
    response = httpx.post(f"{server.url}{path}", json=body, timeout=300)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def as_schema(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def requests() -> list[tuple[str, dict[str, Any]]]:
    animal = Animal.model_json_schema()
    chats = [(f"Tell me about {topic}.", seed) for seed, topic in enumerate(["bread", "rivers", "Rome", "bees", "chess", "snow"])]
    return [
        *(("/v1/chat/completions", {"messages": user(text), "seed": seed, "max_tokens": 20}) for text, seed in chats),
        *(
            ("/v1/chat/completions", {"messages": user("An animal?"), "seed": seed, "response_format": as_schema(animal)})
            for seed in (1, 2)
        ),
        *(("/v1/completions", {"prompt": text, "temperature": 0, "max_tokens": 16, "logprobs": 2}) for text in ("Once upon", "x = [1,")),
        ("/v1/completions", {"prompt": "The best bread", "n": 2, "best_of": 3, "seed": 5, "max_tokens": 12, "presence_penalty": 0.5}),
        ("/generate", {"prompt": "Snow is", "num_beams": 3, "max_length": 12}),
        ("/generate", {"prompt": "Snow is", "penalty_alpha": 0.6, "top_k": 3, "max_length": 12}),
        *(("/v1/score", {"text": PARAGRAPH[start:], "granularity": "token"}) for start in (0, 40, 90)),
    ]


def content(answer: dict[str, Any]) -> str:
    """What must not differ between two answers to one request, numbers rounded."""
    kept = {key: value for key, value in answer.items() if key in {"choices", "gen_text", "data"}}
    rounded = json.loads(json.dumps(kept), parse_float=lambda digits: round(float(digits), 2))
    return json.dumps(rounded, sort_keys=True)


def pieces(chunks: Any) -> list[str]:
    return [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]

"""What every client asks. Any model can answer: a grammar enforces the call and the forms."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

QUESTION = "Tell me a story about a fox and a crow."
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
FORMAL: dict[str, Any] = {"temperature": 0, "max_tokens": 100}  # a call and a form fit in it
CUT = 700  # tokens of an answer that its client does not leave
ENDLESS: dict[str, Any] = {"ignore_eos": True}  # beside `max_tokens=CUT`
PLACES = ("wood", "hill", "mill")
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "The weather at a place.",
    "parameters": {
        "type": "object",
        "properties": {"place": {"type": "string", "enum": list(PLACES)}},
        "required": ["place"],
        "additionalProperties": False,
    },
}
TOOL: dict[str, Any] = {"type": "function", "function": WEATHER}


class Thief(BaseModel):
    """Who took the cheese."""

    animal: Literal["fox", "crow", "wolf"]
    age: int = Field(ge=0, le=99)
    guilty: bool


class Herd(BaseModel):
    """A form whose shortest answer has more than CUT tokens: where `ignore_eos` cannot be asked for."""

    animals: Annotated[list[Literal["fox", "crow", "wolf"]], Field(min_length=CUT // 2, max_length=CUT // 2)]

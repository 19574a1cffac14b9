"""How long a reasoning model thinks before its answer: fields of a chat, by the names that several servers have for them."""

from typing import Literal

from pydantic import Field, model_validator

from app.schemas.wire import Int, OnlyFalse, Wire, contradiction

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
EFFORT = "how long the model thinks, if its chat template has a place for it; if it has only a switch, none turns it off, the others on"
LIMIT = "limit of the thought in tokens, without its marks; where it is reached, the thought is closed and the answer begins; 0: no thought"
UNLIMITED = -1


class Reasoning(Wire):
    """As OpenRouter has it."""

    effort: Effort | None = Field(None, description=EFFORT)
    max_tokens: Int | None = Field(None, ge=0, description=LIMIT)
    enabled: bool | None = Field(None, description="whether the model thinks, if its chat template can say so")
    exclude: OnlyFalse | None = Field(None, description="false only: the thought is part of the answer")


class ThoughtFields(Wire):
    reasoning_effort: Effort | None = Field(None, description=EFFORT)
    reasoning: Reasoning | None = Field(None, description="the same in one object, in OpenRouter's form")
    thinking_token_budget: Int | None = Field(None, ge=UNLIMITED, description=f"{LIMIT}; -1: no limit")
    thinking_budget_tokens: Int | None = Field(None, ge=UNLIMITED, description="llama-server's name of thinking_token_budget")
    reasoning_budget_tokens: Int | None = Field(None, ge=UNLIMITED, description="another name of thinking_token_budget")

    @model_validator(mode="after")
    def _says_one_thing(self) -> "ThoughtFields":
        for said in (self._limits, self._efforts):
            if len(set(said.values())) > 1:
                raise contradiction(said)
        return self

    @property
    def max_thought_tokens(self) -> int | None:
        """None: a thought ends where the model ends it."""
        limit = next(iter(self._limits.values()), UNLIMITED)
        return None if limit == UNLIMITED else limit

    @property
    def effort(self) -> tuple[str, Effort] | None:
        """The field that says it, and what it says."""
        return next(iter(self._efforts.items()), None)

    @property
    def _limits(self) -> dict[str, int]:
        names = ("thinking_token_budget", "thinking_budget_tokens", "reasoning_budget_tokens")
        said = {name: getattr(self, name) for name in names} | {"reasoning.max_tokens": self.reasoning and self.reasoning.max_tokens}
        return {name: limit for name, limit in said.items() if limit is not None}

    @property
    def _efforts(self) -> dict[str, Effort]:
        reasoning = self.reasoning or Reasoning()
        said = {"reasoning_effort": self.reasoning_effort, "reasoning.effort": reasoning.effort}
        efforts = {name: effort for name, effort in said.items() if effort is not None}
        return efforts | ({"reasoning.enabled": "none"} if reasoning.enabled is False else {})

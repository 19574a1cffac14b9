"""One conversation as a tree of turns: each edit of a question and each new try of an answer is a branch beside the old one.

Pure: knows no page, no wire and no storage. The browser keeps it as the JSON that `dump` writes.
"""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MAX_CHARACTERS = 1_000_000  # of the JSON, which the page sends with each question

Finish = Literal["stop", "length", "full", "stopped", "failed"]  # "length" is a limit of tokens, "full" the end of the context


class ConversationError(ValueError):
    """The text is not a conversation of this page. Its message is a sentence for the visitor."""


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Facts(_Kept):
    """What is known of one answer beside its text: who gave it, how it can be repeated, how fast it was, how it ended."""

    model: str = ""
    precision: str = ""
    seed: int | None = None
    ttft_ms: float | None = None
    tokens_per_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish: Finish = "stop"
    problem: str = ""  # a sentence, of an answer that failed

    def after(self, earlier: "Facts | None") -> "Facts":
        """The facts of an answer that was continued: prompt and seed are those of its first part, the rest of the tokens is the answer."""
        if earlier is None:
            return self
        first = {"seed": self.seed if earlier.seed is None else earlier.seed}
        if None in (earlier.prompt_tokens, self.prompt_tokens, self.completion_tokens):
            return self.model_copy(update=first)
        tokens = (self.prompt_tokens or 0) + (self.completion_tokens or 0) - (earlier.prompt_tokens or 0)
        return self.model_copy(update={**first, "prompt_tokens": earlier.prompt_tokens, "completion_tokens": tokens})


class Turn(_Kept):
    """A question or an answer. `parent` is the index of the turn that it follows."""

    role: Literal["user", "assistant"]
    text: str
    parent: int | None = None
    thought: str = ""
    facts: Facts | None = None


class Conversation(_Kept):
    """`leaf` is the last turn of the branch that is shown; None shows an empty one."""

    id: str = Field(pattern=r"^[A-Za-z0-9-]{1,64}$")
    turns: tuple[Turn, ...] = ()
    leaf: int | None = None

    @model_validator(mode="after")
    def _is_a_tree(self) -> Self:
        for index, turn in enumerate(self.turns):
            if turn.parent is None:
                role = "assistant"
            elif 0 <= turn.parent < index:
                role = self.turns[turn.parent].role
            else:
                raise ValueError("a turn follows one that does not stand before it")
            if turn.role == role:
                raise ValueError("questions and answers must alternate, beginning with a question")
        if self.leaf is not None and not 0 <= self.leaf < len(self.turns):
            raise ValueError("the last turn does not exist")
        return self

    def dump(self) -> str:
        return self.model_dump_json(exclude_defaults=True)

    @property
    def path(self) -> list[int]:
        """Indices of the turns that are shown, the first one first."""
        indices, index = [], self.leaf
        while index is not None:
            indices.append(index)
            index = self.turns[index].parent
        return indices[::-1]

    @property
    def last(self) -> Turn | None:
        return None if self.leaf is None else self.turns[self.leaf]

    def versions(self, index: int) -> list[int]:
        """The branches beside this turn, itself included, oldest first."""
        return [other for other, turn in enumerate(self.turns) if turn.parent == self.turns[index].parent]

    def ask(self, text: str) -> Self:
        """Adds a question. One that got no answer gives its place to the new one."""
        kept = self._without_empty_end()
        if kept.last is not None and kept.last.role == "user":
            return kept.edit(kept._leaf, text) if kept._leaf < len(kept.turns) - 1 else kept._cut().ask(text)
        return kept._add(Turn(role="user", text=text, parent=kept.leaf))

    def edit(self, index: int, text: str) -> Self:
        """Asks something else in the place of a question, in a branch of its own."""
        return self._add(Turn(role="user", text=text, parent=self.turns[index].parent))

    def retry(self, index: int) -> Self:
        """Goes back to the question of an answer, so that another answer can be added beside it."""
        turn = self.turns[index]
        return self._show(turn.parent if turn.role == "assistant" else index) if index != self.leaf else self._retry_last()

    def answer(self, text: str, thought: str, facts: Facts) -> Self:
        """Adds an answer to the question that is the last turn."""
        return self._add(Turn(role="assistant", text=text, thought=thought, facts=facts, parent=self.leaf))

    def extend(self, text: str, facts: Facts) -> Self:
        """Puts more text to the end of the answer that is the last turn, and renews its facts. Without text they stay, unless the model
        found the answer complete.
        """
        turn = self.turns[self._leaf]
        if not text and facts.finish != "stop":
            return self
        renewed = facts.after(turn.facts) if text or turn.facts is None else turn.facts.model_copy(update={"finish": "stop", "problem": ""})
        longer = turn.model_copy(update={"text": turn.text + text, "facts": renewed})
        return self.model_copy(update={"turns": (*self.turns[: self._leaf], longer, *self.turns[self._leaf + 1 :])})

    def undo(self) -> Self:
        """Goes back to before the last question. The branch is kept."""
        turn = self.turns[self._leaf]
        return self._show(turn.parent if turn.role == "user" or turn.parent is None else self.turns[turn.parent].parent)

    def show(self, index: int) -> Self:
        """Shows the branch of this turn, down to its newest end."""
        while followers := [other for other, turn in enumerate(self.turns) if turn.parent == index]:
            index = followers[-1]
        return self._show(index)

    @property
    def _leaf(self) -> int:
        if self.leaf is None:
            raise ConversationError("This conversation has no turn yet.")
        return self.leaf

    def _retry_last(self) -> Self:
        kept = self._without_empty_end()
        return kept._show(kept.turns[kept._leaf].parent) if kept.turns[kept._leaf].role == "assistant" else kept

    def _without_empty_end(self) -> Self:
        """Leaves out an answer without text that is the last turn of all."""
        last = self.last
        empty = last is not None and last.role == "assistant" and not last.text and self.leaf == len(self.turns) - 1
        return self._cut() if empty else self

    def _cut(self) -> Self:
        return self.model_copy(update={"turns": self.turns[:-1], "leaf": self.turns[-1].parent})

    def _add(self, turn: Turn) -> Self:
        return self.model_copy(update={"turns": (*self.turns, turn), "leaf": len(self.turns)})

    def _show(self, leaf: int | None) -> Self:
        return self.model_copy(update={"leaf": leaf})


def load(text: str) -> Conversation:
    """Reads what `dump` wrote. Raises `ConversationError`."""
    try:
        return Conversation.model_validate_json(text)
    except ValidationError as error:
        raise ConversationError("This is not a conversation that the page can read. It may come from another version of it.") from error


def request_messages(conversation: Conversation) -> list[dict[str, str]]:
    """What is shown, as the `messages` of a request. Questions whose answer has no text are left out, unless they are the last."""
    turns = [conversation.turns[index] for index in conversation.path]
    return [{"role": turn.role, "content": turn.text} for turn in _answered(turns)]


def _answered(turns: Sequence[Turn]) -> list[Turn]:
    kept: list[Turn] = []
    for turn in turns:
        if turn.role == "assistant" and not turn.text:
            kept.pop()  # its question
        else:
            kept.append(turn)
    return kept

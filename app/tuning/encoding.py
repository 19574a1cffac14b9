"""From an example to token ids, and which of them are learnt. A conversation is rendered by the model's own chat template.

What is learnt is what the model would have to write: a message of the assistant with the mark that ends it, a completion, a whole text.
"""

import json
from dataclasses import dataclass
from typing import Any

from app.errors import InvalidRequest
from app.forms.tools import ToolFormat
from app.schemas.messages import Message
from app.tokenizer import Tokenizer, check_unicode
from app.tokenizer.chat import TEMPLATE_ROLES
from app.tuning.examples import Completion, Conversation, Example, Text, WrongLine


@dataclass(frozen=True, slots=True)
class Sequence:
    ids: tuple[int, ...]
    learnt: tuple[bool, ...]

    @property
    def has_effect(self) -> bool:
        """The first token of a sequence follows nothing, so it is never predicted."""
        return any(self.learnt[1:])


class Encoder:
    """`context` is the longest sequence in tokens. `setting`: that gave it; None: the model holds no more."""

    def __init__(self, tokenizer: Tokenizer, context: int, setting: str | None = None) -> None:
        self._tokenizer, self._context, self._setting = tokenizer, context, setting
        format = tokenizer.chat.tool_format
        self._arguments_as_text = isinstance(format, ToolFormat) and format.arguments_as_text

    def sequences(self, example: Example) -> list[Sequence]:
        """One; of a conversation one for each message that is learnt, if the template writes earlier messages otherwise than last ones.
        Raises `WrongLine`.
        """
        try:
            made = self._encode(example)
        except InvalidRequest as error:
            raise WrongLine(error.message) from None
        for sequence in made:
            if len(sequence.ids) > self._context:
                holder = "the model holds" if self._setting is None else f"the setting {self._setting} allows"
                raise WrongLine(f"it has {len(sequence.ids)} tokens, more than the {self._context} that {holder}; divide it")
            if not sequence.has_effect:
                raise WrongLine("it has no token that could be learnt")
        return made

    def _encode(self, example: Example) -> list[Sequence]:
        if isinstance(example, Text):
            ids = self._tokenizer.encode(example.text, "text")
            return [Sequence(ids, (True,) * len(ids))]
        if isinstance(example, Completion):
            return [self._completion(example)]
        return self._conversation(example)

    def _completion(self, example: Completion) -> Sequence:
        """As `/v1/completions` has it: the prompt with the tokenizer's own first token, then the answer and the end."""
        prompt = self._tokenizer.encode(example.prompt, "prompt")
        end = self._end()
        answer = (*self._tokenizer.encode(example.completion, "completion", add_special_tokens=False), *(() if end is None else (end,)))
        return Sequence(prompt + answer, (False,) * len(prompt) + (True,) * len(answer))

    def _conversation(self, example: Conversation) -> list[Sequence]:
        for n in example.learnt:
            if _is_empty(example.messages[n]):
                raise WrongLine(
                    f"messages.{n}: the answer is empty, so there is nothing to learn; give it content or tool_calls, or weight 0"
                )
        messages = [self._template_message(n, message) for n, message in enumerate(example.messages)]
        tools = None if example.tools is None else [tool.model_dump(exclude_none=True) for tool in example.tools]
        check_unicode(json.dumps([messages, tools], ensure_ascii=False), "messages")
        last = max(example.learnt)
        text = self._render(messages[: last + 1], tools, False)
        spans = [self._span(messages, tools, n) for n in example.learnt]
        if all(text.startswith(whole) for whole, _ in spans):
            return [self._marked(text, [(start, len(whole.rstrip())) for whole, start in spans])]
        return [self._marked(whole, [(start, len(whole.rstrip()))]) for whole, start in spans]

    def _span(self, messages: list[dict[str, Any]], tools: Any, n: int) -> tuple[str, int]:
        """The conversation up to message `n`, and where in it that message begins. Raises `WrongLine`."""
        whole = self._render(messages[: n + 1], tools, False)
        if n == 0:
            return whole, self._first_start(whole, tools)
        before = self._render(messages[:n], tools, True)
        if not whole.startswith(before):
            raise WrongLine(f"messages.{n}: the model's chat template does not begin it as it begins an answer")
        return whole, len(before)

    def _first_start(self, whole: str, tools: Any) -> int:
        """Where an answer begins that no message precedes, of which templates render nothing: behind the mark that each answer begins with.
        Raises `WrongLine`.
        """
        asked = [{"role": "user", "content": "?"}]
        mark = self._render(asked, tools, True).removeprefix(self._render(asked, tools, False))
        start = whole.find(mark)
        if not mark or start < 0:
            raise WrongLine("messages.0: the model's chat template does not begin a conversation with an answer; put a message before it")
        return start + len(mark)

    def _render(self, messages: list[dict[str, Any]], tools: Any, add_generation_prompt: bool) -> str:
        return self._tokenizer.chat.render(messages, tools, add_generation_prompt)

    def _marked(self, text: str, spans: list[tuple[int, int]]) -> Sequence:
        ids, offsets = self._tokens(text, [first for first, _ in spans])
        learnt = [any(end > first and start < last for first, last in spans) and end > start for start, end in offsets]
        kept = len(learnt) - next((n for n, marked in enumerate(reversed(learnt)) if marked), 0)  # what follows teaches nothing
        ids, learnt = ids[:kept], learnt[:kept]
        end = self._end()
        if end is not None and ids[-1] not in self._tokenizer.end_tokens():  # the template has no mark where an answer ends
            ids, learnt = [*ids, end], [*learnt, True]
        return Sequence(tuple(ids), tuple(learnt))

    def _tokens(self, text: str, starts: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and their places in the text. No token reaches over the start of an answer, as none does where the model writes it."""
        encoding = self._tokenizer.base(text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=False)
        ids, offsets = list(encoding["input_ids"]), list(encoding["offset_mapping"])
        cut = next((cut for cut in starts if any(start < cut < end for start, end in offsets)), None)
        if cut is None:
            return ids, offsets
        before = self._tokens(text[:cut], [start for start in starts if start < cut])
        after = self._tokens(text[cut:], [start - cut for start in starts if start > cut])
        return before[0] + after[0], before[1] + [(start + cut, end + cut) for start, end in after[1]]

    def _end(self) -> int | None:
        own = self._tokenizer.base.eos_token_id
        return min(self._tokenizer.end_tokens(), default=None) if own is None else int(own)

    def _template_message(self, n: int, message: Message) -> dict[str, Any]:
        fields: dict[str, Any] = {"role": TEMPLATE_ROLES.get(message.role, message.role), "content": message.text}
        fields |= {key: value for key in ("name", "tool_call_id") if (value := getattr(message, key)) is not None}
        if message.tool_calls:
            fields["tool_calls"] = [self._call(n, call.model_dump()) for call in message.tool_calls]
        thought = message.reasoning_content or message.reasoning
        return fields if thought is None else self._tokenizer.chat.with_thought(fields, thought)

    def _call(self, n: int, call: dict[str, Any]) -> dict[str, Any]:
        try:
            arguments = json.loads(call["function"]["arguments"])
        except (ValueError, RecursionError):
            raise WrongLine(f"messages.{n}: the arguments of a tool call are not JSON") from None
        if not self._arguments_as_text:
            call["function"]["arguments"] = arguments
        return call


def _is_empty(message: Message) -> bool:
    return not (message.text.strip() or message.tool_calls or message.reasoning_content or message.reasoning)

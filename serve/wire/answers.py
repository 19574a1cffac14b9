"""From engine events to OpenAI's response bodies and server-sent events, for chat and completions alike.

Does not know the router.
"""

import itertools
import time
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from app.engine.events import Delta, Event, Failed, Notice
from app.engine.facts import Facts
from app.engine.notices import Interrupted, Progress
from app.errors import LitmusError
from app.forms.parser import ArgumentsDelta, ToolCallStart
from app.schemas import (
    AnswerMessage,
    ChatChoice,
    ChatLogprobs,
    ChatResponse,
    CompletionChoice,
    CompletionResponse,
    CompletionTokensDetails,
    FunctionCall,
    PromptProgress,
    PromptTokensDetails,
    TextLogprobs,
    ToolCall,
    Usage,
)
from app.schemas.answers import PromptLogprobs
from app.tokenizer import Tokenizer
from serve.wire.choice import Choice, ChoiceDelta, PartialCall
from serve.wire.logprobs import LogprobEntry, chat_logprobs, completion_logprobs, prompt_logprobs
from serve.wire.requests import AnswerOptions, Prompt
from serve.wire.sse import comments, progress_of, sse

UsageChunks = Literal["none", "last", "all"]  # which chunks of a stream have the token counts


@dataclass(slots=True)
class Answer:
    """The answer to one request, built up from events.

    `job_ids` are the ids of its jobs: all samples of the first prompt, then those of the second. `choices[i]` belongs to `job_ids[i]`.
    """

    id: str
    facts: Facts
    options: AnswerOptions
    prompts: list[Prompt]
    job_ids: list[str]
    tokenizer: Tokenizer
    created: int = field(default_factory=lambda: int(time.time()))
    choices: list[Choice] = field(init=False)
    _told: set[int] = field(default_factory=set)  # choices of a stream whose prompt's tokens were sent

    def __post_init__(self) -> None:
        self.choices = [Choice(prompt, self.options, self.tokenizer) for prompt in self.prompts for _ in range(self.options.samples)]

    def note(self, event: Notice) -> None:
        """What goes on with the answer may be another version of the model: then the fingerprint is that version's from here on."""
        if isinstance(event, Interrupted) and event.fingerprint is not None:
            self.facts = replace(self.facts, fingerprint=event.fingerprint)

    def usage(self) -> Usage:
        prompt, completion = sum(len(prompt.ids) for prompt in self.prompts), sum(choice.completion_tokens for choice in self.choices)
        # The samples of a prompt share its keys and values. The smallest count is what was in the cache before this request.
        cached = sum(min(choice.cached_tokens for choice in samples) for samples in self._samples_by_prompt())
        accepted = sum(choice.accepted_tokens for choice in self.choices)
        details = CompletionTokensDetails(
            reasoning_tokens=sum(choice.reasoning_tokens for choice in self.choices),
            accepted_prediction_tokens=accepted,
            rejected_prediction_tokens=sum(choice.drafted_tokens for choice in self.choices) - accepted,
        )
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
            completion_tokens_details=details,
        )

    def add(self, event: Event) -> tuple[int, ChoiceDelta]:
        """Add a delta to its choice; returns the choice's index and what was added. Raises the error of a failed job."""
        if isinstance(event, Failed):
            raise event.error
        assert isinstance(event, Delta)
        index = self.job_ids.index(event.id)
        return index, self.choices[index].add(event)

    def best_choices(self) -> list[Choice]:
        """The `n` samples of each prompt with the highest mean log-probability; in the order of their seeds if all are returned."""
        n = self.options.n
        if n == self.options.samples:
            return self.choices
        return [choice for samples in self._samples_by_prompt() for choice in sorted(samples, key=lambda choice: -choice.mean_logprob)[:n]]

    def _prompt_ids(self, prompt: int) -> list[int] | None:
        return list(self.prompts[prompt].ids) if self.options.tokens.ids else None

    def _prompt_logprobs(self, prompt: int) -> PromptLogprobs | None:
        top, first = self.options.tokens.prompt_logprobs, self.choices[prompt * self.options.samples]
        return None if top is None else prompt_logprobs(self.prompts[prompt].ids, first.prompt_logprobs, top, self.tokenizer)

    def _samples_by_prompt(self) -> list[list[Choice]]:
        samples = self.options.samples
        return [self.choices[first : first + samples] for first in range(0, len(self.choices), samples)]

    def body(self) -> ChatResponse | CompletionResponse:
        """The response body of an answer that is not streamed."""
        best = list(enumerate(self.best_choices()))
        if self.options.chat:
            choices = [
                ChatChoice(
                    index=index,
                    message=_message(choice),
                    logprobs=self._chat_logprobs(choice.entries, choice.thought_entries),
                    finish_reason=choice.finish_reason or "length",
                    stop_reason=choice.stop_reason,
                    token_ids=choice.tokens if self.options.tokens.ids else None,
                )
                for index, choice in best
            ]
            return ChatResponse(
                id=self.id,
                created=self.created,
                model=self.facts.name,
                choices=choices,
                usage=self.usage(),
                service_tier=self.options.tier,
                system_fingerprint=self.facts.fingerprint,
                metadata=self.options.metadata,
                prompt_token_ids=self._prompt_ids(0),
                prompt_logprobs=self._prompt_logprobs(0),
            )
        of_prompts = [(self._prompt_ids(prompt), self._prompt_logprobs(prompt)) for prompt in range(len(self.prompts))]
        texts = [
            CompletionChoice(
                index=index,
                text=choice.text,
                logprobs=self._completion_logprobs(choice.entries),
                finish_reason=choice.finish_reason or "length",
                stop_reason=choice.stop_reason,
                token_ids=choice.tokens if self.options.tokens.ids else None,
                prompt_token_ids=of_prompts[index // self.options.n][0],
                prompt_logprobs=of_prompts[index // self.options.n][1],
            )
            for index, choice in best
        ]
        return CompletionResponse(
            id=self.id,
            created=self.created,
            model=self.facts.name,
            choices=texts,
            usage=self.usage(),
            service_tier=self.options.tier,
            system_fingerprint=self.facts.fingerprint,
        )

    def _chat_logprobs(self, entries: list[LogprobEntry], of_thought: list[LogprobEntry]) -> ChatLogprobs | None:
        return None if self.options.logprobs is None else chat_logprobs(entries, of_thought, self.tokenizer)

    def _completion_logprobs(self, entries: list[LogprobEntry], _: list[LogprobEntry] | None = None) -> TextLogprobs | None:
        return None if self.options.logprobs is None else completion_logprobs(entries, self.tokenizer)

    def chunk(self, choices: list[dict[str, object]], usage_chunks: UsageChunks, progress: PromptProgress | None = None) -> str:
        """One server-sent event. Where only the last chunk has the usage, the others have null; the last one has no choices. The first of a
        choice has the tokens of its prompt, if they are wanted.
        """
        body: dict[str, object] = {
            "id": self.id,
            "object": "chat.completion.chunk" if self.options.chat else "text_completion",
            "created": self.created,
            "model": self.facts.name,
            "choices": choices,
            "system_fingerprint": self.facts.fingerprint,
        }
        index = choices[0]["index"] if choices and self.options.tokens.ids else None
        if isinstance(index, int) and index not in self._told:
            self._told.add(index)
            (body if self.options.chat else choices[0])["prompt_token_ids"] = self._prompt_ids(index // self.options.samples)
        if self.options.tier is not None:
            body["service_tier"] = self.options.tier
        if self.options.metadata is not None:
            body["metadata"] = self.options.metadata
        if usage_chunks != "none":
            body["usage"] = self.usage().model_dump() if usage_chunks == "all" or not choices else None
        if progress is not None:
            body["prompt_progress"] = progress.model_dump()
        return sse(body)

    def progress_choice(self, index: int, named: bool) -> dict[str, object]:
        """The chunk's choice while its prompt is read. The first one of a chat names the role, unless that was `named` before."""
        role = {} if named else {"role": "assistant"}
        content: dict[str, object] = {"delta": {**role, "content": None}} if self.options.chat else {"text": ""}
        return {"index": index, **content, "logprobs": None, "finish_reason": None}

    def first_choice(self, index: int) -> dict[str, object]:
        """The chunk's choice that names the role, before any text of a chat."""
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def delta_choice(self, index: int, delta: ChoiceDelta) -> dict[str, object]:
        """The chunk's choice that carries new text, tool calls or log-probabilities."""
        logprobs_of = self._chat_logprobs if self.options.chat else self._completion_logprobs
        logprobs = logprobs_of(delta.entries, delta.thought_entries) if delta.entries or delta.thought_entries else None
        content: dict[str, object] = {"delta": self._chat_delta(index, delta)} if self.options.chat else {"text": delta.text}
        told = {"token_ids": list(delta.tokens)} if self.options.tokens.ids else {}
        return {"index": index, **content, "logprobs": logprobs.model_dump() if logprobs else None, "finish_reason": None, **told}

    def _chat_delta(self, index: int, delta: ChoiceDelta) -> dict[str, object]:
        calls = _call_deltas(delta.calls, self.choices[index].calls)
        thought = {"reasoning_content": delta.thought, "reasoning": delta.thought} if delta.thought else {}
        content = {"content": delta.text} if delta.text or not (calls or thought) else {}
        return {**thought, **content, **({"tool_calls": calls} if calls else {})}

    def last_choice(self, index: int) -> dict[str, object]:
        """The chunk's choice that carries the finish reason."""
        content: dict[str, object] = {"delta": {}} if self.options.chat else {"text": ""}
        choice = self.choices[index]
        told: dict[str, object] = {"token_ids": []} if self.options.tokens.ids else {}
        ended = {"finish_reason": choice.finish_reason, "stop_reason": choice.stop_reason}
        return {"index": index, **content, "logprobs": None, **ended, **told}


def _message(choice: Choice) -> AnswerMessage:
    calls = [ToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments)) for call in choice.calls]
    thought = choice.thought or None
    content = choice.text if choice.text or not calls else None
    return AnswerMessage(content=content, reasoning_content=thought, reasoning=thought, tool_calls=calls or None)


def _call_deltas(pieces: Sequence[ToolCallStart | ArgumentsDelta], calls: Sequence[PartialCall]) -> list[dict[str, object]]:
    """One entry for each call that begins or goes on, as clients read only the first: its id and name where it begins, and more of its
    arguments.
    """
    entries: list[dict[str, object]] = []
    for index, parts in itertools.groupby(pieces, key=lambda piece: piece.index):
        start, name, arguments = {}, {}, ""
        for part in parts:
            if isinstance(part, ToolCallStart):
                start, name = {"id": calls[index].id, "type": "function"}, {"name": part.name}
            else:
                arguments += part.arguments
        entries.append({"index": index, **start, "function": {**name, "arguments": arguments}})
    return entries


async def stream(answer: Answer, events: AsyncIterable[Event], usage_chunks: UsageChunks) -> AsyncIterator[str]:
    """The server-sent events of an answer. A failure in mid-stream is sent as an error event; `[DONE]` always ends the stream."""
    named: set[int] = set()  # choices whose role was sent: with their first token, as clients time the first chunk
    try:
        async for event in events:
            if isinstance(event, Progress):
                index = answer.job_ids.index(event.id)
                yield answer.chunk([answer.progress_choice(index, index in named)], usage_chunks, progress_of(event))
                named.add(index)
                continue
            if isinstance(event, Notice):
                answer.note(event)
                for comment in comments(event, any(choice.started for choice in answer.choices)):
                    yield comment
                continue
            index, delta = answer.add(event)
            if answer.options.chat and index not in named:
                named.add(index)
                yield answer.chunk([answer.first_choice(index)], usage_chunks)
            if delta.text or delta.entries or delta.calls or delta.thought or delta.thought_entries or delta.tokens:
                yield answer.chunk([answer.delta_choice(index, delta)], usage_chunks)
            if answer.choices[index].finish_reason is not None:
                yield answer.chunk([answer.last_choice(index)], usage_chunks)
        if usage_chunks != "none":
            yield answer.chunk([], usage_chunks)
    except LitmusError as error:
        yield sse({**error.envelope()})
    yield "data: [DONE]\n\n"


async def collect(answer: Answer, events: AsyncIterable[Event]) -> None:
    """Add events to the answer until it is complete. Raises the error of a failed job."""
    async for event in events:
        if isinstance(event, Notice):
            answer.note(event)
        else:
            answer.add(event)

"""The answer to one request of /v1/responses: its body at any moment, and its stream of typed events. Does not know the router."""

import itertools
import time
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field

from app.engine.events import Event as EngineEvent
from app.engine.events import Notice
from app.engine.request import Generate
from app.errors import LitmusError
from app.schemas import ResponsesAnswer, ResponsesRequest
from app.schemas.reply import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ResponseError,
    ResponseStatus,
    ResponsesUsage,
)
from app.schemas.responses import PlainFormat, TextOptions
from serve.wire.answers import Answer
from serve.wire.choice import Choice
from serve.wire.items import Event, Output
from serve.wire.namespaces import names_of, served_tools
from serve.wire.sse import comments, sse


@dataclass(slots=True)
class Reply:
    """Built up from the events of its one job."""

    request: ResponsesRequest
    answer: Answer
    jobs: list[Generate]
    output: Output = field(init=False)
    status: ResponseStatus = "in_progress"
    error: ResponseError | None = None
    completed_at: int | None = None

    def __post_init__(self) -> None:
        self.output = Output(self.choice.calls, self.answer.tokenizer, names_of(self.request))

    @property
    def choice(self) -> Choice:
        return self.answer.choices[0]

    def add(self, event: EngineEvent) -> list[Event]:
        """Add an event of the engine; returns what it means for the client. Raises the error of a failed job."""
        _, delta = self.answer.add(event)
        events = self.output.add(delta)
        reason = self.choice.finish_reason
        if reason is not None:
            events += self.output.finish(reason)
            self.status = "incomplete" if reason == "length" else "completed"
            self.completed_at = None if reason == "length" else int(time.time())
            events.append(self.state(f"response.{self.status}"))
        return events

    def fail(self, error: LitmusError) -> list[Event]:
        events = self.output.finish(None)
        self.status, self.error = "failed", ResponseError(code="server_error", message=error.message)
        said: Event = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
        return [*events, said, self.state("response.failed")]

    def state(self, type: str) -> Event:
        return {"type": type, "response": self.body().model_dump(by_alias=True)}

    def body(self) -> ResponsesAnswer:
        request, facts, sampling = self.request, self.answer.facts, self.jobs[0].sampling
        return ResponsesAnswer(
            id=self.answer.id,
            created_at=self.answer.created,
            completed_at=self.completed_at,
            status=self.status,
            error=self.error,
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if self.status == "incomplete" else None,
            model=facts.name,
            output=self.output.items(),
            usage=None if self.status == "in_progress" else self._usage(),
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            max_tool_calls=request.max_tool_calls,
            metadata=request.metadata or {},
            parallel_tool_calls=request.parallel_tool_calls is not False,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_logprobs=request.top_logprobs or 0,
            text=_text_options(request),
            tools=served_tools(request),
            tool_choice=request.tool_choice or "auto",
            service_tier=self.answer.options.tier,
            user=request.user,
            safety_identifier=request.safety_identifier,
            prompt_cache_key=request.prompt_cache_key,
            system_fingerprint=facts.fingerprint,
        )

    def _usage(self) -> ResponsesUsage:
        usage = self.answer.usage()
        cached = self.choice.cached_tokens
        return ResponsesUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=cached, cache_write_tokens=usage.prompt_tokens - cached),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(
                reasoning_tokens=self.choice.reasoning_tokens,
                accepted_prediction_tokens=self.choice.accepted_tokens,
                rejected_prediction_tokens=self.choice.rejected_tokens,
            ),
            total_tokens=usage.total_tokens,
        )


def _text_options(request: ResponsesRequest) -> TextOptions:
    options = request.text or TextOptions()
    told = {"format": options.format or PlainFormat(type="text"), "verbosity": "medium" if options.verbosity == "medium" else None}
    return options.model_copy(update=told)


async def stream(reply: Reply, events: AsyncIterable[EngineEvent]) -> AsyncIterator[str]:
    """The server-sent events of a reply. A failure in mid-stream is an `error` event and `response.failed`, the last one."""
    numbers = itertools.count()

    def line(event: Event) -> str:
        return f"event: {event['type']}\n{sse({**event, 'sequence_number': next(numbers)})}"

    yield line(reply.state("response.created"))
    yield line(reply.state("response.in_progress"))
    try:
        async for event in events:
            if isinstance(event, Notice):
                reply.answer.note(event)
                for comment in comments(event, reply.choice.started):
                    yield comment
                continue
            for told in reply.add(event):
                yield line(told)
    except LitmusError as error:
        for told in reply.fail(error):
            yield line(told)


async def collect(reply: Reply, events: AsyncIterable[EngineEvent]) -> None:
    """Add events to the reply until it is complete. Raises the error of a failed job."""
    async for event in events:
        if isinstance(event, Notice):
            reply.answer.note(event)
        else:
            reply.add(event)

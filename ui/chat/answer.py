"""A streamed answer while it arrives: the text so far, what the server is doing, TTFT and decode speed computed from arrival times.

Pure: callers pass the current time in. Knows no HTTP and no HTML.
"""

from dataclasses import dataclass

from ui.chat.conversation import Facts, Finish
from ui.client import Chunk, Pause, PromptProgress, QueueStatus


@dataclass(slots=True)
class Answer:
    """Collects the chunks of one answer.

    All times are seconds of one monotonic clock. TTFT counts to the first non-empty text or thought, not to the first event.
    """

    sent_s: float  # when the request was sent
    text: str = ""
    thought: str = ""
    first_text_s: float | None = None
    last_text_s: float | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    queue: QueueStatus | None = None  # None once the request has left the server's queue
    progress: PromptProgress | None = None  # None where the server does not tell it
    loading: str = ""  # a sentence, while the server loads its model
    pause: Pause | None = None  # None while the answer goes on
    model: str = ""
    precision: str = ""
    seed: int | None = None
    begun: str = ""  # the text that this answer goes on from
    context: int | None = None  # of the model, in tokens
    pause_began_s: float | None = None  # of a pause within the text
    paused_s: float = 0.0  # in such pauses, each until the next text

    def add(self, chunk: Chunk, now_s: float) -> None:
        """Adds a chunk that arrived at `now_s`."""
        self.queue, self.loading, self.pause = chunk.queue, chunk.loading, chunk.pause
        if chunk.loading:
            self.sent_s = now_s  # it is sent again
        self.progress = chunk.progress or self.progress
        if self.pause is not None and self.first_text_s is not None and self.pause_began_s is None:
            self.pause_began_s = now_s
        if chunk.text or chunk.thought:
            self._end_pause(now_s)
            self.text += chunk.text
            self.thought += chunk.thought
            self.first_text_s = now_s if self.first_text_s is None else self.first_text_s
            self.last_text_s = now_s
        self.finish_reason = chunk.finish_reason or self.finish_reason
        if chunk.usage is not None:
            self.prompt_tokens, self.completion_tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens

    def _end_pause(self, now_s: float) -> None:
        if self.pause_began_s is not None:
            self.paused_s += now_s - self.pause_began_s
            self.pause_began_s = None

    @property
    def ttft_ms(self) -> float | None:
        return None if self.first_text_s is None else (self.first_text_s - self.sent_s) * 1000

    @property
    def tokens_per_s(self) -> float | None:
        """Decode speed: (tokens - 1) / (time from the first text to the last, without pauses). None with fewer than 2 tokens, or where no
        time passed.
        """
        tokens, first_s, last_s = self.completion_tokens, self.first_text_s, self.last_text_s
        if tokens is None or tokens < 2 or first_s is None or last_s is None or last_s - first_s <= self.paused_s:
            return None
        return (tokens - 1) / (last_s - first_s - self.paused_s)

    @property
    def _fills_context(self) -> bool:
        tokens = (self.prompt_tokens or 0) + (self.completion_tokens or 0)
        return self.context is not None and tokens >= self.context

    def facts(self, finish: Finish | None = None, problem: str = "") -> Facts:
        """What is kept with the answer. Without `finish` it ended as the server said."""
        cut: Finish = "full" if self._fills_context else "length"
        ended: Finish = cut if self.finish_reason == "length" else "stop"
        return Facts(
            model=self.model,
            precision=self.precision,
            seed=self.seed,
            ttft_ms=_rounded(self.ttft_ms),
            tokens_per_s=_rounded(self.tokens_per_s),
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            finish=finish or ended,
            problem=problem,
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)

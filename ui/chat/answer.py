"""A streamed answer while it arrives: the text so far, and TTFT and decode speed computed from arrival times.

Pure: callers pass the current time in. Knows no HTTP and no HTML.
"""

from dataclasses import dataclass

from ui.client import Chunk, QueueStatus


@dataclass(slots=True)
class Answer:
    """Collects the chunks of one answer.

    All times are seconds of one monotonic clock. TTFT counts to the first non-empty text, not to the first event.
    """

    sent_s: float  # when the request was sent
    text: str = ""
    first_text_s: float | None = None
    last_text_s: float | None = None
    finish_reason: str | None = None
    completion_tokens: int | None = None
    queue: QueueStatus | None = None  # None once the request has left the server's queue
    model: str | None = None  # shown in the note under the answer; None where the server has one model

    def add(self, chunk: Chunk, now_s: float) -> None:
        """Adds a chunk that arrived at `now_s`."""
        self.queue = chunk.queue
        if chunk.text:
            self.text += chunk.text
            self.first_text_s = now_s if self.first_text_s is None else self.first_text_s
            self.last_text_s = now_s
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.completion_tokens = self.completion_tokens if chunk.usage is None else chunk.usage.completion_tokens

    @property
    def ttft_ms(self) -> float | None:
        return None if self.first_text_s is None else (self.first_text_s - self.sent_s) * 1000

    @property
    def tokens_per_s(self) -> float | None:
        """Decode speed: (tokens - 1) / (time from the first text to the last). None with fewer than 2 tokens, or where no time passed."""
        tokens, first_s, last_s = self.completion_tokens, self.first_text_s, self.last_text_s
        if tokens is None or tokens < 2 or first_s is None or last_s is None or last_s <= first_s:
            return None
        return (tokens - 1) / (last_s - first_s)

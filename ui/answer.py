"""One answer on its way: the text so far and the times that matter, as numbers.

Pure: reads no clock (it is told the time), knows no HTTP and no HTML.
"""

from dataclasses import dataclass

from ui.client import Chunk, Place


@dataclass(slots=True)
class Answer:
    """Times are seconds of one monotonic clock. TTFT is the first non-empty piece of text, not the first event."""

    asked_s: float
    text: str = ""
    first_s: float | None = None
    last_s: float | None = None
    finish_reason: str | None = None
    tokens: int | None = None
    place: Place | None = None  # in the server's queue, as last heard
    model: str | None = None  # whose it is, where several are served

    def take(self, chunk: Chunk, now_s: float) -> None:
        self.place = chunk.queued
        if chunk.text:
            self.text += chunk.text
            self.first_s = now_s if self.first_s is None else self.first_s
            self.last_s = now_s
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.tokens = self.tokens if chunk.usage is None else chunk.usage.completion_tokens

    @property
    def ttft_ms(self) -> float | None:
        return None if self.first_s is None else (self.first_s - self.asked_s) * 1000

    @property
    def tokens_per_s(self) -> float | None:
        """Decode speed: (tokens - 1) / (time from the first to the last piece); None where that says nothing."""
        if self.tokens is None or self.tokens < 2 or self.first_s is None or self.last_s is None or self.last_s <= self.first_s:
            return None
        return (self.tokens - 1) / (self.last_s - self.first_s)

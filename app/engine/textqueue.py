"""The texts to score and to embed, and which of them a step reads. Policy from lengths and a clock; no torch."""

from collections import deque
from collections.abc import Callable, Sequence

from app.engine.plan import Plan, ScoreChunk, TextState
from app.engine.request import Embed, Score, Window

AGE_S = 5.0  # a request that has waited this long ranks one priority class higher


class TextQueue:
    def __init__(self, clock: Callable[[], float]) -> None:
        self.texts: list[TextState] = []
        self._cached: TextState | None = None  # the text whose unfinished window is in the pages reserved for texts
        self._clock = clock

    def add(self, job: Score | Embed) -> None:
        self.texts.append(TextState(job, deque(job.readings), self._clock()))

    def cancel(self, id: str) -> bool:
        """Returns whether the text was found."""
        for text in self.texts:
            if text.job.id == id:
                self.finish(text)
                return True
        return False

    def finish(self, text: TextState) -> None:
        """Forget a text that is read completely, or no longer wanted."""
        self.texts.remove(text)
        if self._cached is text:
            self._cached = None

    def clear(self) -> None:
        self.texts.clear()
        self._cached = None

    @property
    def has_flex(self) -> bool:
        return any(text.job.tier == "flex" for text in self.texts)

    def candidates(self, may_flex: bool) -> list[TextState]:
        """Those that a step may read; `flex` ones only if `may_flex`, or where the others would wait for the pages that one holds."""
        texts = [text for text in self.texts if may_flex or text.job.tier != "flex"]
        return [*texts, self._cached] if texts and self._cached is not None and self._cached not in texts else texts

    def plan(self, plan: Plan, texts: Sequence[TextState], tokens: int, step: int) -> int:
        """Plan a window of each of `texts` in turn, whole if it fits; returns how many of `tokens` are left. Only one text at a time may
        have a window in several chunks. It goes first and last by turns, so that it does not hold up short texts.
        """
        texts = [text for text in texts if self.is_urgent(text) or text is self._cached] or texts
        cached_last = step // 2 % 2 == 0
        for text in sorted(texts, key=lambda text: (text is self._cached) == cached_last):
            if tokens <= 0:
                break
            window = text.windows[0]
            start = window.start + text.computed
            cached = text.computed > 0 or window.end - start > tokens
            if cached and self._cached not in {None, text}:
                continue
            end = min(window.end, start + tokens)
            plan.score_chunks.append(ScoreChunk(text, window, start, end, cached))
            tokens -= end - start
            self._advance(text, window, end)
        return tokens

    def is_urgent(self, text: TextState) -> bool:
        """Whether the text is not `flex` work, or has waited long enough to count as if it were not."""
        return text.job.tier == "default" or self._clock() - text.arrived_s > AGE_S

    def _advance(self, text: TextState, window: Window, end: int) -> None:
        """Note that `window` is planned up to token `end`; after a whole window the other texts have their turn. Not after the base's
        reading: its states are kept until the adapter has read the same.
        """
        if end < window.end:
            self._cached, text.computed = text, end - window.start
            return
        if self._cached is text:
            self._cached = None
        text.windows.popleft()
        text.computed = 0
        if window.base:
            return
        self.texts.remove(text)
        self.texts.append(text)

"""From a text as it was sent to a job for the engine: normalized, tokenized, cut into windows."""

from bisect import bisect_left
from dataclasses import dataclass

from app.engine.request import Score as Job
from app.engine.request import Tier, Window
from app.scoring.normalize import NormalizedText, normalize
from app.scoring.sentences import sentences
from app.scoring.windows import passages, windows
from app.tokenizer import Encoded, Tokenizer

MAX_WINDOWS = 64  # of half a window each; what follows them is not scored, and the answer says `truncated`


@dataclass(frozen=True, slots=True)
class PreparedText:
    """A text ready to be scored. `truncated`: only its beginning is scored. `sent`: the text as it was sent."""

    sent: str
    text: NormalizedText
    encoded: Encoded
    job: Job
    truncated: bool = False

    def part(self, window: Window) -> "PreparedText":
        """What a window scores, as a text of its own."""
        offsets = self.encoded.offsets[window.scored_from : window.end]
        start, end = offsets[0][0], offsets[-1][1]
        content = NormalizedText(self.text.content[start:end], self.text.origins[start:end])
        first, last = self.text.original_span(start, end)
        encoded = Encoded(self.encoded.ids[window.scored_from : window.end], tuple((low - start, high - start) for low, high in offsets))
        return PreparedText(self.sent[first:last], content, encoded, self.job)


@dataclass(frozen=True, slots=True)
class Preparation:
    """How the texts of one request are prepared: by the model's tokenizer and context in tokens, and as the texts of the calibration were
    that judges them (`collapse`, `passage_tokens`). `observe`: an observer reads them, too. `top`: likeliest tokens to return beside each.
    """

    tokenizer: Tokenizer
    context: int
    collapse: bool
    passage_tokens: int | None = None
    observe: bool = False
    tier: Tier = "default"
    top: int = 0
    adapter: str | None = None

    def prepare(self, sent: str, id: str, param: str) -> PreparedText:
        """`id` becomes that of the job, `param` names the text in an error. Raises `InvalidRequest` for a text that cannot be tokenized."""
        text = normalize(sent, self.collapse)
        encoded = self.tokenizer.encode_with_offsets(text.content, param) if text.content.strip() else Encoded((), ())
        limit = MAX_WINDOWS * self.context // 2
        kept = Encoded(encoded.ids[:limit], encoded.offsets[:limit])
        job = Job(id, kept.ids, self._windows(text.content, kept), self.observe, self.tier, self.top, self.adapter)
        return PreparedText(sent, text, kept, job, len(encoded.ids) > limit)

    def _windows(self, content: str, encoded: Encoded) -> tuple[Window, ...]:
        tokens = len(encoded.ids)
        if self.passage_tokens is None:
            return windows(tokens, self.context)
        starts = sentence_starts(content, encoded) if tokens > self.passage_tokens else []
        return passages(tokens, min(self.passage_tokens, self.context // 2), starts)


def sentence_starts(content: str, encoded: Encoded) -> list[int]:
    """The first token of each sentence; a blank before a word counts to the word."""
    token_starts = list(encoded.token_starts())
    return [bisect_left(token_starts, max(0, start - 1)) for start, _ in sentences(content)]

"""From sampled tokens to text that may be shown: incremental detokenization and stop strings.

Knows no model and no tokenizer: it gets a function from token ids to text.
"""

from collections.abc import Callable, Sequence

Detokenize = Callable[[list[int]], str]
REPLACEMENT = "\ufffd"  # what a tokenizer writes for bytes that are not valid UTF-8
PROMPT_CONTEXT_TOKENS = 4  # last tokens of the prompt that are decoded in front of the first sampled tokens
MAX_INCOMPLETE_TOKENS = 16  # tokens that may wait for the rest of a character before their bytes count as invalid


class Detokenizer:
    """Emits whole characters only: the bytes of an incomplete character wait for the token that completes it.

    Each call decodes only a short tail of the tokens. The tail starts one emitted piece before the new tokens, because tokenizers
    treat the first token of a sequence differently (they drop its leading space).
    """

    def __init__(self, detokenize: Detokenize, prompt: Sequence[int] = ()) -> None:
        self._detokenize = detokenize
        self._tail = list(prompt[-PROMPT_CONTEXT_TOKENS:])
        self._emitted = len(self._tail)  # tokens of the tail whose text has been emitted
        self._emitted_text = detokenize(self._tail) if self._tail else ""  # the text of these tokens
        if self._emitted_text.endswith(REPLACEMENT):  # the prompt ends inside a character, so it is no context for what follows
            self._tail, self._emitted, self._emitted_text = [], 0, ""

    def push(self, token: int) -> str:
        """Add a token; returns the text that can be emitted now, which may be empty."""
        self._tail.append(token)
        text = self._detokenize(self._tail)
        pending = len(self._tail) - self._emitted
        if text == self._emitted_text and pending > MAX_INCOMPLETE_TOKENS:  # a run of control tokens, which have no text
            del self._tail[self._emitted :]
        if len(text) <= len(self._emitted_text) or (text.endswith(REPLACEMENT) and pending < MAX_INCOMPLETE_TOKENS):
            return ""
        new_text = text[len(self._emitted_text) :]
        self._tail, self._emitted = self._tail[self._emitted :], pending
        self._emitted_text = self._detokenize(self._tail)
        return new_text

    def preview(self, tokens: Sequence[int]) -> str:
        """The text that `tokens` would add, without adding them."""
        return self._detokenize([*self._tail, *tokens])[len(self._emitted_text) :]

    def flush(self) -> str:
        """The rest of the text when no token follows: an incomplete character becomes a replacement character."""
        return self._detokenize(self._tail)[len(self._emitted_text) :]


class StopChecker:
    """Cuts text at the first stop string. Holds back the end of the text while it could be the beginning of a stop string."""

    def __init__(self, stop_strings: tuple[str, ...]) -> None:
        self._stop_strings = stop_strings
        self._held_back = ""
        self.found: str | None = None  # the stop string at which the text was cut

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; returns the text that can be emitted now, and whether a stop string was found."""
        if not self._stop_strings:
            return text, False
        self._held_back += text
        positions = {stop: at for stop in self._stop_strings if (at := self._held_back.find(stop)) >= 0}
        if positions:
            self.found = min(positions, key=positions.__getitem__)
            emitted, self._held_back = self._held_back[: positions[self.found]], ""
            return emitted, True
        cut = len(self._held_back) - self._partial_match_length()
        emitted, self._held_back = self._held_back[:cut], self._held_back[cut:]
        return emitted, False

    def flush(self) -> str:
        """The text that was held back, when no text follows."""
        text, self._held_back = self._held_back, ""
        return text

    def _partial_match_length(self) -> int:
        """Length of the longest end of the held-back text that a stop string begins with."""
        longest = max(len(stop) for stop in self._stop_strings) - 1
        for length in range(min(longest, len(self._held_back)), 0, -1):
            end = self._held_back[-length:]
            if any(stop.startswith(end) for stop in self._stop_strings):
                return length
        return 0

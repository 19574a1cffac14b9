"""From sampled tokens to text that may be shown: incremental detokenising and stop strings.

Knows no model: it is given a function from token ids to text.
"""

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]
BROKEN = "\ufffd"
CONTEXT = 4  # tokens of the prompt that the first ones are read behind
PATIENCE = 16  # tokens that may wait for the rest of a character before it counts as broken for good


class Detokenizer:
    """Text grows by whole characters: bytes of an unfinished character wait for the token that ends it.

    Only a short tail of tokens is decoded each time. It starts one emitted piece before the new tokens, because tokenizers
    treat the first token of a sequence differently (a leading space).
    """

    def __init__(self, decode: Decode, prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._tail = list(prompt[-CONTEXT:])
        self._shown = len(self._tail)  # tokens of the tail whose text is out
        self._before = decode(self._tail) if self._tail else ""  # that text
        if self._before.endswith(BROKEN):  # a prompt that ends inside a character says nothing about what follows
            self._tail, self._shown, self._before = [], 0, ""

    def push(self, token: int) -> str:
        self._tail.append(token)
        text = self._decode(self._tail)
        waiting = len(self._tail) - self._shown
        if text == self._before and waiting > PATIENCE:  # control tokens, one after the other
            del self._tail[self._shown :]
        if len(text) <= len(self._before) or (text.endswith(BROKEN) and waiting < PATIENCE):
            return ""
        new = text[len(self._before) :]
        self._tail, self._shown = self._tail[self._shown :], waiting
        self._before = self._decode(self._tail)
        return new

    def read(self, tokens: Sequence[int]) -> str:
        """The text that these would add, none of them taken."""
        return self._decode([*self._tail, *tokens])[len(self._before) :]

    def flush(self) -> str:
        """What is left when no token follows: an unfinished character becomes a replacement mark."""
        return self._decode(self._tail)[len(self._before) :]


class Stopper:
    """Cuts text at the first stop string, holding back what could be the beginning of one."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self._words = words
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that may be shown, and whether a stop string was met."""
        if not self._words:
            return text, False
        self._held += text
        found = [at for word in self._words if (at := self._held.find(word)) >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        keep = self._beginning()
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _beginning(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max(len(word) for word in self._words) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-size:]
            if any(word.startswith(end) for word in self._words):
                return size
        return 0

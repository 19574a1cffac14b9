"""Prompt lookup: what followed, earlier in a request's own text, the same tokens as stand at its end now.

The method is prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding; vLLM calls it ngram), with the longest
match instead of one of a fixed length. Standard library only; knows no model and no slots.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MIN_MATCH = 2  # tokens; a single one is found nearly everywhere
MAX_MATCH = 32


@dataclass(frozen=True, slots=True)
class Match:
    """`tokens` are expected to follow, because they followed `length` tokens that are the same as the last ones of the text."""

    length: int
    tokens: tuple[int, ...]

    def behind(self, count: int) -> "Match":
        """What is still expected after the first `count` tokens have come."""
        return Match(self.length + count, self.tokens[count:])


class OwnText:
    """The tokens of a prompt and its answer, as letters of a string: a search for tokens is one for letters. `prediction` is what the
    answer to `prompt` is expected to repeat, where the client says so.
    """

    def __init__(self, prompt: Sequence[int] = (), prediction: Sequence[int] = ()) -> None:
        self._letters = ""
        self._before = _letters(prompt[-MAX_MATCH:])  # the prediction
        self._prediction = self._before + _letters(prediction)

    def update(self, tokens: Sequence[int]) -> None:
        """`tokens` are the text as it stands now. It has only become longer since the last call."""
        self._letters += _letters(tokens[len(self._letters) :])

    def match(self, ahead: Sequence[int], limit: int) -> Match | None:
        """At most `limit` tokens that are expected after the text and `ahead`, tokens that are known to follow it; None without a match."""
        text = self._letters + _letters(ahead)
        end, length = longest_match(text, text)
        predicted_end, predicted_length = longest_match(text, self._prediction, len(self._before))
        if max(length, predicted_length) == 0 or limit < 1:
            return None
        if predicted_length >= length:
            return Match(predicted_length, tuple(map(ord, self._prediction[predicted_end : predicted_end + limit])))
        period = len(text) - end  # where the match reaches the text's end, the text repeats itself
        return Match(length, tuple(ord(text[end + place % period]) for place in range(limit if period < limit else min(limit, period))))


def longest_match(text: str, source: str, first_end: int = 0) -> tuple[int, int]:
    """Where the latest occurrence in `source` of the longest end of `text` ends, not before `first_end` and not with the last letter, and
    its length, `MIN_MATCH` to `MAX_MATCH` letters; (0, 0) if there is none.
    """
    end, length, last = 0, 0, len(source) - 1
    while length < MAX_MATCH:
        wanted = max(length + 1, MIN_MATCH)
        if wanted > min(last, len(text)):
            break
        start = source.rfind(text[-wanted:], max(0, first_end - wanted), last)
        if start < 0:
            break
        end, length = start + wanted, wanted
        while length < min(MAX_MATCH, end, len(text)) and source[end - length - 1] == text[-length - 1]:
            length += 1
    return end, length


def _letters(tokens: Iterable[int]) -> str:
    return "".join(map(chr, tokens))

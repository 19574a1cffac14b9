"""A grammar tried out by a vocabulary of bytes, where no model is known.

grammar_problem(grammar: str) -> str | None    why it cannot be followed, in a client's words
trial_error(grammar, limits) -> str            the same in llguidance's words; empty if it can
"""

import re
from functools import cache

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

TRIED_BYTES = 256  # of an answer, when a grammar is tried out
# Token ids in the order of preference when a grammar is tried out: what opens a value comes before what closes one.
TRIED_ORDER = (*b'{["]},', *range(48, 58), *range(97, 123), *range(257))


def grammar_problem(grammar: str) -> str | None:
    return _client_sentence(trial_error(grammar)) or None


def trial_error(grammar: str, limits: LLParserLimits | None = None) -> str:
    matcher = LLMatcher(byte_tokenizer(), grammar, log_level=0, limits=limits)
    _try_out(matcher)
    error: str = matcher.get_error()
    return error


def _try_out(matcher: LLMatcher) -> None:
    """Feeds the beginning of an answer that nests as deep as the grammar allows: some grammars fail only there."""
    for _ in range(TRIED_BYTES):
        if matcher.is_error() or matcher.is_stopped():
            return
        mask = matcher.compute_bitmask()
        if not matcher.is_error():
            matcher.consume_token(next(byte for byte in TRIED_ORDER if mask[byte >> 3] >> (byte & 7) & 1))


class ByteVocabulary:
    """A vocabulary of the 256 bytes and an end token, for trying out a grammar where no model is known."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (eos_token_id,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@cache
def byte_tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(ByteVocabulary()))


def _client_sentence(error: str) -> str:
    """llguidance's error without line numbers, which refer to a grammar that the client did not write."""
    if error.startswith("NoExtension"):
        return "no answer can conform to it"
    if "coerce_one_of" in error:
        return "alternatives of oneOf that may overlap are not supported; use anyOf"
    message = re.sub(r"^at \d+\(\d+\): ", "", error.strip()).removeprefix("failed to compile JSON schema: ")
    reason = re.search(r"^error: (.*)", message, re.M) if message.startswith("regex parse error") else None
    return f"pattern: {reason[1]}" if reason else message.partition("\n")[0][:300]

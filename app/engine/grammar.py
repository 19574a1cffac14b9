"""Answers of a given form: which tokens may come next so that an answer keeps to its grammar. By llguidance.

A grammar is a text that `app.grammar` or `app.tools` made. Knows no schema, no tool and no slot.
"""

from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from app.errors import InvalidRequest

KEPT = 64  # compiled grammars that stay for requests that bring the same one


class Grammar:
    """One answer's progress through its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self) -> NDArray[np.bool_]:
        """Whether each token of the vocabulary may come next. At least one may, as long as `take` has not returned True."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little").view(np.bool_)

    def take(self, token: int) -> bool:
        """Go on by a token; returns whether the answer is complete with it. Raises `InvalidRequest` where the grammar gets too hard."""
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            raise InvalidRequest(
                f"the answer's grammar cannot be followed any further: {_sentence(self._matcher)}", param="response_format"
            )
        return self._matcher.is_stopped()


class Grammars:
    """Compiles beside the engine's loop, as a hard grammar takes longer than a step."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, ends: Collection[int]) -> None:
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        self._tokenizer = from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(ends) or None)
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, "grammars")

    def start(self, text: str) -> Future[Grammar]:
        """The beginning of an answer. Its exception is an `InvalidRequest` for a text that is no grammar."""
        return self._pool.submit(self._start, text)

    def _start(self, text: str) -> Grammar:
        if text not in self._compiled:
            matcher = LLMatcher(self._tokenizer, text, log_level=0)  # what it would write quotes the answer
            if matcher.is_error():
                raise InvalidRequest(f"the grammar cannot be used: {_sentence(matcher)}", code="unsupported_schema")
            self._compiled[text] = matcher
        self._compiled.move_to_end(text)
        while len(self._compiled) > KEPT:
            self._compiled.popitem(last=False)
        return Grammar(self._compiled[text].deep_copy())


def _sentence(matcher: LLMatcher) -> str:
    return matcher.get_error().strip().partition("\n")[0][:300]

"""Answers of a given form: which tokens may come next so that an answer keeps to its grammar. By llguidance.

A grammar is a text that `app.forms.grammar` or `app.forms.tools` made. Knows no schema, no tool and no slot.
"""

import json
import secrets
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from app.errors import InvalidRequest

KEPT = 8  # compiled grammars that stay for requests that bring the same one; each grows with its use
LIMITS = LLParserLimits(max_lexer_states=100_000)  # of a grammar: up to some 40 MB


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
            raise InvalidRequest(f"the answer's form cannot be followed any further: {_sentence(self._matcher)}", code="unsupported_schema")
        return self._matcher.is_stopped()


class Grammars:
    """Compiles beside the engine's loop, as a hard grammar takes longer than a step."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, ends: Collection[int]) -> None:
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        eos = sorted(ends) or tokenizer.eos_token_id
        self._tokenizer = LLTokenizer(_without_names(tokenizer), n_vocab=vocabulary, eos_token=eos)
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, "grammars")

    def start(self, text: str) -> Future[Grammar]:
        """The beginning of an answer. Its exception is an `InvalidRequest` for a text that is no grammar."""
        return self._pool.submit(self._start, text)

    def _start(self, text: str) -> Grammar:
        if text not in self._compiled:
            matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=LIMITS)  # what it would write quotes the answer
            if matcher.is_error():
                raise InvalidRequest(f"the grammar cannot be used: {_sentence(matcher)}", code="unsupported_schema")
            self._compiled[text] = matcher
        self._compiled.move_to_end(text)
        while len(self._compiled) > KEPT:
            self._compiled.popitem(last=False)
        return Grammar(self._compiled[text].deep_copy())


def _without_names(tokenizer: PreTrainedTokenizerFast) -> str:
    """The tokenizer as JSON, its control tokens under names that nobody knows: where a grammar leaves no choice, llguidance reads its text
    as tokens, and a text like "<|end|>" would be read as the token.
    """
    names = {token.content: f"<{secrets.token_hex(16)}>" for token in tokenizer.added_tokens_decoder.values() if token.special}
    whole = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None, "post_processor": None}
    for token in whole["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = whole["model"]
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {names.get(piece, piece): id for piece, id in model["vocab"].items()}
    elif isinstance(model.get("vocab"), list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    return json.dumps(whole)


def _sentence(matcher: LLMatcher) -> str:
    return matcher.get_error().strip().partition("\n")[0][:300]

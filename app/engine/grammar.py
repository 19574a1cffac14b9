"""Structured output: which tokens may come next so that an answer follows its grammar. Uses llguidance.

A grammar is a text that `app.forms.grammar` or `app.forms.tools` wrote. Knows no JSON schema, no tools and no slots.

An answer is complete within its tokens whenever a completion that `app.engine.completion` finds fits: a state keeps one that does, and
where a sampled token would leave too few for any, `steer` puts the next token of that completion in its place. That a search within an
answer took all its steps does not say so: while there is far more room than such a search can fill, the sampled token is kept, and
what completes the answer is looked for again later.
"""

import json
import secrets
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from app.engine.completion import Completions, Walk, allowed
from app.engine.vocabulary import Vocabulary
from app.errors import InvalidRequest
from app.forms.lark import MAX_ROW_ITEMS, WRITTEN
from app.forms.tools import AddedTokens

MAX_CACHED_GRAMMARS = 8  # compiled grammars kept for later requests with the same grammar; each grows while it is used
MAX_LEXER_STATES = 100_000  # bounds a grammar to about 40 MB
PARSER_LIMITS = LLParserLimits(max_lexer_states=MAX_LEXER_STATES)
WRITTEN_LIMITS = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, max_items_in_row=MAX_ROW_ITEMS)  # of a grammar that a client wrote
MAX_ERROR_CHARACTERS = 300
STEPS, PIECES = 200, 300  # of a search within an answer, for which all answers wait: about 20 ms
LONGEST_COMPLETION = 16_000  # tokens of a completion that is searched for
FAR_MORE = 1024  # tokens that are left beyond twice those of the completion known last
SOUGHT_AGAIN = 32  # tokens after which a completion that was not found is searched for again
MAX_SOUGHT = 16  # tokens of a completion that uses up what is left, beside which another one is searched for


@dataclass(frozen=True, slots=True)
class Choices:
    """What a grammar leaves to choose at one place of an answer."""

    allowed: NDArray[np.bool_]  # [vocab] tokens that may come next
    certain: int | None  # the only one, if there is only one


class LookAhead:
    """A grammar some tokens further than an answer, whose own state stays as it is."""

    def __init__(self, matcher: LLMatcher, number: bytes, vocabulary: Vocabulary) -> None:
        """`matcher` is changed."""
        self._matcher, self._number, self._vocabulary = matcher, number, vocabulary
        self.tokens: list[int] = []  # followed so far
        self.choices = [self._choices()]  # before each of them, and after the last

    def follow(self, token: int) -> bool:
        """Go on by a token. False, and nothing is changed, if the grammar does not allow it, or the answer ends with it."""
        after = self._matcher.deep_copy()
        if not self.choices[-1].allowed[token] or not after.consume_token(token) or after.is_stopped():
            return False
        self._matcher, self._number = after, self._vocabulary.number_after(self._number, token)
        self.tokens.append(token)
        self.choices.append(self._choices())
        return True

    def follow_certain(self, limit: int) -> None:
        """Go on while only one token may come, until `limit` tokens are followed."""
        while len(self.tokens) < limit:
            token = self.choices[-1].certain
            if token is None or not self.follow(token):
                return

    def _choices(self) -> Choices:
        mask = allowed(self._matcher)
        self._vocabulary.bound_number(self._number, mask)
        return Choices(mask, int(mask.argmax()) if np.count_nonzero(mask) == 1 else None)


class GrammarState:
    """How far one answer has come in its grammar."""

    def __init__(self, matcher: LLMatcher, completions: Completions, completion: list[int] | None) -> None:
        """`completion` are tokens that make the whole answer; None: none fits, and the answer will be cut."""
        self._matcher, self._completions = matcher, completions
        self._number = b""  # at the end of the answer, if it ends in one
        self._completion = completion
        self._sought = 0  # tokens for which a completion has been looked for; meanwhile `_completion` is that of an earlier state

    def allowed_tokens(self) -> NDArray[np.bool_]:
        """For each token of the vocabulary, whether it may come next. At least one may, until `accept` has returned True."""
        mask = allowed(self._matcher)
        self._completions.vocabulary.bound_number(self._number, mask)
        return mask

    def look_ahead(self) -> LookAhead:
        return LookAhead(self._matcher.deep_copy(), self._number, self._completions.vocabulary)

    def steer(self, token: int, left: int) -> int:
        """The sampled token, if the answer can be completed by `left` more tokens after it; else the next one of a completion that fits,
        which is the end token where the answer may end. `accept` has to follow with the result.
        """
        completion = self._completion
        if completion is None:
            return token
        if completion[:1] == [token] and not self._sought:
            self._completion = completion[1:]
            return token
        after = self._matcher.deep_copy()
        after.consume_token(token)
        if after.is_stopped():  # complete, or an error, which `accept` reports
            return token
        if self._keeps(token, after, completion, left):
            return token
        if not completion and self._completions.vocabulary.continues_character(allowed(after)):
            self._completion = None  # a text that may end anywhere is cut by its last tokens, as any other text
            return token
        self._completion = completion[1:]
        return completion[0] if completion else self._completions.end_token

    def _keeps(self, token: int, after: LLMatcher, completion: list[int], left: int) -> bool:
        """Whether the sampled token is kept, after which the grammar is at `after`."""
        walk = self._walk(token, left)
        resumed = self._completions.resume(after, completion, left, walk)
        if resumed is not None:
            self._completion, self._sought = resumed, 0
            return True
        if self._sought or (walk.steps <= 0 and left > FAR_MORE + 2 * len(completion)):
            self._sought += 1
            return True
        return False

    def _walk(self, token: int, left: int) -> Walk:
        """Without steps where no search is worth its time: it would begin anew for each token."""
        assert self._completion is not None
        number = self._completions.vocabulary.number_after(self._number, token)
        is_again = self._sought.bit_count() > 1 and self._sought % SOUGHT_AGAIN > 0
        is_full = not self._sought and left < len(self._completion) and len(self._completion) > MAX_SOUGHT
        return Walk(number, 0 if is_again or is_full else STEPS, PIECES)

    def accept(self, token: int) -> bool:
        """Advance by a token; returns whether the answer is complete with it. Raises `InvalidRequest` when the grammar becomes too
        complex for the parser's limits.
        """
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            message = f"the answer cannot follow its grammar any further: {_error_line(self._matcher)}"
            raise InvalidRequest(message, code="unsupported_schema")
        self._number = self._completions.vocabulary.number_after(self._number, token)
        return self._matcher.is_stopped()


class Compiled:
    """A grammar at the beginning of an answer, and what completes a whole answer."""

    def __init__(self, matcher: LLMatcher, completions: Completions, is_written: bool) -> None:
        self.matcher, self.completions, self._is_written = matcher, completions, is_written
        self._shortest: list[int] | None = None  # that was found
        self._too_few = 0  # the highest `max_tokens` for which none was found

    def completion(self, max_tokens: int) -> list[int] | None:
        """Searched for only where what is known does not tell: it may take more than a second. In a grammar that a client wrote only one
        way is tried, as it may take much longer.
        """
        limit = min(max_tokens, LONGEST_COMPLETION)
        if not self._fits(limit) and limit > self._too_few:
            self._search(limit)
        return self._shortest if self._fits(limit) else None

    def _fits(self, limit: int) -> bool:
        return self._shortest is not None and len(self._shortest) <= limit

    def _search(self, limit: int) -> None:
        found = self.completions.find(self.matcher, limit) if self._is_written else self.completions.search(self.matcher, limit)
        if found is None:
            self._too_few = limit
            if self._shortest is None and not self._is_written and limit < LONGEST_COMPLETION:
                self._search(LONGEST_COMPLETION)  # that there is none at all is told to every other length
        else:
            self._shortest = found


class GrammarCompiler:
    """Compiles grammars in a thread of its own, as a complex grammar takes longer than a step of the engine."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, end_tokens: Collection[int], marks: Collection[str] = ()
    ) -> None:
        """`marks` are those by which the model ends a thought, a text in a tool call and a list of calls. The tokenizer's added tokens may
        lie beyond the model's `vocabulary`: no answer has them.
        """
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        eos = [token for token in sorted(end_tokens) or [tokenizer.eos_token_id] if token is not None and token < vocabulary]
        self._tokenizer = LLTokenizer(_with_secret_control_tokens(tokenizer, vocabulary), n_vocab=vocabulary, eos_token=eos or None)
        added = AddedTokens({token.content: id for id, token in tokenizer.added_tokens_decoder.items()}, frozenset(), frozenset())
        self._marks = [[token for part in added.split(mark) for token in self._tokens_of(part, added)] for mark in marks]
        self._compiled: OrderedDict[str, Compiled] = OrderedDict()  # by the grammar's text, least recently used first
        self._pool = ThreadPoolExecutor(1, "grammars")

    def _tokens_of(self, part: str, added: AddedTokens) -> list[int]:
        return [added.ids[part]] if part in added.ids else self._tokenizer.tokenize_str(part)

    def compile(self, grammar: str, max_tokens: int, sampled: Sequence[int] = ()) -> Future[GrammarState]:
        """The state of an answer of at most `max_tokens` tokens that begins with `sampled`. The future raises `InvalidRequest` when
        `grammar` is not a valid grammar.
        """
        return self._pool.submit(self._compile, grammar, max_tokens, sampled)

    def _compile(self, grammar: str, max_tokens: int, sampled: Sequence[int]) -> GrammarState:
        if grammar not in self._compiled:
            limits = WRITTEN_LIMITS if WRITTEN in grammar else PARSER_LIMITS
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)  # its log lines would quote the answer
            if matcher.is_error():
                raise InvalidRequest(f"the grammar cannot be compiled: {_error_line(matcher)}", code="unsupported_schema")
            self._compiled[grammar] = Compiled(matcher, self._completions.of_grammar(grammar), WRITTEN in grammar)
        self._compiled.move_to_end(grammar)
        while len(self._compiled) > MAX_CACHED_GRAMMARS:
            self._compiled.popitem(last=False)
        compiled = self._compiled[grammar]
        state = GrammarState(compiled.matcher.deep_copy(), compiled.completions, compiled.completion(max_tokens))
        for left, token in zip(range(max_tokens - 1, 0, -1), sampled, strict=False):
            state.steer(token, left)
            state.accept(token)
        return state

    @cached_property
    def _completions(self) -> Completions:
        return Completions(self._tokenizer, self._marks)


def _with_secret_control_tokens(tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> str:
    """The tokenizer as JSON, with random names for its control tokens, and without added tokens beyond the vocabulary. Where a grammar
    leaves only one text, llguidance tokenizes that text itself, and would turn a string like "<|end|>" in it into the control token.
    """
    names = {token.content: f"<{secrets.token_hex(16)}>" for token in tokenizer.added_tokens_decoder.values() if token.special}
    document = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None, "post_processor": None}
    document["added_tokens"] = [token for token in document["added_tokens"] if token["id"] < vocabulary]
    for token in document["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = document["model"]
    if isinstance(model.get("vocab"), dict):
        beyond = {piece for piece, id in model["vocab"].items() if id >= vocabulary}
        model["vocab"] = {names.get(piece, piece): id for piece, id in model["vocab"].items() if piece not in beyond}
        if beyond:
            model["merges"] = [pair for pair in model.get("merges", []) if beyond.isdisjoint({*pair, "".join(pair)})]
    elif isinstance(model.get("vocab"), list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"][:vocabulary]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    return json.dumps(document)


def _error_line(matcher: LLMatcher) -> str:
    return matcher.get_error().strip().partition("\n")[0][:MAX_ERROR_CHARACTERS]

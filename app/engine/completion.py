"""The end of an answer that follows a grammar: which tokens complete it, and few of them.

    Completions(tokenizer, marks)      `marks`: tokens that end a text which no quotation mark ends, such as a thought,
                                       or a list in which another item may come
    .of_grammar(grammar)               the same for a grammar whose strings have patterns or formats: it looks for what these need
    .find(matcher, limit) -> list[int] | None              good and fast: one way is followed, the token that closes most comes first
    .search(matcher, limit) -> list[int] | None            the same, with the other ways tried out where the first is too long
    .shortest(matcher, longest) -> list[int] | None        the shortest that a search comes to
    .resume(matcher, earlier, limit) -> list[int] | None   from a completion of the state a token before

All return at most `limit` (`longest`) tokens after which the grammar accepts the answer, or None when none were found. `matcher` stays as
it is. Knows no slots and no requests.
"""

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from app.engine.vocabulary import Vocabulary
from app.forms.examples import examples

SEARCH_TOKENS = 4000  # consumed by one search: in its trials, and where only one text may come
TRIAL_TOKENS = 20  # more that a trial counts as, for the state and the mask it begins with
ALTERNATIVES = 48  # tried out at one place
RESUME_STEPS = 4  # tokens found anew before an earlier completion goes on
RESUME_SKIP = 4  # tokens of the earlier completion that may be left out
CLOSING_BYTES = b'"]},'
SEPARATOR = b","
CHECKED_TOKENS = 64  # of an earlier completion, while there is as much room left beside it; otherwise all are checked

COMMON_PIECES = ("a", "0", "A", "@", ".", ":", "/", "-")  # of strings with a pattern or a format
PIECE_TRIALS = 2000  # in one completion

Tokens = list[int]


@dataclass(slots=True)
class Walk:
    """A way to an end, while it is looked for."""

    trials: int  # of pieces that are left
    seen: set[bytes] = field(default_factory=set)  # the masks of the places within the string where it went on before


class Completions:
    def __init__(self, tokenizer: LLTokenizer, marks: Sequence[Tokens] = ()) -> None:
        self.vocabulary, self.end_token = Vocabulary(tokenizer), tokenizer.eos_token
        self._marks = marks
        self._token_marks = [mark for mark in marks if mark and tokenizer.is_special_token(mark[0])]
        self._tokenizer = tokenizer
        self._pieces: list[Tokens] = []  # of which a string is made that has a pattern or a format

    def of_grammar(self, grammar: str) -> "Completions":
        if '"pattern": ' not in grammar and '"format": ' not in grammar:
            return self
        texts = {text[start:] for text in examples(grammar) for start in range(len(text))} | {*COMMON_PIECES}
        own = copy.copy(self)
        own._pieces = [self._tokenizer.tokenize_str(text) for text in sorted(texts, key=lambda text: (len(text), text))]
        return own

    def find(self, matcher: LLMatcher, limit: int, by_pieces: bool = True) -> Tokens | None:
        """Without `by_pieces` a string that leaves its loop only by several right characters is not completed."""
        state, found, walk = matcher.deep_copy(), Tokens(), Walk(PIECE_TRIALS if by_pieces else 0)
        while not state.is_accepting():
            tokens = self._next(state, walk) if len(found) < limit else []
            if not tokens or state.try_consume_tokens(tokens) < len(tokens):
                return None
            found += tokens
        return found if len(found) <= limit else None

    def search(self, matcher: LLMatcher, limit: int) -> Tokens | None:
        longest = 4 * limit + CHECKED_TOKENS  # a completion from which the search may begin
        best = self._improved(matcher, self.find(matcher, longest), limit, longest)
        return best if best is not None and len(best) <= limit else None

    def shortest(self, matcher: LLMatcher, longest: int) -> Tokens | None:
        """The shortest completion that a search comes to, of at most `longest` tokens."""
        return self._improved(matcher, self.find(matcher, longest), 0, longest)

    def resume(self, matcher: LLMatcher, earlier: Sequence[int], limit: int) -> Tokens | None:
        state, found, walk = matcher.deep_copy(), Tokens(), Walk(0)
        for _ in range(RESUME_STEPS):
            for rest in self._rests(earlier):
                room = limit - len(found) - len(rest)
                if room >= 0 and self._completes(state, rest, room):
                    return found + rest
            tokens = self._next(state, walk)
            if state.is_accepting() or not tokens or state.try_consume_tokens(tokens) < len(tokens):
                break
            found += tokens
        return self.find(matcher, limit)

    def _rests(self, earlier: Sequence[int]) -> Iterator[Tokens]:
        """An earlier completion without its first tokens, and from within one of these, which closes more than the new ones opened."""
        yield from ([*earlier[skipped:]] for skipped in range(min(RESUME_SKIP, len(earlier) + 1)))
        for at, token in enumerate(earlier[:RESUME_SKIP]):
            text = self._tokenizer.decode_bytes([token])
            starts = [start for start in range(1, len(text)) if text[start] in CLOSING_BYTES]
            yield from ([*self._tokenizer.tokenize_bytes(text[start:]), *earlier[at + 1 :]] for start in starts)

    def _completes(self, state: LLMatcher, tokens: Sequence[int], room: int) -> bool:
        checked = [*tokens[:CHECKED_TOKENS]] if room >= CHECKED_TOKENS and len(tokens) > CHECKED_TOKENS else [*tokens, self.end_token]
        return state.validate_tokens(checked) == len(checked)

    def _next(self, state: LLMatcher, walk: Walk) -> Tokens:
        """The tokens that have to follow, or the one that closes most of those that may; empty after an error."""
        mask, tokens = None, state.compute_ff_tokens()
        if not tokens:
            mask = allowed(state)
            tokens = self.vocabulary.closing(mask)
            may_go_on = self.vocabulary.is_in_string(mask) or self._tokenizer.decode_bytes(tokens).strip() == SEPARATOR
            tokens = next((end for end in (self._marks if may_go_on else self._token_marks) if self._ends_text(state, end)), tokens)
        if self.vocabulary.end_a_string(tokens):
            walk.seen.clear()
        elif mask is not None and self.vocabulary.is_in_string(mask):
            return self._out_of_loop(state, walk) or tokens
        return tokens

    def _ends_text(self, state: LLMatcher, mark: Tokens) -> bool:
        """Whether the text ends with this mark; a string in JSON goes on after it."""
        if state.validate_tokens(mark) < len(mark):
            return False
        after = state.deep_copy()
        after.try_consume_tokens(mark)
        return after.is_accepting() or bytes(after.compute_bitmask()) != bytes(state.compute_bitmask())

    def _out_of_loop(self, state: LLMatcher, walk: Walk) -> Tokens:
        """Tokens with which a string leaves a part of its pattern that may repeat forever; empty if nothing repeats or none leave."""
        place, seen = bytes(state.compute_bitmask()), walk.seen
        if place not in seen:
            seen.add(place)
            return self._ending_pieces(state, walk, most=1)
        if (looked := b"looked" + place) in seen:
            return []
        seen.add(looked)
        ways = ((token, bytes(after.compute_bitmask())) for token, after in self._alternatives(state))
        return next(([token] for token, mask in ways if mask not in seen), []) or self._ending_pieces(state, walk)

    def _ending_pieces(self, state: LLMatcher, walk: Walk, most: int | None = None) -> Tokens:
        """As few pieces as possible, at most `most`, after which the string may end; empty if none were found. What a pattern asks for may
        lie several characters ahead, and no mask tells how far it has been followed.
        """
        waiting, quote = deque([(state, Tokens(), 1)]), self._tokenizer.tokenize_str('"')
        while waiting and walk.trials > 0:
            before, text, count = waiting.popleft()
            walk.trials -= len(self._pieces)
            for piece in self._pieces:
                after = before.deep_copy()
                if after.try_consume_tokens(piece) == len(piece):
                    if after.validate_tokens(quote):
                        return [*text, *piece]
                    if count != most:
                        waiting.append((after, [*text, *piece], count + 1))
        return []

    def _improved(self, matcher: LLMatcher, best: Tokens | None, limit: int, longest: int) -> Tokens | None:
        """Follow `best`; at each place where other tokens may come, take the one with which `find` comes to a shorter completion, if there
        is one. Ends as soon as one has at most `limit` tokens.
        """
        state, done, left = matcher.deep_copy(), Tokens(), SEARCH_TOKENS
        while (best is None or len(best) > limit) and left > 0 and len(done) < longest and not state.is_accepting():
            step = state.compute_ff_tokens()
            for token, after in () if step else self._alternatives(state):
                bound = longest if best is None else len(best) - 1
                rest = self.find(after, bound - len(done) - 1, by_pieces=False)
                left -= TRIAL_TOKENS + (bound - len(done) if rest is None else len(rest) + 1)
                best = best if rest is None else [*done, token, *rest]
            step = step or ([best[len(done)]] if best is not None else self.vocabulary.closing(allowed(state)))
            if not step or state.try_consume_tokens(step) < len(step):
                break
            left -= len(step)
            done += step
        return best if best is None else self._merged(matcher, best)

    def _merged(self, matcher: LLMatcher, tokens: Tokens) -> Tokens:
        """The same text in the tokens of the model's tokenizer, if these are fewer."""
        merged: Tokens = self._tokenizer.tokenize_bytes(self._tokenizer.decode_bytes(tokens))
        return merged if len(merged) < len(tokens) and self._completes(matcher, merged, 0) else tokens

    def _alternatives(self, state: LLMatcher) -> Iterator[tuple[int, LLMatcher]]:
        """Tokens that may come next, each with the state after it. Of several after which the same may follow, only the first."""
        seen = set()
        for token in self.vocabulary.alternatives(allowed(state))[:ALTERNATIVES]:
            after = state.deep_copy()
            if after.consume_token(token):
                mask = bytes(after.compute_bitmask())
                if mask not in seen:
                    seen.add(mask)
                    yield token, after


def allowed(matcher: LLMatcher) -> NDArray[np.bool_]:
    """For each token of the vocabulary, whether it may come next."""
    bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    return np.unpackbits(bits, bitorder="little").view(np.bool_)

"""The end of an answer that follows a grammar: which tokens complete it, and few of them.

    Completions(tokenizer, marks)      `marks`: tokens that end a text which no quotation mark ends, such as a thought,
                                       or a list in which another item may come
    .of_grammar(grammar)               the same for a regular expression, or a grammar whose strings have patterns or formats, or whose
                                       numbers are multiples: it looks for what these need
    .find(matcher, limit, walk) -> list[int] | None        good and fast: one way is followed, the token that closes most comes first
    .search(matcher, limit) -> list[int] | None            the same, with the other ways tried out where the first is too long
    .shortest(matcher, longest) -> list[int] | None        the shortest that a search comes to
    .resume(matcher, earlier, limit, walk) -> list[int] | None   from a completion of the state a token before

All return at most `limit` (`longest`) tokens after which the grammar accepts the answer, or None when none were found. `matcher` stays as
it is. What a search may take does not depend on `limit`: a `Walk` says how many steps it has. Knows no slots and no requests.
"""

import copy
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from app.engine.vocabulary import Vocabulary
from app.forms.examples import digits_to_multiples, examples, has_patterns, is_regex, multiples

FIND_STEPS = 8000  # of one way, before an answer begins; most take 30 to 100 us
SEARCH_STEPS = 4000  # of trials of one length, and of what is followed between them
TRIALS = (60, 400, 2000)  # steps of one trial where no way is known; longer ones come where no shorter one finds an end
TRIAL_STEPS = 20  # more that a trial counts as, for the state and the mask it begins with
ALTERNATIVES = 48  # tried out at one place
RESUME_STEPS = 4  # tokens found anew before an earlier completion goes on
RESUME_SKIP = 4  # tokens of the earlier completion that may be left out
CLOSING_BYTES = b'"]},'
SEPARATOR = b","
CHECKED_TOKENS = 64  # of an earlier completion, while there is as much room left beside it; otherwise all are checked

DIGITS = "0123456789"
COMMON_PIECES = ("a", "0", "A", "@", ".", ":", "/", "-")  # of texts with a pattern or a format
PIECE_TRIALS = 2000  # in one completion

Tokens = list[int]


@dataclass(slots=True)
class Walk:
    """A way to an end, while it is looked for."""

    number: bytes = b""  # at the end of the answer, if it ends in one
    steps: int = FIND_STEPS  # that are left: places at which a token is chosen
    trials: int = PIECE_TRIALS  # of pieces that are left; without any, a string that several right characters must end is not completed
    seen: set[bytes] = field(default_factory=set)  # the masks of the places within the string where it went on before
    visits: Counter[bytes] = field(default_factory=Counter)  # of masks of the places within the number


class Completions:
    def __init__(self, tokenizer: LLTokenizer, marks: Sequence[Tokens] = ()) -> None:
        self.vocabulary, self.end_token = Vocabulary(tokenizer), tokenizer.eos_token
        self._marks = marks
        self._token_marks = [mark for mark in marks if mark and tokenizer.is_special_token(mark[0])]
        self._tokenizer = tokenizer
        self._pieces: list[Tokens] = []  # of which a string is made that has a pattern or a format
        self._is_regex = False  # a quotation mark in it is a character as any other
        self._multiples: tuple[int, ...] = ()  # of which whole numbers are multiples

    def of_grammar(self, grammar: str) -> "Completions":
        own = copy.copy(self)
        own._multiples, own._is_regex = multiples(grammar), is_regex(grammar)
        if has_patterns(grammar):
            texts = {text[start:] for text in examples(grammar) for start in range(len(text))} | {*COMMON_PIECES}
            own._pieces = [self._tokenizer.tokenize_str(text) for text in sorted(texts, key=lambda text: (len(text), text))]
        return own

    def find(self, matcher: LLMatcher, limit: int, walk: Walk | None = None) -> Tokens | None:
        """Where `walk` has no steps left afterwards, it may be that a completion was not found for this reason."""
        state, found, walk = matcher.deep_copy(), Tokens(), walk or Walk()
        while not state.is_accepting():
            tokens = self._next(state, walk) if len(found) < limit and walk.steps > 0 else []
            if not tokens or state.try_consume_tokens(tokens) < len(tokens):
                return None
            found += tokens
        return found if len(found) <= limit else None

    def search(self, matcher: LLMatcher, limit: int) -> Tokens | None:
        longest = 4 * limit + CHECKED_TOKENS  # tokens of a completion from which the search may begin
        best = self._improved(matcher, self.find(matcher, longest), limit, longest)
        return best if best is not None and len(best) <= limit else None

    def shortest(self, matcher: LLMatcher, longest: int) -> Tokens | None:
        """The shortest completion that a search comes to, of at most `longest` tokens."""
        return self._improved(matcher, self.find(matcher, longest), 0, longest)

    def resume(self, matcher: LLMatcher, earlier: Sequence[int], limit: int, walk: Walk | None = None) -> Tokens | None:
        walk = walk or Walk()
        state, found, first = matcher.deep_copy(), Tokens(), Walk(walk.number, trials=0)
        for _ in range(RESUME_STEPS):
            for rest in self._rests(earlier):
                room = limit - len(found) - len(rest)
                if room >= 0 and self._completes(state, rest, room):
                    return found + rest
            tokens = self._next(state, first)
            if state.is_accepting() or not tokens or state.try_consume_tokens(tokens) < len(tokens):
                break
            found += tokens
        return self.find(matcher, limit, walk)

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
        walk.steps -= 1
        tokens = state.compute_ff_tokens() or self._chosen(state, walk)
        self._go_on(walk, tokens)
        return tokens

    def _go_on(self, walk: Walk, tokens: Sequence[int]) -> None:
        for token in tokens:
            walk.number = self.vocabulary.number_after(walk.number, token)
        if not walk.number:
            walk.visits.clear()
        if self._end_a_string(tokens):
            walk.seen.clear()

    def _chosen(self, state: LLMatcher, walk: Walk) -> Tokens:
        mask = allowed(state)
        self.vocabulary.bound_number(walk.number, mask)
        if self.vocabulary.is_in_number(mask) and (digits := self._ending_digits(state, mask, walk)):
            return digits
        tokens = self.vocabulary.closing(mask)
        in_string = self.vocabulary.is_in_string(mask)
        may_go_on = in_string or self._tokenizer.decode_bytes(tokens).strip() == SEPARATOR
        tokens = next((end for end in (self._marks if may_go_on else self._token_marks) if self._ends_text(state, end)), tokens)
        return (in_string and not self._end_a_string(tokens) and self._out_of_loop(state, walk)) or tokens

    def _end_a_string(self, tokens: Sequence[int]) -> bool:
        return not self._is_regex and self.vocabulary.end_a_string(tokens)

    def _ending_digits(self, state: LLMatcher, mask: NDArray[np.bool_], walk: Walk) -> Tokens:
        """Digits after which a number may end that may not end here; empty if none were found. A bound that is excluded, or a multiple, may
        ask for other digits than those that close most, forever. Looks at every place first, and then less and less often.
        """
        place = np.packbits(mask).tobytes()
        walk.visits[place] += 1
        if walk.visits[place].bit_count() > 1:
            return []
        for text in (*DIGITS, *digits_to_multiples(walk.number, self._multiples)):
            walk.steps -= 1
            tokens, after = [self.vocabulary.digits[digit] for digit in text], state.deep_copy()
            if after.try_consume_tokens(tokens) == len(tokens) and not self.vocabulary.is_in_number(allowed(after)):
                return tokens
        return []

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
                    if after.is_accepting() if self._is_regex else after.validate_tokens(quote):
                        return [*text, *piece]
                    if count != most:
                        waiting.append((after, [*text, *piece], count + 1))
        return []

    def _improved(self, matcher: LLMatcher, best: Tokens | None, limit: int, longest: int) -> Tokens | None:
        """A completion of at most `limit` tokens, or the shortest that was found."""
        for steps in TRIALS:
            best = self._tried(matcher, best, limit, longest, steps)
            if best is not None or longest <= steps:
                break
        return best if best is None else self._merged(matcher, best)

    def _tried(self, matcher: LLMatcher, best: Tokens | None, limit: int, longest: int, steps: int) -> Tokens | None:
        """Follow `best`; at each place where other tokens may come, take the one with which `find` comes to a shorter completion, if there
        is one. Ends as soon as one has at most `limit` tokens.
        """
        state, done, followed, left = matcher.deep_copy(), Tokens(), Walk(trials=0), SEARCH_STEPS
        while (best is None or len(best) > limit) and left > 0 and len(done) < longest and not state.is_accepting():
            step = state.compute_ff_tokens()
            for token, after in () if step else self._alternatives(state):
                bound = longest if best is None else len(best) - 1
                most = min(steps, left) if best is None else left
                walk = Walk(self.vocabulary.number_after(followed.number, token), most, trials=0)
                rest = self.find(after, bound - len(done) - 1, walk)
                left -= TRIAL_STEPS + most - walk.steps
                best = best if rest is None else [*done, token, *rest]
            step = step or ([best[len(done)]] if best is not None else self._chosen(state, followed))
            if not step or state.try_consume_tokens(step) < len(step):
                break
            self._go_on(followed, step)
            left -= len(step)
            done += step
        return best

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

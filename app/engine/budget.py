"""How many prefill and score tokens may join a step without slowing down the slots that decode. Pure arithmetic on measured durations.

The estimates come from the steps themselves: how long a step with decoding rows alone takes, and what each further token adds to it.
"""

from dataclasses import dataclass, field

from app.engine.costs import RowCosts

MIN_TOKENS = 8  # prefill tokens that may always join a step: prompts make progress on the slowest device. Fewer score tokens wait for more
# The same where decode steps are recorded: a card computes so many rows hardly slower than a few, and a step that is not recorded takes
# longer whatever its tokens.
MIN_TOKENS_RECORDED = 256
SCORE_TIME_SHARE = 0.3  # part of the extra time of all steps that texts to score may take
DECODE_ONLY_INTERVAL = 8  # of so many steps with decoding rows, one takes no other tokens: it measures how long decoding alone takes
FLEX_TIME_SHARE = 0.3  # time that `flex` work may add to the steps of people, as a part of what they take without it
LATEST_WEIGHT = 0.3  # weight of the latest step in a moving average


@dataclass(slots=True)
class StepBudget:
    """A step takes at most `max_tokens` prefill or score tokens. When slots decode, it takes only as many prefill tokens as keep its
    duration within `stretch` times that of decoding alone. Score tokens may take their share of that time over several steps: where it is
    less than `MIN_TOKENS` a step, it is saved up for one of the next.
    """

    max_tokens: int
    stretch: float
    min_tokens: int = MIN_TOKENS
    costs: RowCosts = field(default_factory=RowCosts)
    _decode_s: dict[int, float] = field(default_factory=dict)  # duration of a decode-only step, by bit length of its number of rows
    _prefill_token_s: float | None = None  # seconds that a prefill token adds to a step
    _score_token_s: float | None = None
    _decode_steps: int = 0
    _saved_tokens: float = 0.0  # score tokens that steps with decoding rows left to later ones

    def token_limits(self, decode_rows: int, waiting_prompts: int) -> tuple[int, int]:
        """Limits of the next step: prefill tokens, and score tokens. A step with decoding rows should use only one of the two.

        `waiting_prompts` requests wait for their first token. The more of them there are for each decoding row, the more extra time
        their prompts get: once they are prefilled, all share the same decode steps.
        """
        if not decode_rows:
            return self.max_tokens, self.max_tokens
        self._decode_steps += 1
        if self._decode_steps % DECODE_ONLY_INTERVAL == 0:
            return 0, 0
        decode_s = self._decode_only_s(decode_rows)
        if decode_s is None:
            return self.max_tokens, self.max_tokens
        spare_s, ratio = decode_s * (self.stretch - 1), waiting_prompts / decode_rows
        prefill_tokens = self._tokens_within(spare_s * (1 + ratio + ratio**2), self._prefill_token_s)
        return prefill_tokens, self._score_tokens(spare_s * SCORE_TIME_SHARE)

    def record(self, decode_rows: int, prefill_tokens: int, score_tokens: int, step_s: float) -> None:
        """Update the estimates from a finished step. A step with both kinds of tokens is ignored: it does not say what either cost."""
        if prefill_tokens and score_tokens:
            return
        extra_tokens = prefill_tokens + score_tokens
        if not extra_tokens:
            self.costs.record(decode_rows, step_s)
            bits = decode_rows.bit_length()
            self._decode_s[bits] = _moving_average(self._decode_s.get(bits), step_s)
            return
        token_s = max(0.0, step_s - (self._decode_only_s(decode_rows) or 0.0)) / extra_tokens
        if extra_tokens < MIN_TOKENS and not decode_rows:
            return  # a step of a few tokens costs as much as any small step, so it says nothing about the cost of a token
        if prefill_tokens:
            self._prefill_token_s = _moving_average(self._prefill_token_s, token_s)
        else:
            self._score_token_s = _moving_average(self._score_token_s, token_s)
            self._saved_tokens -= score_tokens if decode_rows else 0

    def _decode_only_s(self, decode_rows: int) -> float | None:
        """Duration of a decode-only step of about `decode_rows` rows, or of the nearest number that was measured."""
        nearest = min(self._decode_s, key=lambda bits: abs(bits - decode_rows.bit_length()), default=None)
        return None if nearest is None else self._decode_s[nearest]

    def _score_tokens(self, spare_s: float) -> int:
        """What fits into `spare_s`. If that is less than `MIN_TOKENS`, it is saved up until it is as many, and 0 until then."""
        if not self._score_token_s:
            return self.max_tokens
        fitting = spare_s / self._score_token_s
        self._saved_tokens = min(max(self._saved_tokens, 0) + fitting, fitting if fitting >= MIN_TOKENS else 2 * MIN_TOKENS)
        return min(self.max_tokens, int(self._saved_tokens)) if self._saved_tokens >= MIN_TOKENS else 0

    def _tokens_within(self, spare_s: float, token_s: float | None) -> int:
        if not token_s:
            return self.max_tokens
        return max(self.min_tokens, min(self.max_tokens, int(spare_s / token_s)))


@dataclass(slots=True)
class FlexTime:
    """When `flex` work may join the steps of people who decode. It joins with all its rows at once, as that costs less than some of them
    in every step, and then stays away until steps without it have made up for the time that it took.
    """

    _people_s: dict[int, float] = field(default_factory=dict)  # duration of a step of people alone, by its number of rows
    _balance_s: float = 0.0  # time that flex work is owed; negative after it has joined

    def allows(self, people_rows: int) -> bool:
        return self._balance_s >= 0 and people_rows in self._people_s

    def record(self, people_rows: int, decode_only: bool, joined: bool, step_s: float) -> None:
        """Account for a step in which `people_rows` rows of people decoded; `joined`: together with flex work."""
        if decode_only and not joined:
            self._people_s[people_rows] = _moving_average(self._people_s.get(people_rows), step_s)
        people_s = min(step_s, self._people_s.get(people_rows, step_s)) if joined else step_s
        self._balance_s = min(0.0, self._balance_s + FLEX_TIME_SHARE * people_s - (step_s - people_s))


def _moving_average(average: float | None, value: float) -> float:
    return value if average is None else average + LATEST_WEIGHT * (value - average)

"""How many prompt and text tokens may join the decoding rows of a step, so that those keep their pace. Pure arithmetic on durations.

Learned from the steps as they go: what a step of decoding rows takes by itself, and what each guest token adds to it.
"""

from dataclasses import dataclass, field

LEAST = 8  # guest tokens that may always join: prompts get on, however slow the device
TEXTS = 0.3  # share of the guests' time that texts to score may take
BREATH = 8  # every how-manieth step with decoding rows takes no guests: how long those take by themselves is to be known
NEW = 0.3  # weight of the latest step in an average


@dataclass(slots=True)
class Pace:
    """`most` guest tokens a step; with decoding rows, as many as make the step last about `stretch` times what it would without."""

    most: int
    stretch: float
    _alone_s: dict[int, float] = field(default_factory=dict)  # by the binary digits of the number of decoding rows
    _prompt_s: float | None = None  # seconds a token
    _text_s: float | None = None
    _steps: int = 0

    def room(self, decodes: int, prompts: int) -> tuple[int, int]:
        """Tokens that prompts and texts may each have in the next step, when `decodes` rows decode and `prompts` requests wait for
        their first token. The more wait beside each that decodes, the more their time counts: soon together, they share a step.
        """
        if not decodes:
            return self.most, self.most
        self._steps += 1
        if self._steps % BREATH == 0:
            return 0, 0
        alone_s = self._alone(decodes)
        if alone_s is None:
            return self.most, self.most
        spare_s, beside = alone_s * (self.stretch - 1), prompts / decodes
        return self._tokens(spare_s * (1 + beside + beside**2), self._prompt_s), self._tokens(spare_s * TEXTS, self._text_s)

    def learn(self, decodes: int, prompt_tokens: int, text_tokens: int, step_s: float) -> None:
        """Account for a step. One with guests of both kinds says too little about either and is left out."""
        if prompt_tokens and text_tokens:
            return
        guests = prompt_tokens + text_tokens
        if not guests:
            digits = decodes.bit_length()
            self._alone_s[digits] = _mean(self._alone_s.get(digits), step_s)
            return
        cost_s = max(0.0, step_s - (self._alone(decodes) or 0.0)) / guests
        if guests < LEAST and not decodes:
            return  # a few tokens by themselves cost what any step costs
        if prompt_tokens:
            self._prompt_s = _mean(self._prompt_s, cost_s)
        else:
            self._text_s = _mean(self._text_s, cost_s)

    def _alone(self, decodes: int) -> float | None:
        """As measured for about as many rows, or for the nearest number there is."""
        near = min(self._alone_s, key=lambda digits: abs(digits - decodes.bit_length()), default=None)
        return None if near is None else self._alone_s[near]

    def _tokens(self, spare_s: float, token_s: float | None) -> int:
        if not token_s:
            return self.most
        return max(LEAST, min(self.most, int(spare_s / token_s)))


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + NEW * (new - old)

"""A slot: a resident context, one row of the key-value cache, and the request that lives in it. Knows no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from app.engine.detokenizer import Decode, Detokenizer, Stopper
from app.engine.request import Finish, Generate, Residence, Stage, TokenLogprob

STRIDE = 64  # tokens compared at once


@dataclass(slots=True, eq=False)
class Slot:
    index: int
    request: Generate | None = None
    turn: int = 0  # the how-manieth admission of the engine this is: tells one tenant from the next
    released: int = 0  # the how-manieth release this was: the smallest is the longest idle
    length: int = 0  # tokens whose keys and values are in the cache; they stay when the request has gone
    tokens: list[int] = field(default_factory=list)  # prompt and what was sampled
    cached: int = 0  # prompt tokens that were resident already
    share: "Share | None" = None
    group: tuple["Slot", ...] = ()  # the slots of a search, the leading one first
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    detokenizer: Detokenizer | None = None
    stopper: Stopper | None = None

    def admit(self, request: Generate, turn: int, decode: Decode, kept: int) -> None:
        """Take `request`, of whose prompt the first `kept` tokens are in the cache."""
        self.request, self.turn = request, turn
        self.length = self.cached = kept
        self.tokens = list(request.prompt)
        self.share, self.group, self.prompt_logprobs = None, (), []
        self.detokenizer = Detokenizer(decode, request.prompt)
        self.stopper = Stopper(request.stop)

    def release(self, number: int) -> None:
        self.request = self.detokenizer = self.stopper = self.share = None
        self.group = ()
        self.released = number
        del self.tokens[self.length :]

    @property
    def stage(self) -> Stage:
        if self.request is None:
            return "idle"
        return "decode" if self.length == len(self.tokens) - 1 and self.length >= len(self.request.prompt) else "prefill"

    @property
    def follows(self) -> bool:
        """One of a search's slots, but not the one that reads the prompt."""
        return bool(self.group) and self.group[0] is not self

    @property
    def generated(self) -> int:
        assert self.request is not None
        return len(self.tokens) - len(self.request.prompt)

    def residence(self) -> Residence:
        request = self.request
        return Residence(
            slot=self.index,
            stage=self.stage,
            request=request.id if request else None,
            prompt_tokens=len(request.prompt) if request else 0,
            cached_tokens=self.length,
            generated_tokens=self.generated if request else 0,
        )

    def push(self, token: int, ends: frozenset[int], complete: bool = False) -> tuple[str, Finish | None]:
        """Take the sampled token; returns the text that may be shown now and why the answer ends here, if it does. It is `complete`
        where its grammar lets nothing follow.
        """
        assert self.request is not None and self.detokenizer is not None and self.stopper is not None
        self.tokens.append(token)
        if token in ends:
            return self._rest()[0], "stop"
        text, stopped = self.stopper.push(self.detokenizer.push(token))
        if stopped:
            return text, "stop"
        if complete or self.generated >= self.request.max_tokens:
            rest, stopped = self._rest()
            return text + rest, "stop" if complete or stopped else "length"
        return text, None

    def _rest(self) -> tuple[str, bool]:
        """What was held back and is text after all, and whether a stop string was met in it."""
        assert self.detokenizer is not None and self.stopper is not None
        text, stopped = self.stopper.push(self.detokenizer.flush())
        return text + self.stopper.flush(), stopped


@dataclass(frozen=True, slots=True)
class Share:
    """The first `tokens` of a prompt are, or will be, in the cache of another slot as long as that has the same tenant."""

    donor: Slot
    turn: int
    tokens: int

    @property
    def held(self) -> bool:
        return self.donor.turn == self.turn

    @property
    def coming(self) -> bool:
        """The donor is still reading them itself."""
        return self.held and self.donor.stage == "prefill" and self.donor.length < self.tokens


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    most = min(len(one), len(other))
    at = 0
    while at < most and list(one[at : at + STRIDE]) == list(other[at : at + STRIDE]):
        at += STRIDE
    at = min(at, most)
    while at < most and one[at] == other[at]:
        at += 1
    return at

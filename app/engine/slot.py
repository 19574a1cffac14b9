"""A slot: one row of the KV cache and the request that runs in it. Knows no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from app.engine.detokenizer import Detokenize, Detokenizer, StopChecker
from app.engine.request import Finish, Generate, Progress, SlotReport, Stage, TokenLogprob
from app.engine.thought import LimitedThought

COMPARE_TOKENS = 64  # tokens compared at a time


@dataclass(slots=True, eq=False)
class Slot:
    index: int
    request: Generate | None = None
    adapter: str | None = None  # with which the keys and values in the cache were computed
    admission: int = 0  # serial number of the latest admission to this slot: tells whether the slot still runs the same request
    release_order: int = 0  # serial number of the latest release: the slot with the smallest one has been idle longest
    length: int = 0  # tokens whose keys and values are in the cache; they stay there after the request has finished
    tokens: list[int] = field(default_factory=list)  # the prompt and the sampled tokens
    cached: int = 0  # prompt tokens whose keys and values did not have to be computed for this request
    admitted_s: float = 0.0  # when the request got the slot, by `time.monotonic`
    prefill_s: float = 0.0  # seconds from then to its first token
    shared_prefix: "SharedPrefix | None" = None
    group: tuple["Slot", ...] = ()  # the slots of a beam or contrastive search, the leading one first
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    detokenizer: Detokenizer | None = None
    stop_checker: StopChecker | None = None
    thought: LimitedThought | None = None  # of a request that limits it

    def admit(self, request: Generate, admission: int, detokenize: Detokenize, cached: int) -> None:
        """Start `request`. The keys and values of the first `cached` tokens of its prompt are already in this slot's cache."""
        self.request, self.admission, self.adapter = request, admission, request.adapter
        self.length = self.cached = cached
        self.tokens = list(request.prompt)
        self.shared_prefix, self.group, self.prompt_logprobs = None, (), []
        self.detokenizer = Detokenizer(detokenize, request.prompt)
        self.stop_checker = StopChecker(request.stop)
        self.thought = None if request.thought is None else LimitedThought(request.thought)
        for token in request.sampled:  # their text was sent by the worker that sampled them
            self.push(token, frozenset())

    def release(self, release_order: int) -> None:
        """Make the slot idle. `length` and the tokens in the cache stay, so that a later request can reuse them."""
        self.request = self.detokenizer = self.stop_checker = self.shared_prefix = self.thought = None
        self.group = ()
        self.release_order = release_order
        del self.tokens[self.length :]

    @property
    def stage(self) -> Stage:
        if self.request is None:
            return "idle"
        return "decode" if self.length == len(self.tokens) - 1 and self.length >= len(self.request.prompt) else "prefill"

    @property
    def is_flex(self) -> bool:
        """Whether the slot runs a request that gives way to those of people."""
        return self.request is not None and self.request.tier == "flex"

    @property
    def is_follower(self) -> bool:
        """Whether the slot belongs to a search, but is not the leading slot, which alone prefills the prompt."""
        return bool(self.group) and self.group[0] is not self

    @property
    def generated(self) -> int:
        """Tokens sampled so far."""
        assert self.request is not None
        return len(self.tokens) - len(self.request.prompt)

    def report(self) -> SlotReport:
        request = self.request
        return SlotReport(
            slot=self.index,
            stage=self.stage,
            request=request.id if request else None,
            prompt_tokens=len(request.prompt) if request else 0,
            cached_tokens=self.length,
            generated_tokens=self.generated if request else 0,
        )

    def progress(self, now_s: float) -> list[Progress]:
        """How far the prompt is read; empty unless the request asks for it."""
        request = self.request
        if request is None or not request.progress:
            return []
        return [Progress(request.id, len(request.prompt), self.cached, self.length, now_s - self.admitted_s)]

    def push(self, token: int, end_tokens: frozenset[int], complete: bool = False) -> tuple[str, Finish | None]:
        """Add the sampled token; returns the text that can be emitted now, and the finish reason if the answer ends here. `complete`
        says that the answer's grammar allows no further token.
        """
        assert self.request is not None and self.detokenizer is not None and self.stop_checker is not None
        self.tokens.append(token)
        if token in end_tokens:
            return self._flush()[0], "stop"
        written = self.detokenizer.push(token)
        if self.thought is not None:
            self.thought.push(written)
        text, stopped = self.stop_checker.push(written)
        if stopped:
            return text, "stop"
        if complete or self.generated >= self.request.max_tokens:
            rest, stopped = self._flush()
            return text + rest, "stop" if complete or stopped else "length"
        return text, None

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the answer."""
        return None if self.stop_checker is None else self.stop_checker.found

    def _flush(self) -> tuple[str, bool]:
        """The text held back so far, and whether it contained a stop string, at which it is cut."""
        assert self.detokenizer is not None and self.stop_checker is not None
        text, stopped = self.stop_checker.push(self.detokenizer.flush())
        return text + self.stop_checker.flush(), stopped


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """The first `tokens` tokens of a prompt, which the slot `donor` has in its cache or is about to prefill. Valid as long as `donor`
    still runs, or last ran, its admission number `admission`.
    """

    donor: Slot
    admission: int
    tokens: int

    @property
    def valid(self) -> bool:
        return self.donor.admission == self.admission

    @property
    def pending(self) -> bool:
        """Whether the donor is still prefilling these tokens."""
        return self.valid and self.donor.stage == "prefill" and self.donor.length < self.tokens


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of tokens with which both sequences begin."""
    limit = min(len(a), len(b))
    at = 0
    while at < limit and list(a[at : at + COMPARE_TOKENS]) == list(b[at : at + COMPARE_TOKENS]):
        at += COMPARE_TOKENS
    at = min(at, limit)
    while at < limit and a[at] == b[at]:
        at += 1
    return at

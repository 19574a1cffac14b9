"""A slot: a request that runs, its tokens, and the pages of the KV cache that hold them. Knows no torch."""

from dataclasses import dataclass, field, replace

from app.engine.detokenizer import Detokenize, Detokenizer, StopChecker
from app.engine.events import Finish, SlotReport, Stage, TokenLogprob
from app.engine.notices import Progress
from app.engine.request import Generate
from app.engine.thought import LimitedThought


@dataclass(slots=True, eq=False)
class Slot:
    index: int
    request: Generate | None = None
    adapter: str | None = None  # with which its keys and values are computed
    admission: int = 0  # serial number of the latest admission to this slot: tells whether the slot still runs the same request
    pages: list[int] = field(default_factory=list)  # of the cache, in order; none when the slot is idle
    digests: list[bytes] = field(default_factory=list)  # of the full pages that can be found by others, each of all up to its end
    length: int = 0  # tokens whose keys and values are in the cache; of an idle slot: that were when its request ended
    tokens: list[int] = field(default_factory=list)  # the prompt and the sampled tokens
    cached: int = 0  # prompt tokens whose keys and values did not have to be computed for this request
    arrived_s: float = 0.0  # when the request came, by `time.monotonic`
    arrival: int = 0  # its serial number
    admitted_s: float = 0.0  # when the request got the slot, by `time.monotonic`
    drafted: int = 0  # tokens that were drafted and run since then
    accepted: int = 0  # how many of them are in the answer
    prefill_s: float = 0.0  # seconds from then to its first token
    shared_prefix: "SharedPrefix | None" = None
    group: tuple["Slot", ...] = ()  # the slots of a beam or contrastive search, the leading one first
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    detokenizer: Detokenizer | None = None
    stop_checker: StopChecker | None = None
    thought: LimitedThought | None = None  # of a request that limits it
    is_drawn_by_host: bool = False  # because the device once could not draw a token, with what it looks at

    def admit(self, request: Generate, admission: int, detokenize: Detokenize) -> None:
        """Start `request`, without any pages."""
        self.request, self.admission, self.adapter = request, admission, request.adapter
        self.length = self.cached = self.drafted = self.accepted = 0
        self.tokens = list(request.prompt)
        self.shared_prefix, self.group, self.prompt_logprobs = None, (), []
        self.detokenizer = Detokenizer(detokenize, request.prompt)
        self.stop_checker = StopChecker(request.stop)
        self.thought = None if request.thought is None else LimitedThought(request.thought)
        self.is_drawn_by_host = False
        for token in request.sampled:  # their text was sent by the worker that sampled them
            self.push(token, frozenset())

    def release(self) -> None:
        """Make the slot idle. Its pages have to be taken from it before."""
        self.request = self.detokenizer = self.stop_checker = self.shared_prefix = self.thought = None
        self.group, self.tokens = (), []

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
    def rest(self) -> Generate:
        """The request as it goes on after what was sampled so far, in another slot."""
        assert self.request is not None
        sampled = tuple(self.tokens[len(self.request.prompt) :])
        return replace(self.request, sampled=sampled, prompt_logprobs=None, progress=False) if sampled else self.request

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
            drafted_tokens=self.drafted if request else 0,
            accepted_tokens=self.accepted if request else 0,
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
        is_early = self.generated <= self.request.sampling.min_tokens  # as vLLM does: stop strings are looked for in what comes after
        text, stopped = (written, False) if is_early else self.stop_checker.push(written)
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
    """The first `tokens` tokens of a prompt, which the slot `donor` has in its pages or is about to prefill. Valid as long as `donor` runs
    its admission number `admission`; then its pages can be found, if it has ended.
    """

    donor: Slot
    admission: int
    tokens: int

    @property
    def valid(self) -> bool:
        return self.donor.request is not None and self.donor.admission == self.admission

    @property
    def pending(self) -> bool:
        """Whether the donor is still prefilling these tokens."""
        return self.valid and self.donor.stage == "prefill" and self.donor.length < self.tokens

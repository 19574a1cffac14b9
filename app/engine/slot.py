"""A slot: a resident context, one row of the key-value cache, and the request that lives in it. Knows no torch."""

from dataclasses import dataclass, field

from app.engine.request import Finish, Generate
from app.engine.text import Decode, Detokenizer, Stopper


@dataclass(slots=True)
class Slot:
    index: int
    request: Generate | None = None
    turn: int = 0  # the how-manieth request of the engine this is
    length: int = 0  # tokens whose keys and values are in the cache
    tokens: list[int] = field(default_factory=list)  # prompt and what was sampled
    detokenizer: Detokenizer | None = None
    stopper: Stopper | None = None

    def admit(self, request: Generate, decode: Decode) -> None:
        self.request = request
        self.length = 0
        self.tokens = list(request.prompt)
        self.detokenizer = Detokenizer(decode)
        self.stopper = Stopper(request.stop)

    def release(self) -> None:
        self.request = self.detokenizer = self.stopper = None

    @property
    def decoding(self) -> bool:
        """Only the last token is missing from the cache."""
        return self.request is not None and self.length == len(self.tokens) - 1 and self.length >= len(self.request.prompt)

    @property
    def generated(self) -> int:
        assert self.request is not None
        return len(self.tokens) - len(self.request.prompt)

    def push(self, token: int, ends: frozenset[int]) -> tuple[str, Finish | None]:
        """Take the sampled token; returns the text that may be shown now and why the answer ends here, if it does."""
        assert self.request is not None and self.detokenizer is not None and self.stopper is not None
        self.tokens.append(token)
        if token in ends:
            return self._rest()[0], "stop"
        text, stopped = self.stopper.push(self.detokenizer.push(token))
        if stopped:
            return text, "stop"
        if self.generated >= self.request.max_tokens:
            rest, stopped = self._rest()
            return text + rest, "stop" if stopped else "length"
        return text, None

    def _rest(self) -> tuple[str, bool]:
        """What was held back and is text after all, and whether a stop string was met in it."""
        assert self.detokenizer is not None and self.stopper is not None
        text, stopped = self.stopper.push(self.detokenizer.flush())
        return text + self.stopper.flush(), stopped

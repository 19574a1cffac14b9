"""One of the two answers that are compared: its settings, what has arrived of it, how it ended, and its times.

Pure: callers pass the current time in. Knows no HTTP and no HTML.
"""

from dataclasses import dataclass, field, fields

from ui.chat.answer import Answer
from ui.chat.sampling import NO_SEED, Form
from ui.client import RequestFields

NAMES = ("A", "B")


@dataclass(frozen=True, slots=True)
class Settings:
    """As the visitor typed them; blank means the model's default."""

    model: str = ""
    temperature: str = ""
    top_p: str = ""
    seed: str = ""
    max_tokens: str = ""
    system: str = ""

    def body(self, prompt: str) -> RequestFields:
        """The request for an answer to `prompt`. Raises `FormError`."""
        form = Form(max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed, system=self.system)
        messages = [*form.system_messages(), {"role": "user", "content": prompt}]
        model = {"model": self.model} if self.model else {}
        return {**model, "messages": messages, **form.request_fields()}

    def given(self, name: str) -> str:
        """What was typed there; blank for a seed that is none."""
        value = str(getattr(self, name)).strip()
        return "" if name == "seed" and value == str(NO_SEED) else value


LABELS = {
    "model": "Model",
    "temperature": "Temperature",
    "top_p": "Top-p",
    "seed": "Seed",
    "max_tokens": "Max tokens",
    "system": "System prompt",
}


def differences(left: Settings, right: Settings) -> dict[str, tuple[str, str]]:
    """The settings that differ, by their names."""
    pairs = {each.name: (left.given(each.name), right.given(each.name)) for each in fields(Settings)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(slots=True)
class Side:
    """An answer is waited for from `begin` on, until `end`."""

    name: str
    settings: Settings
    prompt: str
    answer: Answer = field(default_factory=lambda: Answer(0.0))
    sent_s: float | None = None
    ended_s: float | None = None
    problem: str = ""  # why there is no answer, or no whole one
    stopped: bool = False

    def begin(self, now_s: float) -> None:
        self.sent_s, self.answer = now_s, Answer(now_s)

    def end(self, now_s: float, problem: str = "") -> None:
        self.ended_s, self.problem = now_s, problem

    def stop(self, now_s: float) -> None:
        """The visitor did not want to wait for the rest."""
        if self.ended_s is None:
            self.ended_s, self.stopped = now_s, True

    @property
    def has_ended(self) -> bool:
        return self.ended_s is not None

    @property
    def total_s(self) -> float | None:
        return None if self.sent_s is None or self.ended_s is None else self.ended_s - self.sent_s

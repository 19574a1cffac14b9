"""Which of the served models the visitor means, and what a request calls it.

Pure: knows what the server says it serves; no Gradio, no HTTP, no HTML.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.schemas import ModelCard, Readiness


@dataclass(frozen=True, slots=True)
class Choice:
    """`asked` is the name chosen on the page, now or on an earlier visit; blank where none was."""

    cards: Sequence[ModelCard]
    readiness: Readiness
    asked: str = ""

    @property
    def card(self) -> ModelCard | None:
        """The model asked for; where it is not served, the server's default; while that is loading, the first there is."""
        named = [card for card in self.cards if card.id == self.asked]
        default = [card for card in self.cards if card.default]
        return next(iter([*named, *default, *self.cards]), None)

    @property
    def several(self) -> bool:
        return len(self.cards) > 1

    @property
    def sent(self) -> str | None:
        """`model` of a request. Left out where a lone default answers anyway."""
        if self.card is None or (self.card.default and not self.several):
            return None
        return self.card.id

    @property
    def missed(self) -> bool:
        """Whether another model than the one asked for is chosen."""
        return bool(self.asked) and self.asked not in [card.id for card in self.cards]

    @property
    def coming(self) -> bool:
        """Whether the model missed will be there once it is loaded."""
        return self.missed and self.asked in self.readiness.models

    @property
    def kept(self) -> str:
        """What to ask for on the next visit: a model that is gone for good is forgotten."""
        return self.card.id if self.card is not None and self.missed and not self.coming else self.asked

    @property
    def loading(self) -> list[str]:
        """Names the server cannot answer for at present. Empty where the one model has all the server's status to itself."""
        return [name for name, presence in self.readiness.models.items() if presence == "loading" and len(self.readiness.models) > 1]

    @property
    def talkers(self) -> list[str]:
        """The models that chat."""
        return [card.id for card in self.cards if card.chat]

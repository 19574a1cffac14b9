"""Decides which of the served models is selected, and what a request sends as `model`.

Pure: knows what the server says it serves; no Gradio, no HTTP, no HTML.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.schemas import ModelCard, Readiness


@dataclass(frozen=True, slots=True)
class ModelSelection:
    """The served models, and the one selected among them.

    `requested` is the name the visitor picked, now or on an earlier visit; blank if they never did.
    """

    cards: Sequence[ModelCard]
    readiness: Readiness
    requested: str = ""

    @property
    def selected(self) -> ModelCard | None:
        """The requested model; if it is not served, the server's default; if that is still loading, the first model there is."""
        requested = [card for card in self.cards if card.id == self.requested]
        default = [card for card in self.cards if card.default]
        return next(iter([*requested, *default, *self.cards]), None)

    @property
    def has_several(self) -> bool:
        return len(self.cards) > 1

    @property
    def request_model(self) -> str | None:
        """What a request sends as `model`. None leaves the field out: a lone default model answers anyway."""
        if self.selected is None or (self.selected.default and not self.has_several):
            return None
        return self.selected.id

    @property
    def is_unavailable(self) -> bool:
        """Whether the requested model is not served now, so that another one is selected."""
        return bool(self.requested) and self.requested not in [card.id for card in self.cards]

    @property
    def will_be_available(self) -> bool:
        """Whether the requested model is unavailable only until the server has loaded it."""
        return self.is_unavailable and self.requested in self.readiness.models

    @property
    def remembered(self) -> str:
        """The name to request on the next visit: the requested one, unless the server no longer serves it at all."""
        return self.selected.id if self.selected is not None and self.is_unavailable and not self.will_be_available else self.requested

    @property
    def loading_names(self) -> list[str]:
        """Names of models that are still loading. Empty for a server of one model: its own status says the same."""
        return [name for name, presence in self.readiness.models.items() if presence == "loading" and len(self.readiness.models) > 1]

    @property
    def chat_names(self) -> list[str]:
        """Names of the models that have a chat template."""
        return [card.id for card in self.cards if card.chat]

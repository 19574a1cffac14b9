"""How a draft model is loaded, and how much of it, beside the model that checks its tokens."""

from app.engine.capacity import CacheLimits
from app.engine.lanes import MAX_LANES
from app.engine.proposer import MAX_READ
from app.errors import SetupError
from app.models.cache import has_states
from app.models.context import context_of
from app.models.source import Source
from app.settings import ModelSettings


def draft_settings(settings: ModelSettings, source: Source) -> ModelSettings:
    """Those by which the draft model is loaded: the model's, but a GGUF file, say, keeps its own precision."""
    return settings if source.own_precision is None else settings.model_copy(update={"quantize": "none"})


def check_states(model: Source, draft: Source) -> None:
    """Raises `SetupError` if one of them keeps states: what was computed for a token that is not kept could not be taken back."""
    for source in (model, draft):
        if has_states(source.config("model.path").get_text_config()):
            raise SetupError(f"model.draft: {source.path} keeps a state of all tokens, which drafts would spoil; leave model.draft out")


def draft_limits(cache: CacheLimits, source: Source) -> CacheLimits:
    """`cache` is that of the model. Longer sequences than a slot's part of it are not drafted for."""
    lanes, context = min(cache.slots or MAX_LANES, MAX_LANES), min(cache.slot_tokens, context_of("model.draft", source))
    return CacheLimits(lanes, context, MAX_READ, cache.sharers, text_window=1)  # it reads no texts

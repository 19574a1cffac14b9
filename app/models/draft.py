"""What a draft model has to be beside the model that checks its tokens, and how much of it is loaded."""

from collections.abc import Mapping

from app.engine.capacity import CacheLimits
from app.engine.lanes import MAX_LANES
from app.engine.proposer import MAX_READ
from app.errors import SetupError
from app.models.context import context_of
from app.models.source import Source
from app.settings import ModelSettings


def check_vocabulary(model: Mapping[str, int], draft: Mapping[str, int], path: str) -> None:
    """Raises `SetupError` unless both have the same tokens under the same ids. `path` is the draft's."""
    if model == draft:
        return
    problem = f"it has {len(draft)} tokens, the model {len(model)}"
    if len(model) == len(draft):
        token = min((id, token) for token, id in model.items() if draft.get(token) != id)[1]
        problem = f"token {token!r} has the id {draft.get(token)} there and {model[token]} in the model"
    raise SetupError(
        f"model.draft: {path} has another vocabulary than the model: {problem}; give a model with the same tokenizer, as a smaller one of "
        "the same family usually has, or leave model.draft out"
    )


def draft_settings(settings: ModelSettings, source: Source) -> ModelSettings:
    """Those by which the draft model is loaded: the model's, but a GGUF file, say, keeps its own precision."""
    return settings if source.own_precision is None else settings.model_copy(update={"quantize": "none"})


def draft_limits(cache: CacheLimits, source: Source) -> CacheLimits:
    """`cache` is that of the model. Longer sequences than a slot's part of it are not drafted for."""
    lanes, context = min(cache.slots or MAX_LANES, MAX_LANES), min(cache.slot_tokens, context_of("model.draft", source))
    return CacheLimits(lanes, context, MAX_READ, cache.sharers, text_window=1)  # it reads no texts

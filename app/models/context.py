"""How long a sequence a model supports, by its config."""

from app.models.source import Source
from app.settings import ModelSettings

NO_LIMIT = 2**31
UNSAID = 4096  # tokens: the context of a model that has no limit, where the settings give none


def context_of(field: str, source: Source) -> int:
    """The longest sequence, in tokens; `NO_LIMIT` where the config gives none. Raises `SetupError` that names `field`, the setting."""
    config = source.config(field)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in {"dynamic", "longrope"}:  # these scale by the longest row of a step, for all its rows
        return int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
    return int(getattr(config, "max_position_embeddings", None) or NO_LIMIT)


def wanted_context(setting: int | None, largest: int, cache_tokens: int | None = None) -> int:
    """Tokens of the setting, or else of a model that holds `largest`: at most those, and those of the cache."""
    own = UNSAID if largest == NO_LIMIT and setting is None else largest
    return min(own if setting is None else setting, own, cache_tokens or own)


def context_setting(settings: ModelSettings, context: int) -> str | None:
    """The setting that gave the context; None where the model or the memory did."""
    if settings.cache_tokens is not None and context == settings.cache_tokens != settings.context:
        return "model.cache_tokens"
    return None if settings.context is None else "model.context"

"""How long a sequence a model supports, by its config."""

from app.models.source import Source

NO_LIMIT = 2**31
UNSAID = 4096  # tokens: the context of a model that has no limit, where the settings give none


def context_of(field: str, source: Source) -> int:
    """The longest sequence, in tokens; `NO_LIMIT` where the config gives none. Raises `SetupError` that names `field`, the setting."""
    config = source.config(field)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in {"dynamic", "longrope"}:  # these scale by the longest row of a step, for all its rows
        return int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
    return int(getattr(config, "max_position_embeddings", None) or NO_LIMIT)


def wanted_context(setting: int | None, largest: int) -> int:
    """Tokens of the setting, which the model may not hold; without one, of a model that holds `largest`."""
    if setting is None:
        return UNSAID if largest == NO_LIMIT else largest
    return min(setting, largest)

"""How long a sequence a model supports, by its config."""

from app.models.source import Source


def context_of(field: str, source: Source) -> int:
    """The longest sequence, in tokens. Raises `SetupError` that names `field`, the setting."""
    config = source.config(field)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in {"dynamic", "longrope"}:  # these scale by the longest row of a step, for all its rows
        return int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
    return int(getattr(config, "max_position_embeddings", None) or 2**31)

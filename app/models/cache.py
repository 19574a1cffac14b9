"""What a model keeps of each token, from its skeleton: one forward on the meta device shows it. Reads no weights."""

from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from app.engine.attention import SlotAttention
from app.engine.conversion import install_attention
from app.engine.convolution import ShortConvolution, is_short_convolution
from app.engine.layout import Span, layout_of
from app.engine.proof import check_layers
from app.errors import UnsupportedModel, first_line

PROBE_TOKENS = 8
SERVED = frozenset(
    {"full_attention", "sliding_attention", "chunked_attention", "conv"}
)  # kinds of layers that keep what the cache can hold


def slot_attention(skeleton: PreTrainedModel) -> SlotAttention:
    """Attention that has seen every layer, for `app.engine.capacity.cache_bytes`.

    Raises `UnsupportedModel` for a model whose layers keep something else than keys and values.
    """
    check_kinds(skeleton.config.get_text_config())
    attention = install_attention(skeleton)
    meta, base = torch.device("meta"), skeleton.base_model
    for module in skeleton.modules():
        if isinstance(kinds := getattr(module, "rope_type", None), str | dict):  # some look at the positions, which have no values here
            setattr(module, "rope_type", "default" if isinstance(kinds, str) else dict.fromkeys(kinds, "default"))  # noqa: B010
    attention.layout = layout_of([], [Span(0, PROBE_TOKENS, 0, None)], PROBE_TOKENS, meta)
    ids: Any = torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device=meta)
    try:
        base(input_ids=ids, attention_mask=mask_of(skeleton, ids), use_cache=False)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, ImportError) as error:
        raise UnsupportedModel(f"{type(skeleton).__name__} cannot be served: {first_line(error)}") from error
    finally:
        attention.layout = None
    check_layers(skeleton, attention)
    return attention


def mask_of(skeleton: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """For a forward of `ids` `[1, tokens]` on the meta device. Without one transformers would look for packed sequences in the positions.
    For convolutions it looks for padding in a mask of two dimensions, the only kind that some others take.
    """
    has_convolutions = any(isinstance(module, ShortConvolution) or is_short_convolution(module) for module in skeleton.modules())
    return torch.zeros(1, 1, ids.shape[1], ids.shape[1], device=ids.device) if has_convolutions else torch.ones_like(ids)


def check_kinds(config: PretrainedConfig) -> None:
    """Raises `UnsupportedModel` if a model's layers keep something that the engine's cache does not hold, such as a state."""
    kinds = sorted(set(getattr(config, "layer_types", None) or []) - SERVED)
    if kinds:
        raise UnsupportedModel(
            f"a model of the type '{config.model_type}' cannot be served: the engine's cache holds keys and values, and what short "
            f"convolutions look back at, but its layers of the kind {', '.join(kinds)} keep something else"
        )

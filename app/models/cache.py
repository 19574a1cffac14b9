"""What a model keeps of each token, from its skeleton: one forward on the meta device shows it. Reads no weights."""

from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from app.engine import varlen
from app.engine.attention import SlotAttention
from app.engine.conversion import install_attention
from app.engine.deltanet import PAGE_TOKENS as STATE_PAGE_TOKENS
from app.engine.layout import Span, layout_of
from app.engine.proof import check_layers
from app.errors import UnsupportedModel, first_line

PROBE_TOKENS = 8
SERVED = frozenset({"full_attention", "sliding_attention", "chunked_attention", "conv"})  # kinds of layers whose past the cache holds
DELTA_NETS = frozenset({"qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"})  # types of models whose linear attention it holds, too


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
    For layers that are no attention it looks for padding in a mask of two dimensions, the only kind that some others take.
    """
    other = {"conv", "linear_attention"} & set(getattr(skeleton.config.get_text_config(), "layer_types", None) or [])
    return torch.zeros(1, 1, ids.shape[1], ids.shape[1], device=ids.device) if other else torch.ones_like(ids)


def has_states(config: PretrainedConfig) -> bool:
    """Whether a model with this text config keeps states that the cache holds."""
    return config.model_type in DELTA_NETS and "linear_attention" in (getattr(config, "layer_types", None) or [])


def page_tokens(config: PretrainedConfig, kind: str) -> int:
    """Tokens of a page of the cache for a model with this text config on a device of this kind, such as cuda."""
    return STATE_PAGE_TOKENS if has_states(config) else varlen.page_tokens(kind)


def check_kinds(config: PretrainedConfig) -> None:
    """Raises `UnsupportedModel` if a model's layers keep something that the engine's cache does not hold, such as a state."""
    kinds = sorted(set(getattr(config, "layer_types", None) or []) - SERVED - ({"linear_attention"} if has_states(config) else set()))
    if kinds:
        raise UnsupportedModel(
            f"a model of the type '{config.model_type}' cannot be served: the engine's cache holds keys and values, what short "
            "convolutions look back at, and the states of gated delta nets, but its layers of the kind "
            f"{', '.join(kinds)} keep something else"
        )

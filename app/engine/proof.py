"""Proves, before anything is served, that a model computes the same logits in flat rows as by its own forward. Knows no cache.

What the comparison found out about the model is its `Proof`, which a later start with the same files and the same code takes over.
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from app.engine.attention import SlotAttention
from app.engine.experts import Routes, set_routes
from app.engine.grouped import keep_inputs
from app.engine.keyvalues import Shape
from app.engine.scores import Change
from app.errors import UnsupportedModel

CHECK_TOKENS = 24  # length of the sequence that the check computes both ways
MAX_ERROR_FLOAT32 = 2e-3  # relative to the norm of the expected logits
MAX_ERROR = 8e-2  # the same, in lower precisions


@dataclass(frozen=True, slots=True)
class Proof:
    """That a model was checked, and what its forwards have shown."""

    shapes: dict[int, Shape]  # of keys and values, by layer
    windows: dict[int, int | None]  # tokens of the sliding window, by layer
    changes: frozenset[Change]  # of attention scores, in any layer
    harmed: tuple[str, ...]  # layers in groups whose outputs inputs of 8 bits would change too much
    hidden_size: int


class Check:
    """The logits of the model's own forward, which every other way to compute them has to give. Make it before the model is changed."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.name, self.ids = type(model).__name__, check_ids(model)
        self._is_float32 = model.dtype == torch.float32
        set_routes(model, Routes)
        with torch.inference_mode(), keep_inputs(model):
            self.expected = model(input_ids=torch.tensor([self.ids], device=model.device), use_cache=False).logits[0].float()

    def end(self, model: PreTrainedModel) -> None:
        """The model chooses its experts again."""
        set_routes(model, lambda: None)

    def compare(self, mode: str, logits: torch.Tensor, cache_is_rounded: bool = False) -> None:
        """Raises `UnsupportedModel`, which names the `mode`, if `logits` `[CHECK_TOKENS, vocab]` differ from the expected ones."""
        if not self.expected.isfinite().all():
            raise UnsupportedModel(
                f"{self.name} cannot be served: its own forward gives logits that are not finite: its weights are damaged, or its dtype is "
                "too narrow for them"
            )
        error = float((logits.float().to(self.expected.device) - self.expected).norm() / self.expected.norm())
        if not error <= (MAX_ERROR_FLOAT32 if self._is_float32 and not cache_is_rounded else MAX_ERROR):
            raise UnsupportedModel(
                f"{self.name} cannot be served: computed {mode}, its logits differ by {error:.1%} from its own forward's"
            )


def check_ids(model: PreTrainedModel) -> list[int]:
    """The tokens of the check."""
    return [(7919 * i + 11) % int(model.config.get_text_config().vocab_size) for i in range(CHECK_TOKENS)]


def check_layers(model: PreTrainedModel, attention: SlotAttention) -> None:
    """Raises `UnsupportedModel` unless, in a first forward, every layer went through `attention`, which does all that restricts it."""
    name, config = type(model).__name__, model.config.get_text_config()
    layers = int(config.num_hidden_layers)
    if len(attention.shapes) != layers:
        raise UnsupportedModel(
            f"{name} cannot be served: only {len(attention.shapes)} of its {layers} layers use transformers' AttentionInterface"
        )
    kinds = getattr(config, "layer_types", None) or []
    if any(kind != "full_attention" and attention.windows.get(layer) is None for layer, kind in enumerate(kinds)):
        raise UnsupportedModel(
            f"{name} cannot be served: its layers ({', '.join(sorted(set(kinds)))}) restrict attention by masks, which are not used here"
        )

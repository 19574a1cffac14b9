"""What fine-tuning by LoRA takes beside the base's weights: adapter, gradients, optimizer, and what the backward pass needs.

The activations are counted, not guessed: a forward on the meta device, with peft's layers in place, shows every tensor that autograd keeps.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from app.errors import UnsupportedModel, first_line
from app.models.cache import mask_of
from app.models.weights import import_bitsandbytes

FLOAT_BYTES = 4  # adapter, gradients and optimizer are float32
ADAM_MOMENTS = 2  # values that AdamW keeps of each weight
LOGIT_COPIES = 3  # float32 logits, log-probabilities and gradients that live at once when the backward pass begins, beside what is kept
DEFAULT_RANK = 16
FUSED = "litmus-fused-attention"  # the name of `_fused_attention` among transformers' kinds of attention


@dataclass(frozen=True, slots=True)
class Tuning:
    """In bytes. `activations` are for one sequence; they grow with the number of sequences in a batch."""

    adapter: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def states(self) -> int:
        return self.adapter + self.gradients + self.optimizer


def tuning_of(skeleton: PreTrainedModel, tokens: int, rank: int = DEFAULT_RANK) -> Tuning:
    """LoRA of every linear layer but the vocabulary projection, for a sequence of `tokens`. Changes `skeleton`, which is on the meta
    device. Raises `UnsupportedModel` for an architecture for which this cannot be told.
    """
    import_bitsandbytes()  # peft would, with a word about a package that is not needed
    from peft import LoraConfig, get_peft_model

    AttentionInterface.register(FUSED, _fused_attention)
    AttentionMaskInterface.register(FUSED, lambda *_, **__: None)
    try:
        skeleton.set_attn_implementation(FUSED)
        config = LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by names that will be others
            model: Any = get_peft_model(skeleton, config).train()
        weights = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) * FLOAT_BYTES
        return Tuning(weights, weights, ADAM_MOMENTS * weights, _kept_bytes(model, tokens))
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise UnsupportedModel(f"{type(skeleton).__name__} cannot be fine-tuned by LoRA: {first_line(error)}") from error


def _kept_bytes(model: Any, tokens: int) -> int:
    """Bytes of what autograd keeps for the backward pass of a sequence, each storage once, and what the logits take beside it."""
    weights = {id(tensor.untyped_storage()) for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in weights:
            kept[storage._cdata] = storage
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=ids, attention_mask=mask_of(model, ids), labels=ids, use_cache=False).loss
    vocabulary = int(model.config.get_text_config().vocab_size)
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values()) + LOGIT_COPIES * tokens * vocabulary * FLOAT_BYTES


class _Fused(torch.autograd.Function):
    """Keeps for the backward pass what fused kernels keep (FlashAttention, arXiv 2205.14135): no matrix of scores, a sum for each row."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise NotImplementedError("nothing is computed on the meta device")


def _fused_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: None, **_: object
) -> tuple[torch.Tensor, None]:
    out: torch.Tensor = _Fused.apply(query, key, value)
    return out.transpose(1, 2).contiguous(), None

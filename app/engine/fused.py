"""The forward of Llama-shaped decoders with as few operations as torch allows: what Python and dispatch cost is most of a small step.

Its layers are those of the model, query, key and value joined. Models of other shapes take transformers' own forward.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from app.engine.attention import SlotAttention
from app.engine.kernel import Kernel, kernel
from app.engine.linear import added, gated, joined

SHAPED = frozenset({"llama", "mistral", "qwen2", "qwen3"})
PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


@dataclass(frozen=True, slots=True)
class Norm:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (RMSNorm, arXiv 1910.07467)."""

    weight: torch.Tensor
    eps: float
    kernel: Kernel | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.kernel is not None:
            return self.kernel.norm(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class Layer:
    before: Norm
    qkv: nn.Module
    query_norm: Norm | None
    key_norm: Norm | None
    out: nn.Module
    between: Norm
    gate: nn.Module
    up: nn.Module
    down: nn.Module
    act: nn.Module
    how: tuple[float | None, int | None]  # scale of the scores, sliding window


class LeanDecoder:
    def __init__(self, base: Any, attention: SlotAttention) -> None:
        config = base.config
        self.attention = attention
        self.embed, self.rotary = base.embed_tokens, base.rotary_emb
        self.heads, self.kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.dim = int(getattr(config, "head_dim", None) or config.hidden_size // self.heads)
        self.norm = _norm(base.norm)
        self.blocks = list(base.layers)
        for block in self.blocks:
            part = block.self_attn
            part.qkv = joined([part.q_proj, part.k_proj, part.v_proj])
            del part.q_proj, part.k_proj, part.v_proj
        self.layers: list[Layer] = []

    def bind(self) -> None:
        """Look the layers up, after `quicken` has put its own in their place."""
        self.layers = [_layer(block) for block in self.blocks]

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """`ids` and `positions` `[rows]` to hidden states `[rows, hidden]`."""
        x = self.embed(ids)
        cos, sin = self.rotary(x[None], positions[None])
        cos, sin = cos[0, :, None], sin[0, :, None].clone()  # [rows, 1, dim]
        sin[..., : self.dim // 2].neg_()  # so that rotating is rolling
        for number, layer in enumerate(self.layers):
            x = added(layer.out, self._attend(number, layer, layer.before(x), cos, sin), x)
            x = added(layer.down, gated(layer.gate, layer.up, layer.act, layer.between(x)), x)
        return self.norm(x)

    def _attend(self, number: int, layer: Layer, h: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        turned = self.heads + self.kv_heads
        qkv = layer.qkv(h).view(len(h), turned + self.kv_heads, self.dim)
        qk = qkv[:, :turned]
        if layer.query_norm is not None and layer.key_norm is not None:
            qk = torch.cat([layer.query_norm(qk[:, : self.heads]), layer.key_norm(qk[:, self.heads :])], 1)
        qk = torch.addcmul(qk * cos, torch.roll(qk, self.dim // 2, -1), sin)
        out = self.attention.attend(number, qk[:, : self.heads], qk[:, self.heads :], qkv[:, turned:], layer.how)
        return out.reshape(len(h), self.heads * self.dim)


def lean(model: PreTrainedModel, attention: SlotAttention) -> LeanDecoder | None:
    """A lean forward over the layers of `model`, which are changed; None for a model of another shape."""
    base: Any = model.base_model
    if getattr(base.config, "model_type", None) not in SHAPED:
        return None
    if any({name for name, _ in layer.named_children()} != PARTS for layer in base.layers):
        return None
    return LeanDecoder(base, attention)


def _layer(block: Any) -> Layer:
    part, mlp = block.self_attn, block.mlp
    window = getattr(part, "sliding_window", None)
    if part.config.model_type == "mistral":
        window = part.config.sliding_window
    return Layer(
        before=_norm(block.input_layernorm),
        qkv=part.qkv,
        query_norm=_norm(part.q_norm) if hasattr(part, "q_norm") else None,
        key_norm=_norm(part.k_norm) if hasattr(part, "k_norm") else None,
        out=part.o_proj,
        between=_norm(block.post_attention_layernorm),
        gate=mlp.gate_proj,
        up=mlp.up_proj,
        down=mlp.down_proj,
        act=mlp.act_fn,
        how=(float(part.scaling), window),
    )


def _norm(module: Any) -> Norm:
    weight = module.weight.detach().contiguous()
    fits = weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    return Norm(weight, float(module.variance_epsilon), kernel() if fits else None)

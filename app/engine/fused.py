"""A fused forward for Llama-shaped decoders: as few torch operations as possible, since Python and dispatch dominate a small step.

It runs the model's own layers, with query, key and value projections concatenated. Models of other shapes use transformers' forward.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from app.engine.attention import SlotAttention
from app.engine.decoder import CompiledDecoder, CompiledLayer, DecoderShape
from app.engine.experts import Experts
from app.engine.kernel import SWISH, Kernel, kernel
from app.engine.linear import TiledLinear, concatenate_layers, parts_of
from app.engine.lora import Adapters, add_residual, gated_product
from app.engine.mixture import CompiledExperts, CompiledMixture, Router, create_compiled_experts
from app.engine.scores import Scores

SUPPORTED_MODEL_TYPES = frozenset({"llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"})
SUPPORTED_ON_CPU = SUPPORTED_MODEL_TYPES | {"gpt_oss"}
ADAPTED_PARTS = {"qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "out": ("self_attn.o_proj",)}
# of a `Layer`: the model's own layers that became it; and of a `Gated`
ADAPTED_MLP_PARTS = {"gate": ("mlp.gate_proj",), "up": ("mlp.up_proj",), "down": ("mlp.down_proj",)}
OnCuda = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # see `cudadecoder.CudaDecoder`
MLP_PARTS = ({"gate_proj", "up_proj", "down_proj", "act_fn"}, {"gate", "experts"}, {"router", "experts"})
LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


@dataclass(frozen=True, slots=True)
class Norm:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (RMSNorm, arXiv 1910.07467)."""

    weight: torch.Tensor
    eps: float
    kernel: Kernel | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.kernel is not None:
            return self.kernel.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class Gated:
    """A feed-forward network: down(act(gate(x)) * up(x))."""

    gate: nn.Module
    up: nn.Module
    down: nn.Module
    act: nn.Module


@dataclass(frozen=True, slots=True)
class Layer:
    """The modules of one decoder layer, in the order in which they run."""

    input_norm: Norm
    qkv: nn.Module
    query_norm: Norm | None
    key_norm: Norm | None
    out: nn.Module
    mlp_norm: Norm
    mlp: Gated | CompiledMixture | nn.Module  # the last of a mixture that is not compiled: what chooses the experts, and these
    scores: Scores  # of the attention

    @property
    def head_norms(self) -> tuple[Norm, Norm] | None:
        """Of queries and keys."""
        return None if self.query_norm is None or self.key_norm is None else (self.query_norm, self.key_norm)


class FusedDecoder:
    """Changes the model: each layer's query, key and value projections become one. Call `bind_layers` before the first forward."""

    def __init__(self, base: Any, attention: SlotAttention) -> None:
        config = base.config
        self.attention = attention
        self.base, self.rotary = base, base.rotary_emb
        self.embed: nn.Module = base.embed_tokens
        self.heads, self.kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.dim = int(getattr(config, "head_dim", None) or config.hidden_size // self.heads)
        self.inner = int(config.intermediate_size)  # outputs of the gate
        self.blocks = list(base.layers)
        self.dtype: torch.dtype = base.dtype
        self.norm = _norm_of(base.norm, self.dtype)
        for block in self.blocks:
            part = block.self_attn
            part.qkv = concatenate_layers([part.q_proj, part.k_proj, part.v_proj])
            del part.q_proj, part.k_proj, part.v_proj
        self.layers: list[Layer] = []
        self.adapted: list[Layer] = []  # the same, with what adapters add to them
        self.compiled: CompiledDecoder | None = None
        self.on_cuda: OnCuda | None = None

    def bind_layers(self) -> None:
        """Look up the layers' modules. Call this after a forward of the model, and after `prepack_layers` has replaced them."""
        self.embed = self.base.embed_tokens
        windows = self.attention.windows  # as the model's own forward has said
        self.layers = [_layer_of(block, windows[index], self.dtype) for index, block in enumerate(self.blocks)]
        self.compiled = _compiled_decoder(self.layers, self.norm, self.heads, self.kv_heads, self.dim)

    def bind_adapters(self, adapters: Adapters, root: str) -> None:
        """`root` is the name of the decoder in the model, as adapters write it."""
        for index, layer in enumerate(self.layers):
            parts = _adapted(adapters, layer, ADAPTED_PARTS, f"{root}layers.{index}.")
            if isinstance(layer.mlp, Gated):
                parts["mlp"] = replace(layer.mlp, **_adapted(adapters, layer.mlp, ADAPTED_MLP_PARTS, f"{root}layers.{index}."))
            self.adapted.append(replace(layer, **parts))

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, adapted: bool = False) -> torch.Tensor:
        """Compute hidden states `[rows, hidden]` of `ids` and `positions` `[rows]`. `adapted`: some rows have an adapter."""
        x = self.embed(ids)
        cos, sin = self.rotary(x[None], positions[None])
        if cos.shape[-1] < self.dim:  # GPT-OSS has the half of them, which the other repeats
            cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
        cos, sin = cos[0, :, None], sin[0, :, None].clone()  # [rows, 1, dim]
        sin[..., : self.dim // 2].neg_()  # so that `torch.roll` can stand for rotate_half
        if self.on_cuda is not None and not adapted:
            return self.on_cuda(x, cos[:, 0], sin[:, 0])
        if self.compiled is not None and self.attention.layout is not None and not adapted:
            if not self.compiled.is_bound:
                self.compiled.bind_cache(self.attention.slots, self.attention.texts)
            return self.compiled(x, cos, sin, self.attention.layout)
        for index, layer in enumerate(self.adapted if adapted else self.layers):
            if x.device != (card := layer.input_norm.weight.device):  # of a model that is divided among cards
                x, cos, sin = (part.to(card, non_blocking=True) for part in (x, cos, sin))
            x = add_residual(layer.out, self._attend(index, layer, layer.input_norm(x), cos, sin), x)
            x = _feed(layer.mlp, layer.mlp_norm(x), x)
        return self.norm(x.to(self.norm.weight.device))

    def _attend(self, index: int, layer: Layer, h: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        rotated_heads = self.heads + self.kv_heads
        qkv = layer.qkv(h).view(len(h), rotated_heads + self.kv_heads, self.dim)
        qk = qkv[:, :rotated_heads]
        if layer.head_norms is not None:
            query_norm, key_norm = layer.head_norms
            qk = torch.cat([query_norm(qk[:, : self.heads]), key_norm(qk[:, self.heads :])], 1)
        qk = torch.addcmul(qk * cos, torch.roll(qk, self.dim // 2, -1), sin)
        query, key, value = qk[:, : self.heads], qk[:, self.heads :], qkv[:, rotated_heads:]
        out = self.attention.attend(index, query, key, value, layer.scores)
        return out.reshape(len(h), self.heads * self.dim)


def compile_experts(model: nn.Module) -> None:
    """Let the experts of each layer be computed in one call of the compiled kernel, where they can be. Call it after `prepack_layers`."""
    for module in model.modules():
        if isinstance(module, Experts):
            module.compiled = create_compiled_experts(module)


def mix(mixture: nn.Module, h: torch.Tensor) -> torch.Tensor:
    """What a mixture makes of `h` `[rows, hidden]`."""
    out: torch.Tensor = mixture(h[None])[0]  # `[rows, hidden]`; or, where the choice is returned, too, with a dimension more
    return out.view_as(h)


def _feed(mlp: Gated | CompiledMixture | nn.Module, h: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    if isinstance(mlp, Gated):
        return add_residual(mlp.down, gated_product(mlp.gate, mlp.up, mlp.act, h), residual)
    return mlp(h, residual) if isinstance(mlp, CompiledMixture) else residual + mix(mlp, h)


def _adapted(adapters: Adapters, part: Layer | Gated, layers: Mapping[str, tuple[str, ...]], root: str) -> dict[str, Any]:
    return {name: adapters.adapt(getattr(part, name), [f"{root}{each}" for each in joined]) for name, joined in layers.items()}


def create_fused_decoder(model: PreTrainedModel, attention: SlotAttention) -> FusedDecoder | None:
    """Return a fused forward over the layers of `model`, which are changed; None for a model of an unsupported shape."""
    base: Any = model.base_model
    if getattr(base.config, "model_type", None) not in (SUPPORTED_ON_CPU if model.device.type == "cpu" else SUPPORTED_MODEL_TYPES):
        return None
    if any(_parts(layer) != LAYER_PARTS or _parts(layer.mlp) not in MLP_PARTS for layer in base.layers):
        return None
    return FusedDecoder(base, attention)


def _parts(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _compiled_decoder(layers: list[Layer], norm: Norm, heads: int, kv_heads: int, dim: int) -> CompiledDecoder | None:
    """Return None unless every part of every layer runs on the kernel."""
    norms = [norm, *(each for layer in layers for each in (layer.input_norm, layer.mlp_norm, layer.query_norm, layer.key_norm) if each)]
    native = norm.kernel
    if native is None or any(each.kernel is None or each.eps != norm.eps for each in norms):
        return None
    compiled = [_compiled_layer(layer) for layer in layers]
    complete = [layer for layer in compiled if layer is not None]
    shape, hidden = DecoderShape(heads, kv_heads, dim, norm.eps), len(norm.weight)
    if len(complete) < len(layers) or not CompiledDecoder.is_supported(native, shape, complete, hidden):
        return None
    return CompiledDecoder(native, shape, complete, norm.weight)


def _compiled_layer(layer: Layer) -> CompiledLayer | None:
    qkv = tuple(part for part in parts_of(layer.qkv) if isinstance(part, TiledLinear))
    feed = _compiled_feed(layer.mlp)
    if feed is None or len(qkv) < len(parts_of(layer.qkv)) or not isinstance(layer.out, TiledLinear):
        return None
    query_norm, key_norm = (None if norm is None else norm.weight for norm in (layer.query_norm, layer.key_norm))
    return CompiledLayer(layer.input_norm.weight, layer.mlp_norm.weight, query_norm, key_norm, qkv, layer.out, feed, layer.scores)


def _compiled_feed(mlp: Gated | CompiledMixture | nn.Module) -> tuple[TiledLinear, TiledLinear, TiledLinear] | CompiledMixture | None:
    if isinstance(mlp, CompiledMixture):
        return mlp
    if not isinstance(mlp, Gated) or not isinstance(mlp.act, SWISH):
        return None
    gate, up, down = mlp.gate, mlp.up, mlp.down
    if isinstance(gate, TiledLinear) and isinstance(up, TiledLinear) and isinstance(down, TiledLinear):
        return gate, up, down
    return None


def _layer_of(block: Any, window: int | None, dtype: torch.dtype) -> Layer:
    part, mlp = block.self_attn, block.mlp
    return Layer(
        input_norm=_norm_of(block.input_layernorm, dtype),
        qkv=part.qkv,
        query_norm=_norm_of(part.q_norm, dtype) if hasattr(part, "q_norm") else None,
        key_norm=_norm_of(part.k_norm, dtype) if hasattr(part, "k_norm") else None,
        out=part.o_proj,
        mlp_norm=_norm_of(block.post_attention_layernorm, dtype),
        mlp=Gated(mlp.gate_proj, mlp.up_proj, mlp.down_proj, mlp.act_fn) if hasattr(mlp, "gate_proj") else _mixture_of(mlp),
        scores=Scores(float(part.scaling), window, sinks=getattr(part, "sinks", None)),
    )


def _mixture_of(mlp: Any) -> CompiledMixture | nn.Module:
    compiled, chooser = mlp.experts.compiled if isinstance(mlp.experts, Experts) else None, getattr(mlp, "gate", None) or mlp.router
    router = Router(chooser.weight, getattr(chooser, "bias", None), int(chooser.top_k), not getattr(chooser, "norm_topk_prob", True))
    if not isinstance(compiled, CompiledExperts) or not CompiledMixture.is_supported(router, compiled):
        whole: nn.Module = mlp
        return whole
    return CompiledMixture(router, mlp.experts, compiled)


def _norm_of(module: Any, dtype: torch.dtype) -> Norm:
    """In the dtype of the states: some models keep their norms in float32."""
    weight = module.weight.detach().to(dtype).contiguous()
    on_kernel = weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    return Norm(weight, float(module.variance_epsilon), kernel() if on_kernel else None)

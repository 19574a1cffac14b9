"""A fused forward for decoders shaped like Llama's or LFM2's, with few operations of torch: Python and dispatch dominate a small step.

It runs the model's own layers, with query, key and value projections concatenated. Models of other shapes use transformers' forward.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from app.engine.attention import SlotAttention
from app.engine.decoder import CompiledDecoder, CompiledLayer, CosSin, DecoderShape
from app.engine.decoderlayer import Gated, Layer, Norm, layer_of, norm_of, normed
from app.engine.experts import Experts
from app.engine.kernel import activation_of
from app.engine.linear import TiledLinear, concatenate_layers, parts_of
from app.engine.lora import Adapters, add_residual, gated_product
from app.engine.mixture import CompiledMixture, Parts, create_compiled_experts, tiled_parts

SUPPORTED_MODEL_TYPES = frozenset({"llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"})
# cudadecoder.py knows only the former.
SUPPORTED_ON_CPU = SUPPORTED_MODEL_TYPES | frozenset(
    "exaone4 gemma gemma2 gemma3_text gpt_oss granite lfm2 lfm2_moe ministral3 olmo2 olmo3 seed_oss smollm3".split()
)
OnCuda = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # see `cudadecoder.CudaDecoder`
MLP_PARTS = ({"gate_proj", "up_proj", "down_proj", "act_fn"}, {"gate", "experts"}, {"router", "experts"}, {"w1", "w2", "w3"})
LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
# Gemma 2 and 3 have these, too; their post_attention_layernorm is of what the attention gives. OLMo 2 and EXAONE 4 have only norms of that.
FEED_NORMS = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
LFM2_PARTS = {"feed_forward", "operator_norm", "ffn_norm"}
LAYERS = (
    LAYER_PARTS,
    LAYER_PARTS | FEED_NORMS,
    LAYER_PARTS - {"input_layernorm"} | {"post_feedforward_layernorm"},
    LFM2_PARTS | {"self_attn"},
    LFM2_PARTS | {"conv"},
)


class FusedDecoder:
    """Changes the model: each layer's query, key and value projections become one. Call `bind_layers` before the first forward."""

    def __init__(self, base: Any, attention: SlotAttention) -> None:
        config = base.config
        self.attention = attention
        self.base, self.rotary = base, base.rotary_emb if hasattr(base, "rotary_emb") else base.pos_emb
        self.embed: nn.Module = base.embed_tokens
        self.heads, self.kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.dim = int(getattr(config, "head_dim", None) or config.hidden_size // self.heads)
        self.inner = int(config.intermediate_size)  # outputs of the gate
        self.blocks = list(base.layers)
        self.dtype: torch.dtype = base.dtype
        self.norm = norm_of(base.embedding_norm if hasattr(base, "embedding_norm") else base.norm, self.dtype)
        self.rotated = [str(each) for each in getattr(self.rotary, "layer_types", [])]  # the kinds of layers with rotations of their own
        self.scaled_from, self.scaled_by = _query_scaling(config)
        self.embedding_scale, self.residual_scale = (
            float(getattr(config, name, 1)) for name in ("embedding_multiplier", "residual_multiplier")
        )
        for part in (block.self_attn for block in self.blocks if hasattr(block, "self_attn")):
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
        self.layers = [layer_of(block, windows[index], self.dtype, self.rotated) for index, block in enumerate(self.blocks)]
        shape = DecoderShape(self.heads, self.kv_heads, self.dim, self.norm.eps, self.norm.shift, self.residual_scale)
        self.compiled = _compiled_decoder(self.layers, self.norm, shape)

    def bind_adapters(self, adapters: Adapters, root: str) -> None:
        """`root` is the name of the decoder in the model, as adapters write it."""
        for index, layer in enumerate(self.layers):
            names, own = f"{root}layers.{index}.", {"qkv": layer.names[:-1], "out": layer.names[-1:]}
            parts = _adapted(adapters, layer, own, names)
            if isinstance(layer.mlp, Gated):
                gate, up, down = layer.mlp.names
                parts["mlp"] = replace(layer.mlp, **_adapted(adapters, layer.mlp, {"gate": (gate,), "up": (up,), "down": (down,)}, names))
            self.adapted.append(replace(layer, **parts))

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, adapted: bool = False) -> torch.Tensor:
        """Compute hidden states `[rows, hidden]` of `ids` and `positions` `[rows]`. `adapted`: some rows have an adapter."""
        x = self.embed(ids)
        if self.embedding_scale != 1:
            x = x * self.embedding_scale
        rotations = [self._rotation(x, positions, kind) for kind in self.rotated or [""]]
        scale = None if self.scaled_by is None else (1 + self.scaled_by * torch.log(1 + positions // self.scaled_from)).to(x.dtype)
        if self.on_cuda is not None and not adapted:
            return self.on_cuda(x, *rotations[0])
        if self.compiled is not None and self.attention.layout is not None and not adapted:
            if not self.compiled.is_bound:
                self.compiled.bind_cache(self.attention.slots, self.attention.texts)
            return self.compiled(x, rotations, scale, self.attention.layout)
        for index, layer in enumerate(self.adapted if adapted else self.layers):
            if x.device != layer.device:  # of a model that is divided among cards
                x = x.to(layer.device, non_blocking=True)
                rotations = [(cos.to(x.device, non_blocking=True), sin.to(x.device, non_blocking=True)) for cos, sin in rotations]
            h = normed(x, layer.input_norm)
            if layer.convolution is None:
                attended = self._attend(index, layer, h, rotations, scale)
            else:
                attended = self.attention.convolve(index, layer.qkv(h), layer.convolution)
            x = self._add(layer.out, attended, x, layer.attended_norm)
            x = self._feed(layer, normed(x, layer.mlp_norm), x)
        return self.norm(x.to(self.norm.weight.device))

    def _rotation(self, x: torch.Tensor, positions: torch.Tensor, kind: str) -> CosSin:
        cos, sin = self.rotary(x[None], positions[None], *([kind] if kind else []))
        if cos.shape[-1] < self.dim:  # GPT-OSS has the half of them, which the other repeats
            cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
        cos, sin = cos[0].to(x.dtype), sin[0].to(x.dtype, copy=True)
        sin[..., : self.dim // 2].neg_()  # so that `torch.roll` can stand for rotate_half
        return cos, sin

    def _attend(
        self, index: int, layer: Layer, h: torch.Tensor, rotations: Sequence[CosSin], query_scale: torch.Tensor | None
    ) -> torch.Tensor:
        rotated_heads = self.heads + self.kv_heads
        qkv = layer.qkv(h).view(len(h), rotated_heads + self.kv_heads, self.dim)
        qk = qkv[:, :rotated_heads]
        if layer.head_norms is not None:
            parts = zip(layer.head_norms, (qk[:, : self.heads], qk[:, self.heads :]), strict=True)
            qk = torch.cat([norm(part.reshape(len(h), -1, len(norm.weight))).view(part.shape) for norm, part in parts], 1)
        if layer.rotation is not None:
            cos, sin = rotations[layer.rotation]
            qk = torch.addcmul(qk * cos[:, None], torch.roll(qk, self.dim // 2, -1), sin[:, None])
        query, key, value = qk[:, : self.heads], qk[:, self.heads :], qkv[:, rotated_heads:]
        if query_scale is not None:
            query = query * query_scale[:, None, None]
        out = self.attention.attend(index, query, key, value, layer.scores)
        return out.reshape(len(h), self.heads * self.dim)

    def _feed(self, layer: Layer, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        mlp = layer.mlp
        if isinstance(mlp, Gated):
            return self._add(mlp.down, gated_product(mlp.gate, mlp.up, mlp.act, h), x, layer.fed_norm)
        return mlp(h, x) if isinstance(mlp, CompiledMixture) else x + mix(mlp, h)

    def _add(self, last: nn.Module, h: torch.Tensor, x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
        """Add to the states `x` what the layer `last` makes of `h`."""
        if norm is None and self.residual_scale == 1:
            return add_residual(last, h, x)
        return x + normed(last(h), norm) * self.residual_scale


def compile_experts(model: nn.Module) -> None:
    """Let the experts of each layer be computed in one call of the compiled kernel, where they can be. Call it after `prepack_layers`."""
    for module in model.modules():
        if isinstance(module, Experts):
            module.compiled = create_compiled_experts(module)


def mix(mixture: nn.Module, h: torch.Tensor) -> torch.Tensor:
    """What a mixture makes of `h` `[rows, hidden]`."""
    out: torch.Tensor = mixture(h[None])[0]  # `[rows, hidden]`; or, where the choice is returned, too, with a dimension more
    return out.view_as(h)


def _adapted(adapters: Adapters, part: Layer | Gated, layers: Mapping[str, tuple[str, ...]], root: str) -> dict[str, Any]:
    return {name: adapters.adapt(getattr(part, name), [f"{root}{each}" for each in joined]) for name, joined in layers.items()}


def create_fused_decoder(model: PreTrainedModel, attention: SlotAttention) -> FusedDecoder | None:
    """Return a fused forward over the layers of `model`, which are changed; None for a model of an unsupported shape."""
    base: Any = model.base_model
    if getattr(base.config, "model_type", None) not in (SUPPORTED_ON_CPU if model.device.type == "cpu" else SUPPORTED_MODEL_TYPES):
        return None
    if any(_parts(layer) not in LAYERS or _parts(_feed_of(layer)) not in MLP_PARTS for layer in base.layers):
        return None
    return FusedDecoder(base, attention)


def _feed_of(layer: Any) -> nn.Module:
    feed: nn.Module = layer.mlp if hasattr(layer, "mlp") else layer.feed_forward
    return feed


def _parts(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _compiled_decoder(layers: list[Layer], norm: Norm, shape: DecoderShape) -> CompiledDecoder | None:
    """Return None unless every part of every layer runs on the kernel."""
    native = norm.kernel
    if native is None or any(each and (each.eps, each.shift) != (norm.eps, norm.shift) for layer in layers for each in layer.norms):
        return None
    compiled = [_compiled_layer(layer) for layer in layers]
    complete = [layer for layer in compiled if layer is not None]
    hidden = len(norm.weight)
    if len(complete) < len(layers) or not CompiledDecoder.is_supported(native, shape, complete, hidden):
        return None
    return CompiledDecoder(native, shape, complete, norm.weight)


def _compiled_layer(layer: Layer) -> CompiledLayer | None:
    qkv = tuple(part for part in parts_of(layer.qkv) if isinstance(part, TiledLinear))
    feed = _compiled_feed(layer.mlp)
    if feed is None or len(qkv) < len(parts_of(layer.qkv)) or not isinstance(layer.out, TiledLinear):
        return None
    norms = tuple(None if norm is None else norm.weight for norm in layer.norms)
    activation = activation_of(layer.mlp.act) if isinstance(layer.mlp, Gated) else "none"
    return CompiledLayer(norms, qkv, layer.out, feed, layer.scores, layer.rotation, activation, layer.convolution)


def _compiled_feed(mlp: Gated | CompiledMixture | nn.Module) -> Parts | CompiledMixture | None:
    if isinstance(mlp, CompiledMixture):
        return mlp
    return tiled_parts(mlp.gate, mlp.up, mlp.down) if isinstance(mlp, Gated) and activation_of(mlp.act) != "none" else None


def _query_scaling(config: Any) -> tuple[int, float | None]:
    """Queries at positions from n times the first number on are multiplied by 1 + b log(1 + n), b being the second: Ministral 3's, from
    Llama 4. None: they are not.
    """
    rope = config.rope_parameters
    is_scaled = config.model_type == "ministral3" and rope.get("llama_4_scaling_beta")
    return (int(rope["original_max_position_embeddings"]), float(rope["llama_4_scaling_beta"])) if is_scaled else (1, None)

"""The modules of one decoder layer of a model shaped like Llama or LFM2, in the order in which they run.

Knows no step: `fused.py` runs them, on a CPU all layers in one call where `decoder.py` can.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from app.engine.convolution import Convolution
from app.engine.experts import Experts
from app.engine.kernel import Kernel, kernel
from app.engine.mixture import CompiledExperts, CompiledMixture, Router
from app.engine.scores import Scores


@dataclass(frozen=True, slots=True)
class Norm:
    """x / sqrt(mean(x^2) + eps) * (shift + weight) over the last axis (RMSNorm, arXiv 1910.07467)."""

    weight: torch.Tensor
    eps: float
    kernel: Kernel | None = None
    shift: float = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.kernel is not None:
            return self.kernel.rms_norm(x, self.weight, self.eps, self.shift)
        if not self.shift:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(x.float(), self.weight.shape, self.shift + self.weight.float(), self.eps).to(x.dtype)


@dataclass(frozen=True, slots=True)
class Gated:
    """A feed-forward network: down(act(gate(x)) * up(x)). `names` are those of gate, up and down in the model's layer."""

    gate: nn.Module
    up: nn.Module
    down: nn.Module
    act: nn.Module
    names: tuple[str, str, str] = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True, slots=True)
class Layer:
    """The modules of one decoder layer, in the order in which they run."""

    device: torch.device
    input_norm: Norm | None
    qkv: nn.Module
    query_norm: Norm | None  # this one and the next: of each head, or of all heads together
    key_norm: Norm | None
    out: nn.Module
    mlp_norm: Norm | None
    mlp: Gated | CompiledMixture | nn.Module  # the last of a mixture that is not compiled: what chooses the experts, and these
    scores: Scores  # of the attention
    attended_norm: Norm | None = None  # of what the attention gives, before it is added to the states
    fed_norm: Norm | None = None  # the same of `mlp`
    rotation: int | None = 0  # which of a step's rotations; None: it does not rotate
    convolution: Convolution | None = None  # in place of attention; then `qkv` makes its gate, change and x
    names: tuple[str, ...] = (*(f"self_attn.{part}_proj" for part in "qkvo"),)  # of what became `qkv`, and of `out`, in the model's layer

    @property
    def head_norms(self) -> tuple[Norm, Norm] | None:
        """Of queries and keys."""
        return None if self.query_norm is None or self.key_norm is None else (self.query_norm, self.key_norm)

    @property
    def own_norms(self) -> tuple[Norm, Norm]:
        """Before the two parts of a layer that has them."""
        assert self.input_norm is not None and self.mlp_norm is not None
        return self.input_norm, self.mlp_norm

    @property
    def norms(self) -> tuple[Norm | None, ...]:
        return (self.input_norm, self.mlp_norm, self.attended_norm, self.fed_norm, self.query_norm, self.key_norm)


def normed(x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    return x if norm is None else norm(x)


def layer_of(block: Any, window: int | None, dtype: torch.dtype, rotated: Sequence[str]) -> Layer:
    if hasattr(block, "operator_norm"):
        return _lfm2_layer(block, dtype)
    part, mlp = block.self_attn, block.mlp
    ends = hasattr(block, "post_feedforward_layernorm")  # with a norm, as each part does then
    before_feed = getattr(block, "pre_feedforward_layernorm", None) if ends else block.post_attention_layernorm
    return Layer(
        device=block.post_attention_layernorm.weight.device,
        input_norm=norm_of(block.input_layernorm, dtype) if hasattr(block, "input_layernorm") else None,
        qkv=part.qkv,
        query_norm=norm_of(part.q_norm, dtype) if hasattr(part, "q_norm") else None,
        key_norm=norm_of(part.k_norm, dtype) if hasattr(part, "k_norm") else None,
        out=part.o_proj,
        mlp_norm=None if before_feed is None else norm_of(before_feed, dtype),
        mlp=Gated(mlp.gate_proj, mlp.up_proj, mlp.down_proj, mlp.act_fn) if hasattr(mlp, "gate_proj") else _mixture_of(mlp),
        scores=Scores(float(part.scaling), window, getattr(part, "attn_logit_softcapping", None), getattr(part, "sinks", None)),
        attended_norm=norm_of(block.post_attention_layernorm, dtype) if ends else None,
        fed_norm=norm_of(block.post_feedforward_layernorm, dtype) if ends else None,
        rotation=_rotation_of(part, rotated),
    )


def _lfm2_layer(block: Any, dtype: torch.dtype) -> Layer:
    feed, convolution = block.feed_forward, getattr(block, "conv", None)
    part = block.self_attn if convolution is None else convolution
    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
    gated = ("feed_forward.w1", "feed_forward.w3", "feed_forward.w2")
    return Layer(
        device=block.operator_norm.weight.device,
        input_norm=norm_of(block.operator_norm, dtype),
        qkv=part.qkv if convolution is None else part.in_proj,
        query_norm=norm_of(part.q_layernorm, dtype) if convolution is None else None,
        key_norm=norm_of(part.k_layernorm, dtype) if convolution is None else None,
        out=part.out_proj,
        mlp_norm=norm_of(block.ffn_norm, dtype),
        mlp=Gated(feed.w1, feed.w3, feed.w2, nn.SiLU(), gated) if hasattr(feed, "w1") else feed,
        scores=Scores(float(part.scaling)) if convolution is None else Scores(),
        convolution=None if convolution is None else convolution.convolution,
        names=attention if convolution is None else ("conv.in_proj", "conv.out_proj"),
    )


def _rotation_of(part: Any, rotated: Sequence[str]) -> int | None:
    """Of an attention: which of the kinds `rotated` it has. EXAONE 4, where it has windows, rotates only in these."""
    is_exaone = part.config.model_type == "exaone4"
    if not getattr(part, "use_rope", True) or (is_exaone and part.sliding_window is not None and not part.is_sliding):
        return None
    return rotated.index(getattr(part, "layer_type", None) or part.attention_type) if rotated else 0


def _mixture_of(mlp: Any) -> CompiledMixture | nn.Module:
    compiled, chooser = mlp.experts.compiled if isinstance(mlp.experts, Experts) else None, getattr(mlp, "gate", None) or mlp.router
    router = Router(chooser.weight, getattr(chooser, "bias", None), int(chooser.top_k), not getattr(chooser, "norm_topk_prob", True))
    if not isinstance(compiled, CompiledExperts) or not CompiledMixture.is_supported(router, compiled):
        whole: nn.Module = mlp
        return whole
    return CompiledMixture(router, mlp.experts, compiled)


def norm_of(module: Any, dtype: torch.dtype) -> Norm:
    """In the dtype of the states: some models keep their norms in float32. Those of Gemma call their epsilon otherwise, and add 1."""
    weight, is_gemma = module.weight.detach().to(dtype).contiguous(), hasattr(module, "eps")
    on_kernel = weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    eps = float(module.eps if is_gemma else module.variance_epsilon)
    return Norm(weight, eps, kernel() if on_kernel else None, float(is_gemma))

"""Small models of each kind that the compiled decoder runs whole, with random weights in bfloat16."""

import copy
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Exaone4Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GptOssConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SeedOssConfig,
    SmolLM3Config,
)

from app.engine.experts import separate_experts

CONTEXT = 400
SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
}
HEADS = {**SHAPE, "num_attention_heads": 3, "num_key_value_heads": 1}  # of the same dim where it follows from the number
WINDOWED = ["sliding_attention", "full_attention", "sliding_attention"]
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 64}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 50, "llama_4_scaling_beta": 0.3}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "llama with biases": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=40),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=5, num_experts_per_tok=2, sliding_window=None),
    "qwen3_moe": Qwen3MoeConfig(**SHAPE, **EXPERTS, mlp_only_layers=[1], norm_topk_prob=True),
    "qwen3_moe, shares of all": Qwen3MoeConfig(**SHAPE, **EXPERTS, norm_topk_prob=False),
    "gemma": GemmaConfig(**SHAPE),
    "gemma2": Gemma2Config(**SHAPE, query_pre_attn_scalar=20, attn_logit_softcapping=3.0, sliding_window=40),
    "gemma3": Gemma3TextConfig(**SHAPE, query_pre_attn_scalar=20, layer_types=WINDOWED, sliding_window=40),
    "granite": GraniteConfig(**SHAPE, embedding_multiplier=3.0, residual_multiplier=0.7, attention_multiplier=0.1),
    "ministral3": Ministral3Config(**SHAPE, rope_parameters=YARN),
    "seed_oss": SeedOssConfig(**SHAPE),
    "smollm3": SmolLM3Config(**SHAPE, no_rope_layers=[1, 0, 1], pad_token_id=None),
    "olmo2": Olmo2Config(**HEADS),
    "olmo3": Olmo3Config(**HEADS, layer_types=WINDOWED, sliding_window=40),
    "exaone4": Exaone4Config(**SHAPE, layer_types=["full_attention"] * 3, sliding_window=None),
    "exaone4, with windows": Exaone4Config(**SHAPE, layer_types=WINDOWED, sliding_window=40),
    "lfm2": Lfm2Config(**HEADS, layer_types=["conv", "full_attention", "conv"], pad_token_id=0),
    "lfm2, biases and 7 taps": Lfm2Config(
        **HEADS, layer_types=["full_attention", "conv", "conv"], conv_bias=True, conv_L_cache=7, pad_token_id=0
    ),
    "gpt_oss": GptOssConfig(**SHAPE, swiglu_limit=0.9, num_local_experts=6, num_experts_per_tok=3, sliding_window=40),
}


def plain_model(config: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).bfloat16().eval()  # a model changes its config
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * (1 if parameter.dim() == 1 else 0.1)
    separate_experts(model)
    return model

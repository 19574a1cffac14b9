"""The KV cache takes memory as it is used, and no longer than its model is there; no row depends on those beside it."""

import copy
import gc
import itertools
import weakref

import psutil
import pytest
import torch
from driving import kernel_or_skip
from gguf_families import FAMILIES, create_model
from tinymodels import GATED, tiny
from torch import nn
from transformers import (
    ApertusConfig,
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3nTextConfig,
    Gemma4TextConfig,
    Lfm2Config,
    Lfm2MoeConfig,
    Lfm3Config,
    PreTrainedModel,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
)

from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.experts import separate_experts
from app.engine.keyvalues import KeyValues
from app.engine.layout import Span, layout_of

KINDS = [name for name in FAMILIES if "-" not in name or name in ("phi4-mini", "command-r", "gpt-oss")]  # others differ in their rotation

SHAPE = {**GATED, "num_hidden_layers": 4, "bos_token_id": 0, "eos_token_id": 1}
GEMMA = {**SHAPE, "head_dim": 32, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
PER_LAYER = {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": SHAPE["vocab_size"]}
KINDS_OF_LAYERS = ["conv", "conv", "full_attention", "conv"]
CONVOLVED = {
    "lfm2": Lfm2Config(**SHAPE, layer_types=KINDS_OF_LAYERS, conv_bias=True, conv_L_cache=5),
    "lfm2_moe": Lfm2MoeConfig(
        **SHAPE, layer_types=KINDS_OF_LAYERS, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, num_dense_layers=2
    ),
    "lfm3": Lfm3Config(
        **SHAPE, pad_token_id=0, head_dim=32, sliding_window=8, layer_types=["conv", "conv", "full_attention", "sliding_attention"]
    ),
}
DELTA = {"linear_num_key_heads": 8, "linear_num_value_heads": 16, "linear_key_head_dim": 16, "linear_value_head_dim": 32}
LINEAR = {**SHAPE, "head_dim": 32, **DELTA, "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
WITH_STATES = {
    "qwen3_5": Qwen3_5TextConfig(**LINEAR),
    "qwen3_5_moe": Qwen3_5MoeTextConfig(**LINEAR, **EXPERTS),
    "qwen3_next": Qwen3NextConfig(**LINEAR, **EXPERTS),
}
OTHERS = {  # that come in no GGUF file here
    "apertus": ApertusConfig(**SHAPE),
    "deepseek_v3": DeepseekV3Config(
        **{**SHAPE, "num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2},
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=32,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    ),
    "gemma3n": Gemma3nTextConfig(
        **{**GEMMA, **PER_LAYER, "intermediate_size": [96] * 4, "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0]},
        num_kv_shared_layers=2,
        laurel_rank=8,
    ),
    "gemma4": Gemma4TextConfig(**GEMMA, **PER_LAYER, global_head_dim=512),
    **CONVOLVED,
    **WITH_STATES,
}


def created(name: str) -> PreTrainedModel:
    if name in FAMILIES:
        return create_model(FAMILIES[name])
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(OTHERS[name])) if name in OTHERS else copy.deepcopy(tiny(name))
    for convolution in (module for module in model.modules() if isinstance(module, nn.Conv1d)):
        nn.init.normal_(convolution.weight)  # with its own first weights it would hardly change anything
    return model.eval()


def test_a_cache_on_a_cpu_takes_memory_only_where_it_is_written() -> None:
    cache = KeyValues()
    before = psutil.Process().memory_info().rss
    cache.allocate({0: (4, 64, 64), 1: (4, 64, 64)}, 2048, 64, torch.bfloat16, torch.device("cpu"))
    assert sum(tensor.nbytes for tensor in cache.tensors) == 2**28
    assert psutil.Process().memory_info().rss - before < 2**24
    cache.keys[0][5, :, :50] = 1
    assert float(cache.keys[0].sum()) == 4 * 50 * 64 and not cache.keys[1][5].any()


def test_a_cache_goes_with_its_model() -> None:
    flat = create_flat_model(tiny("Llama"), CacheLimits(2, 64))
    cache = weakref.ref(flat.attention.slots)
    del flat
    gc.collect()
    assert cache() is None


@pytest.mark.parametrize("name", [*KINDS, *OTHERS, "GPTNeoX", "Phi", "GPT2", "OPT"])
def test_a_row_is_the_same_alone_and_beside_others(name: str) -> None:
    """Prompts in one piece and in several, and decoding rows, whatever the model's own forward makes of queries, keys and values."""
    kernel_or_skip()
    model = created(name)
    separate_experts(model)
    flat = create_flat_model(model.bfloat16(), CacheLimits(slots=4, context=60))
    assert flat.decodes_on_kernel
    ids, size, device = [(31 * index * index + 7) % 100 + 2 for index in range(50)], flat.page_tokens, torch.device("cpu")
    own = [range(slot * flat.context_pages, (slot + 1) * flat.context_pages) for slot in range(4)]

    def prompt(*spans: tuple[int, int, int]) -> torch.Tensor:
        """Hidden states of rows of several sequences: slot, first position, end."""
        places = [(slot, position) for slot, start, end in spans for position in range(start, end)]
        starts = itertools.accumulate((end - start for _, start, end in spans), initial=0)
        parts = [Span(row, row + end - start, start, own[slot]) for row, (slot, start, end) in zip(starts, spans, strict=False)]
        row_ids = [ids[(7 * slot + position) % 50] for slot, position in places]
        return flat.forward(row_ids, [position for _, position in places], layout_of([], parts, size, device))

    def decode(*rows: tuple[int, int]) -> torch.Tensor:
        layout = layout_of([(own[slot], position) for slot, position in rows], [], size, device)
        return flat.forward([ids[slot + position] for slot, position in rows], [position for _, position in rows], layout)

    together = prompt((0, 0, 9), (1, 0, 33), (2, 0, 20))
    whole = [prompt((0, 0, 9)), prompt((1, 0, 33)), prompt((2, 0, 20))]
    pieces = [prompt((1, start, min(33, start + 5))) for start in range(0, 33, 5)]
    assert torch.equal(together, torch.cat(whole)) and torch.equal(torch.cat(pieces), whole[1])
    rows = [(0, 9), (1, 33), (2, 20)]
    beside = decode(*rows)
    for slot, end in rows:  # where the cache holds a state, it has gone on
        prompt((slot, 0, end))
    assert torch.equal(beside, torch.cat([decode(row) for row in rows]))

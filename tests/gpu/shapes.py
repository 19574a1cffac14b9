"""Random models made on the spot, as Hugging Face folders: tiny ones, and Llamas of a given shape."""

import json
from pathlib import Path

import torch
import transformers
from gpu.marks import Shape
from transformers import LlamaForCausalLM, PreTrainedModel

from models.synthetic import create_tokenizer, llama_config

VOCABULARY, CONTEXT = 700, 1024
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
SLIDING = {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 32}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 4}  # all: a rounding does not choose others
TINY_MODELS = {
    "Llama": ("LlamaForCausalLM", SMALL),
    "Llama without groups": ("LlamaForCausalLM", {**SMALL, "num_key_value_heads": 4}),
    "Qwen3": ("Qwen3ForCausalLM", SMALL),
    "Gemma 3": ("Gemma3ForCausalLM", {**SMALL, **SLIDING}),
    "GPT-OSS": ("GptOssForCausalLM", {**SMALL, **EXPERTS, "sliding_window": 32}),
}


def save_tiny(name: str, folder: Path) -> Path:
    """A float32 model whose logits lie far apart, so that rounding does not change greedy choices; `name` is a key of TINY_MODELS."""
    class_name, shape = TINY_MODELS[name]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(model_class.config_class(**shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    return _save(model, folder, VOCABULARY)


def save_llama(shape: Shape, folder: Path, device: torch.device) -> Path:
    """A bfloat16 Llama of this shape, made on `device`. A folder that is complete already is taken as it is."""
    if (folder / "complete").is_file():
        return folder
    config = llama_config(shape, tied=False)
    with torch.device(device):
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(torch.float32)
    _save(model, folder, shape.vocabulary)
    (folder / "complete").write_text(json.dumps({"parameters": model.num_parameters()}))
    return folder


def _save(model: PreTrainedModel, folder: Path, vocabulary: int) -> Path:
    model.save_pretrained(folder)
    create_tokenizer(vocabulary).save_pretrained(folder)
    return folder

"""For all tests: tiny random models of several architectures, folders of tiny models, the bundled pair, and patience."""

from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 300
CONTEXT = 128
ROOT = Path(__file__).resolve().parent.parent
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": CONTEXT}
GATED = {**SMALL, "intermediate_size": 128, "num_key_value_heads": 2}
DELTA = {"linear_num_key_heads": 8, "linear_num_value_heads": 16, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", GATED),
    "Qwen2": ("Qwen2ForCausalLM", GATED),
    "Qwen3": ("Qwen3ForCausalLM", {**GATED, "head_dim": 16}),
    "GPT2": ("GPT2LMHeadModel", {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}),
    "GPTNeoX": ("GPTNeoXForCausalLM", {**SMALL, "intermediate_size": 96}),
    "OPT": ("OPTForCausalLM", {**SMALL, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "Phi": ("PhiForCausalLM", {**SMALL, "intermediate_size": 96}),
    "Mistral": ("MistralForCausalLM", {**GATED, "sliding_window": 8}),
    "Falcon": ("FalconForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "Gemma2": ("Gemma2ForCausalLM", {**GATED, "head_dim": 16, "sliding_window": 8}),
    "Lfm2": ("Lfm2ForCausalLM", {**GATED, "layer_types": ["conv", "full_attention"], "tie_word_embeddings": False}),
    "Qwen3.5": ("Qwen3_5ForCausalLM", {**GATED, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"], **DELTA}),
    "GptOss": ("GptOssForCausalLM", {**GATED, "head_dim": 16, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
}

# A busy machine may keep a process waiting for seconds. That is no failure: neither of an HTTP client that was given no time-out, as all
# of them share this object of httpx, nor of an example of hypothesis.
httpx._config.DEFAULT_TIMEOUT_CONFIG.__init__(60.0)  # type: ignore[misc]
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

if not torch.cuda.is_available():
    # Without a GPU `torch.manual_seed` notes the stack of each of thousands of calls, for a GPU that may come: half a millisecond.
    torch.manual_seed = torch.default_generator.manual_seed


def tiny(name: str, seed: int = 0) -> PreTrainedModel:
    """A random float32 model of `name`'s architecture. Its logits are far apart, so that rounding does not change greedy choices."""
    class_name, shape = SHAPES[name]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(seed)
    model: PreTrainedModel = model_class(model_class.config_class(**shape, bos_token_id=0, eos_token_id=1, pad_token_id=0)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 2 and "linear_attn" not in key:  # whose states keep what rounding changes
                parameter.mul_(4.0)
        for convolution in (module for module in model.modules() if isinstance(module, nn.Conv1d)):
            convolution.weight.normal_()
    return model


def letters(ids: list[int]) -> str:
    """A text with one character a token, so that answers can be compared token by token."""
    return "".join(chr(0x4E00 + token) for token in ids)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny matrices gain nothing from a second thread, and it slows down tests that run beside servers."""
    torch.set_num_threads(1)


def save_tiny(folder: Path, context: int, eos_token: str | None, seed: int = 0) -> Path:
    """A Hugging Face folder of a random Llama with a byte tokenizer and a chat template."""
    alphabet = {letter: index + 2 for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, **alphabet}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token=eos_token)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['role'][0] + ':' + m['content'] }}{% endfor %}"
    model = tiny("Llama", seed)
    model.config.max_position_embeddings = context
    if eos_token is None:
        model.config.eos_token_id = model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), CONTEXT, "</s>")


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with other weights and a shorter context, but the same tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("other"), 96, "</s>", seed=1)


@pytest.fixture(scope="session")
def endless_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends an answer by itself and has a context of a million tokens: a request in flight stays in flight."""
    return save_tiny(tmp_path_factory.mktemp("endless"), 1_000_000, None)


@pytest.fixture(scope="session")
def bundled() -> Path:
    return ROOT / "models" / "storyteller"

"""What the metadata of a GGUF file mean, architecture by architecture: transformers' configuration, and how rows and norms are stored.

llama.cpp's converter writes these keys, and its loader has the defaults for those that are missing. Knows no weights and no tokenizer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig
from transformers.models.auto import CONFIG_MAPPING

from app.errors import SetupError, UnsupportedModel
from app.models.gguf import GGUFFile
from app.models.metadata import LONG_FACTORS, SHORT_FACTORS, Metadata, scaling

ROPE_FACTORS = "rope_freqs.weight"  # Llama 3.1: each frequency is divided by its factor
NO_PARAMETERS = frozenset({ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS})  # tensors that are no parameter of transformers' model
SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
WIDTHS = ("embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv", "attention.key_length")
GEMMA2_27B_LAYERS, GEMMA3_27B_LAYERS = 46, 62  # by these llama.cpp knows those whose queries are scaled otherwise


@dataclass(frozen=True, slots=True)
class Architecture:
    """How transformers names it, `values` of the configuration beyond those that all have, and how llama.cpp stores the weights."""

    model_type: str | Callable[[Metadata], str]
    values: Callable[[Metadata], Mapping[str, Any]] = lambda metadata: {}
    norm_key: str = "rms_norm_eps"  # what the configuration calls the smallest variance of a norm
    interleaved: bool = False  # llama.cpp rotates neighbouring rows of a head, transformers its halves
    norm_plus_one: bool = False  # llama.cpp stores a norm's weight plus 1
    partly_rotated: bool = False  # the rotation may leave the last values of a head as they are
    convolved: bool = False  # layers without heads for keys are short convolutions


def _biases(metadata: Metadata) -> dict[str, bool]:
    return {"attention_bias": metadata.has("blk.0.attn_q.bias"), "mlp_bias": metadata.has("blk.0.ffn_up.bias")}


def _windows(metadata: Metadata, period: int, window: int | None = None) -> dict[str, Any]:
    """Layers that look at the latest tokens only, `window` of them where the file says nothing: all but each `period`-th where it does not
    list them. With a period of 0 all of them do, without a window none.
    """
    layers, window = metadata.needed("block_count"), metadata.get("attention.sliding_window", window)
    pattern = metadata.get("attention.sliding_window_pattern", period)
    if not window:
        return {"sliding_window": None, "layer_types": ["full_attention"] * layers}
    slides = (
        [bool(each) for each in pattern]
        if isinstance(pattern, list)
        else [not pattern or (layer + 1) % pattern != 0 for layer in range(layers)]
    )
    return {"sliding_window": window, "layer_types": ["sliding_attention" if each else "full_attention" for each in slides]}


def _experts(metadata: Metadata) -> dict[str, Any]:
    if metadata.get("expert_shared_feed_forward_length") and metadata.file.architecture != "qwen2moe":
        raise metadata.refuse("experts that every token goes through are not read of this architecture")
    width = metadata.get("expert_feed_forward_length", metadata.get("feed_forward_length"))
    count, used = metadata.needed("expert_count"), metadata.needed("expert_used_count")
    together = next((tensor for name, tensor in metadata.file.tensors.items() if name.endswith(".ffn_up_exps.weight")), None)
    if together is None:
        raise metadata.refuse("its experts are tensors of their own, as in older files, which are not read; convert it anew")
    if together.shape[0] != count or not 1 <= used <= count:
        raise SetupError(
            f"{metadata.file.path.name}: its metadata tell of {count!r} experts, {used!r} of them for a token; its tensors are those of "
            f"{together.shape[0]}"
        )
    return {
        "num_experts": count,
        "num_local_experts": count,
        "num_experts_per_tok": used,
        "moe_intermediate_size": width,
    }


def _qwen2moe(metadata: Metadata) -> dict[str, Any]:
    return _experts(metadata) | {
        "shared_expert_intermediate_size": metadata.get("expert_shared_feed_forward_length"),
        "norm_topk_prob": False,
    }


def _qwen3moe(metadata: Metadata) -> dict[str, Any]:
    return _experts(metadata) | {"norm_topk_prob": True}


def _gpt_oss(metadata: Metadata) -> dict[str, Any]:
    parameters = rope_parameters(metadata)
    if parameters["rope_type"] == "yarn":
        parameters["truncate"] = False
    metadata.needed("attention.sliding_window")
    return _windows(metadata, 2) | _experts(metadata) | {"attention_bias": True, "rope_parameters": parameters}


def _llama(metadata: Metadata) -> dict[str, Any]:
    return _biases(metadata) | (_experts(metadata) if metadata.get("expert_count") else {})


def _phi3(metadata: Metadata) -> dict[str, Any]:
    return {
        "sliding_window": metadata.get("attention.sliding_window") or None,
        "original_max_position_embeddings": metadata.get("rope.scaling.original_context_length", metadata.needed("context_length")),
    }


def _gemma2(metadata: Metadata) -> dict[str, Any]:
    return _windows(metadata, 2, 4096) | {
        "query_pre_attn_scalar": _query_scalar(metadata, GEMMA2_27B_LAYERS),
        "attn_logit_softcapping": metadata.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.get("final_logit_softcapping", 30.0),
    }


def _gemma3(metadata: Metadata) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": metadata.get("rope.freq_base_swa", 10_000.0)}
    return _windows(metadata, 6) | {
        "query_pre_attn_scalar": _query_scalar(metadata, GEMMA3_27B_LAYERS),
        "rope_parameters": {"full_attention": rope_parameters(metadata), "sliding_attention": local},
        "final_logit_softcapping": metadata.get("final_logit_softcapping"),
    }


def _query_scalar(metadata: Metadata, largest: int) -> int:
    """Queries are divided by its root: the width of a head, but for the Gemma with the `largest` number of layers."""
    is_largest = metadata.needed("block_count") == largest
    return int(metadata.needed("embedding_length") // metadata.needed("attention.head_count")) if is_largest else metadata.head_dim


def _starcoder2(metadata: Metadata) -> dict[str, Any]:
    return {"sliding_window": metadata.get("attention.sliding_window"), "use_bias": metadata.has("blk.0.attn_q.bias")}


def _stablelm(metadata: Metadata) -> dict[str, Any]:
    return {"use_qkv_bias": metadata.has("blk.0.attn_q.bias"), "use_parallel_residual": not metadata.has("blk.0.ffn_norm.weight")}


def _smollm3(metadata: Metadata) -> dict[str, Any]:
    rotated = [int((layer + 1) % 4 != 0) for layer in range(metadata.needed("block_count"))]
    return _biases(metadata) | {"no_rope_layers": rotated}  # which layers rotate, whatever its name says


def _olmo3(metadata: Metadata) -> dict[str, Any]:
    return _windows(metadata, 4) if metadata.get("attention.sliding_window") else {}


def _granite(metadata: Metadata) -> dict[str, Any]:
    if not metadata.get("rope.scaling.finetuned", True):
        raise metadata.refuse("it is a Granite without rotary positions (rope.scaling.finetuned is false), which is not read")
    return _biases(metadata) | {
        "attention_multiplier": metadata.get("attention.scale") or metadata.head_dim**-0.5,
        "embedding_multiplier": metadata.get("embedding_scale") or 1.0,
        "residual_multiplier": metadata.get("residual_scale") or 1.0,
        "logits_scaling": metadata.get("logit_scale") or 1.0,
    }


def _seed_oss(metadata: Metadata) -> dict[str, Any]:
    return _biases(metadata) | {"attention_out_bias": metadata.has("blk.0.attn_output.bias")}


def _exaone4(metadata: Metadata) -> dict[str, Any]:
    return {"sliding_window_pattern": 4} | _windows(metadata, 4)


def _cohere(metadata: Metadata) -> dict[str, Any]:
    return {"logit_scale": metadata.needed("logit_scale"), "use_qk_norm": metadata.has("blk.0.attn_q_norm.weight")}


def _cohere2(metadata: Metadata) -> dict[str, Any]:
    metadata.needed("attention.sliding_window")
    return _windows(metadata, 4) | {"logit_scale": metadata.needed("logit_scale")}


def _lfm2(metadata: Metadata) -> dict[str, Any]:
    layers, heads = metadata.needed("block_count"), metadata.needed("attention.head_count_kv")
    by_layer = heads if isinstance(heads, list) else [heads] * layers
    if len(by_layer) != layers:
        raise SetupError(f"{metadata.file.path.name}: its metadata tell of {layers} layers, and of heads for keys of {len(by_layer)}")
    return {
        "num_key_value_heads": max(by_layer),
        "layer_types": ["full_attention" if each else "conv" for each in by_layer],
        "conv_L_cache": metadata.needed("shortconv.l_cache"),
        "conv_bias": any(name.endswith(".shortconv.conv.bias") for name in metadata.file.tensors),
        "norm_eps": metadata.needed("attention.layer_norm_rms_epsilon"),
        "block_auto_adjust_ff_dim": False,  # the file has what it becomes
    }


def _lfm2moe(metadata: Metadata) -> dict[str, Any]:
    return (
        _lfm2(metadata)
        | _experts(metadata)
        | {
            "num_dense_layers": metadata.get("leading_dense_block_count", 0),
            "use_expert_bias": any(name.endswith(".exp_probs_b.bias") for name in metadata.file.tensors),
            "norm_topk_prob": True,
        }
    )


def _ministral3(metadata: Metadata) -> dict[str, Any]:
    """Queries beyond the first context are scaled (Llama 4's temperature), and the rotation as a whole is by yarn's factor."""
    rope = rope_parameters(metadata)
    if rope["rope_type"] != "yarn":
        raise metadata.refuse("a mistral3 model without yarn is not read")
    scale, multiplier = metadata.get("attention.temperature_scale", 0.0), metadata.get("rope.scaling.yarn_log_multiplier", 0.0)
    more = {"llama_4_scaling_beta": scale, "mscale": 1.0, "mscale_all_dim": multiplier}
    return {"rope_parameters": rope | more}


ARCHITECTURES = {
    "llama": Architecture(lambda metadata: "mixtral" if metadata.get("expert_count") else "llama", _llama, interleaved=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3", _biases),
    "qwen2moe": Architecture("qwen2_moe", _qwen2moe),
    "qwen3moe": Architecture("qwen3_moe", _qwen3moe),
    "gpt-oss": Architecture("gpt_oss", _gpt_oss),
    "olmoe": Architecture("olmoe", _experts),
    "phi3": Architecture("phi3", _phi3, partly_rotated=True),
    "gemma": Architecture("gemma", norm_plus_one=True),
    "gemma2": Architecture("gemma2", _gemma2, norm_plus_one=True),
    "gemma3": Architecture("gemma3_text", _gemma3, norm_plus_one=True),
    "starcoder2": Architecture("starcoder2", _starcoder2, norm_key="norm_epsilon"),
    "stablelm": Architecture("stablelm", _stablelm, norm_key="layer_norm_eps", partly_rotated=True),
    "smollm3": Architecture("smollm3", _smollm3, interleaved=True),
    "olmo2": Architecture(lambda metadata: "olmo3" if metadata.get("attention.sliding_window") else "olmo2", _olmo3),
    "granite": Architecture("granite", _granite, interleaved=True),
    "glm4": Architecture("glm4", _biases, partly_rotated=True),
    "seed_oss": Architecture("seed_oss", _seed_oss),
    "exaone4": Architecture("exaone4", _exaone4),
    "command-r": Architecture("cohere", _cohere, norm_key="layer_norm_eps"),
    "cohere2": Architecture("cohere2", _cohere2, norm_key="layer_norm_eps"),
    "mistral3": Architecture("ministral3", _ministral3, interleaved=True),
    "lfm2": Architecture("lfm2", _lfm2, convolved=True),
    "lfm2moe": Architecture("lfm2_moe", _lfm2moe, convolved=True),
}


def architecture_of(file: GGUFFile) -> Architecture:
    """Raises `UnsupportedModel` for an architecture that Litmus does not read."""
    found = ARCHITECTURES.get(file.architecture)
    if found is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModel(f"{file.path.name}: GGUF files of the architecture '{file.architecture}' are not read; these are: {known}")
    return found


def config_of(file: GGUFFile) -> PretrainedConfig:
    """Build transformers' configuration. Raises `SetupError` for metadata that are missing or contradict the tensors, and for what Litmus
    does not read.
    """
    architecture, metadata = architecture_of(file), Metadata(file)
    _check_sizes(metadata)
    heads = metadata.needed("attention.head_count")
    norm = "attention.layer_norm_rms_epsilon" if architecture.norm_key == "rms_norm_eps" else "attention.layer_norm_epsilon"
    values: dict[str, Any] = {name: metadata.needed(key) for key, name in SIZES.items()}
    values |= {
        "num_key_value_heads": metadata.get("attention.head_count_kv", heads),
        architecture.norm_key: metadata.needed(norm),
        "head_dim": metadata.head_dim,
        "tie_word_embeddings": not metadata.has("output.weight"),
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "rope_parameters": rope_parameters(metadata),
        "pad_token_id": None,
        **{f"{name}_token_id": file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")},
    }
    values |= architecture.values(metadata)
    name = architecture.model_type if isinstance(architecture.model_type, str) else architecture.model_type(metadata)
    try:
        config: PretrainedConfig = CONFIG_MAPPING[name].from_dict(values)
    except StrictDataclassError as error:
        message = " ".join(str(error).split())[:300]
        raise SetupError(f"{file.path.name}: its metadata make no {file.architecture} model: {message}") from error
    return config


def _check_sizes(metadata: Metadata) -> None:
    """Raises `SetupError` for sizes that the tensors contradict, before a model of such a size is made."""
    file = metadata.file
    if not metadata.has("token_embd.weight"):
        raise SetupError(f"{file.path.name}: it has no tensor token_embd.weight, so no language model")
    layers = len({tensor.split(".")[1] for tensor in file.tensors if tensor.startswith("blk.")})
    told = metadata.get("block_count")
    if told != layers:
        raise SetupError(
            f"{file.path.name}: its metadata {file.architecture}.block_count is {told!r}, its tensors are those of {layers} layers"
        )
    widest = max(max(tensor.shape) for tensor in file.tensors.values())
    for key in WIDTHS:
        value = metadata.get(key)
        if key == "attention.head_count_kv" and isinstance(value, list) and architecture_of(file).convolved:
            value = max((each for each in value if each != 0), default=0)
        if value is not None and not (isinstance(value, int) and 1 <= value <= widest):
            raise SetupError(
                f"{file.path.name}: its metadata {file.architecture}.{key} is {value!r}, not a number from 1 to {widest}, the width of its "
                "largest tensor"
            )
    if metadata.get("attention.value_length", metadata.head_dim) != metadata.head_dim:
        raise metadata.refuse("its values are of another length than its keys, which is not read")


def rope_parameters(metadata: Metadata) -> dict[str, Any]:
    """Base, scaling and share of the rotation. Raises `UnsupportedModel` for a scaling that is not known."""
    parameters = {"rope_theta": metadata.get("rope.freq_base", 10_000.0), **scaling(metadata)}
    rotated = metadata.get("rope.dimension_count", metadata.head_dim)
    if rotated == metadata.head_dim:
        return parameters
    if not architecture_of(metadata.file).partly_rotated:
        raise metadata.refuse(f"it rotates {rotated} of the {metadata.head_dim} values of a head, which is not read of this architecture")
    return parameters | {"partial_rotary_factor": rotated / metadata.head_dim}

"""A GGUF file, and the configuration of transformers that its metadata make. Knows no tokenizer and no torch."""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig
from transformers.integrations.ggml import GGUF_CONFIG_DEFAULTS_MAPPING, GGUF_CONFIG_MAPPING
from transformers.models.auto import CONFIG_MAPPING

from app.errors import SetupError, UnsupportedModel, first_line
from app.models.header import Header, Tensor
from app.models.names import part_names

# GGUF's architecture -> transformers' model type: dense decoders whose tensors carry over one by one.
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gemma3": "gemma3_text",
    "starcoder2": "starcoder2",
    "stablelm": "stablelm",
}
INTERLEAVED_ROPE = ("llama", "mistral")  # llama.cpp rotates neighbouring rows of a head, transformers its halves
WIDTHS = frozenset({"hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"})
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3.1: each frequency is divided by its factor


class GGUFFile:
    """A GGUF model, all parts of it if it is split; its weights stay in the file. Raises `SetupError` if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts = parts_of(path)
        headers = self._headers = [_read_header(part) for part in self.parts]
        self.metadata: dict[str, Any] = headers[0].metadata
        self.tensors: dict[str, Tensor] = {name: tensor for header in headers for name, tensor in header.tensors.items()}
        count = self.metadata.get("split.tensors.count", len(self.tensors))
        if count != len(self.tensors):
            raise SetupError(f"{self.path}: its parts hold {len(self.tensors)} tensors of {count}")

    def release(self) -> None:
        """Give the pages that were read back to the system."""
        for header in self._headers:
            header.release()

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture"))


def _read_header(path: Path) -> Header:
    try:
        return Header(path)
    except (OSError, ValueError) as error:
        raise SetupError(f"{path} is not a GGUF file that can be read: {first_line(error)}") from error


def parts_of(path: Path) -> list[Path]:
    """The files of a model: `path`, and if it is the first part of several, the others. Raises `SetupError` if one is missing."""
    parts = [path.with_name(name) for name in part_names(path.name)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise SetupError(f"{path}: parts of the split file are missing: {', '.join(missing)}")
    return parts


def config_of(file: GGUFFile) -> PretrainedConfig:
    """Build transformers' configuration from the metadata. Raises `UnsupportedModel` for an architecture that Litmus does not read."""
    architecture = file.architecture
    if architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModel(f"{file.path.name}: GGUF files of the architecture '{architecture}' are not read; these are: {known}")
    values: dict[str, Any] = dict(GGUF_CONFIG_DEFAULTS_MAPPING.get(architecture, {}))
    table: dict[str, str | None] = GGUF_CONFIG_MAPPING[architecture]  # type: ignore[assignment]
    if "token_embd.weight" not in file.tensors:
        raise SetupError(f"{file.path.name}: it has no tensor token_embd.weight, so no language model")
    for key, name in table.items():
        value = file.metadata.get(f"{architecture}.{key}")
        if name and value is not None:
            _check_size(file, f"{architecture}.{key}", name, value)
            values[name] = value
    values["tie_word_embeddings"] = "output.weight" not in file.tensors
    values["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    for name in ("bos", "eos"):
        values[f"{name}_token_id"] = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    values |= _architecture_values(file, architecture)
    try:
        config: PretrainedConfig = CONFIG_MAPPING[ARCHITECTURES[architecture]].from_dict(values)
    except StrictDataclassError as error:
        raise SetupError(f"{file.path.name}: its metadata make no {architecture} model: {' '.join(str(error).split())[:300]}") from error
    return config


def _check_size(file: GGUFFile, key: str, name: str, value: Any) -> None:
    """Raises `SetupError` for sizes that the tensors contradict, before a model of such a size is made."""
    blocks_of = {tensor.split(".")[1] for tensor in file.tensors if tensor.startswith("blk.")}
    widest = max(max(tensor.shape) for tensor in file.tensors.values())
    if name == "num_hidden_layers" and value != len(blocks_of):
        raise SetupError(f"{file.path.name}: its metadata {key} is {value!r}, its tensors are those of {len(blocks_of)} layers")
    if name in WIDTHS and not (isinstance(value, int) and 1 <= value <= widest):
        raise SetupError(
            f"{file.path.name}: its metadata {key} is {value!r}, not a number from 1 to {widest}, the width of its largest tensor"
        )


def _architecture_values(file: GGUFFile, architecture: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    scaling = file.metadata.get(f"{architecture}.rope.scaling.type")
    if scaling not in {None, "none"}:
        factor = file.metadata.get(f"{architecture}.rope.scaling.factor", 1.0)
        if scaling != "linear":
            raise UnsupportedModel(f"{file.path.name}: its rope scaling '{scaling}' is not supported")
        theta = file.metadata.get(f"{architecture}.rope.freq_base", 10000.0)
        values["rope_parameters"] = {"rope_type": "linear", "factor": factor, "rope_theta": theta}
    if architecture in INTERLEAVED_ROPE:
        values["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        values["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    if architecture == "stablelm":
        values["use_qkv_bias"] = "blk.0.attn_q.bias" in file.tensors
        values["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in file.tensors
    return values

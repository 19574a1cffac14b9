"""The metadata of a GGUF file by their keys, and how it scales the rotation of positions. Knows no architecture."""

from dataclasses import dataclass
from typing import Any

from app.errors import SetupError, UnsupportedModel
from app.models.gguf import GGUFFile

LONG_FACTORS = "rope_factors_long.weight"  # Phi 3: for texts beyond its first context
SHORT_FACTORS = "rope_factors_short.weight"  # and for others
EACH_LAYER = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")


@dataclass(frozen=True, slots=True)
class Metadata:
    """A file's metadata by their keys, without the architecture before them."""

    file: GGUFFile

    def get(self, key: str, default: Any = None) -> Any:
        """Of a number that is given for each layer, and the same for all, one."""
        value = self.file.metadata.get(f"{self.file.architecture}.{key}", default)
        return value[0] if key in EACH_LAYER and isinstance(value, list) and value and value == value[:1] * len(value) else value

    def needed(self, key: str) -> Any:
        """Raises `SetupError` for a key that is missing."""
        value = self.get(key)
        if value is None:
            raise SetupError(f"{self.file.path.name}: its metadata have no {self.file.architecture}.{key}")
        return value

    def has(self, tensor: str) -> bool:
        return tensor in self.file.tensors

    @property
    def head_dim(self) -> int:
        return int(self.get("attention.key_length") or self.needed("embedding_length") // self.needed("attention.head_count"))

    def refuse(self, problem: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self.file.path.name}: {problem}")


def scaling(metadata: Metadata) -> dict[str, Any]:
    """Raises `UnsupportedModel` for a kind that is not known."""
    kind = metadata.get("rope.scaling.type")
    factor = metadata.get("rope.scaling.factor") or metadata.get("rope.scale_linear") or 1.0
    if metadata.has(LONG_FACTORS) and metadata.has(SHORT_FACTORS):
        return _long_rope(metadata)
    if kind == "none" or (kind in {None, "linear"} and factor == 1.0):
        return {"rope_type": "default"}
    if kind in {None, "linear"}:
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise metadata.refuse(f"its rope scaling '{kind}' is not supported")
    named = {"original_context_length": "original_max_position_embeddings", "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
    given = {name: metadata.get(f"rope.scaling.{key}") for key, name in named.items()}
    return {"rope_type": "yarn", "factor": factor, **{name: value for name, value in given.items() if value is not None}}


def _long_rope(metadata: Metadata) -> dict[str, Any]:
    """Phi 3 beyond its first context (LongRoPE, arXiv 2402.13753): each frequency has a factor of its own."""
    short, long = (metadata.file.floats(name) for name in (SHORT_FACTORS, LONG_FACTORS))
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": metadata.needed("rope.scaling.original_context_length"),
        "attention_factor": metadata.get("rope.scaling.attn_factor"),
    }

"""What a replica serves: its model, weights and adapters, as frozen values that cross the process border by pickle."""

from dataclasses import dataclass, replace
from typing import Literal

from app.engine.request import SamplingParams

WeightFormat = Literal["float", "bitsandbytes", "gguf", "awq", "compressed-tensors", "fp8", "gptq", "mxfp4"]


@dataclass(frozen=True, slots=True)
class Weights:
    """What a model's weights are, as far as the setting `quantize` does not say it."""

    format: WeightFormat = "float"  # of the checkpoint
    types: tuple[str, ...] = ()  # of its matrices, such as bfloat16, nf4 or Q4_1, that of most weights first
    parameters: int = 0
    bytes: int = 0  # in memory, after quantization and packing
    inputs_of_16_bits: tuple[str, ...] = ()  # 4-bit layers whose outputs inputs of 8 bits would harm


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    name: str
    path: str
    revision: str  # of the base, a plus, and its own
    fingerprint: str
    made: int | None = None  # Unix time in seconds of its files; None: not known


@dataclass(frozen=True, slots=True)
class Facts:
    """What a replica serves, for /v1/models and the page."""

    name: str
    context: int
    slots: int
    quantize: str
    dtype: str
    device: str
    observer: str | None
    chat: bool
    fingerprint: str = ""
    revision: str = ""  # the commit on the hub, or a digest of the folder
    observer_revision: str | None = None
    tools: Literal["template", "general"] | None = None  # how tools are told and called: as the chat template writes them, or in plain text
    sampling: SamplingParams = SamplingParams()  # of a request that names no sampling parameter
    weights: Weights = Weights()
    observer_weights: Weights | None = None
    hidden_size: int = 0  # values of a hidden state
    adapters: tuple[AdapterFacts, ...] = ()  # that were loaded with the model
    cache_dtype: str = "auto"  # of keys and values; auto: `dtype`
    template: str = ""  # digest of the chat template that takes the place of the model's own
    draft: str | None = None  # the model that proposes tokens
    draft_weights: Weights | None = None
    parent: str | None = None  # the base's name, if these are the facts of an adapter
    text_window: int = 0  # tokens of a text that are read in one piece
    largest_context: int = 0  # tokens that the model itself could hold, with its observer
    made: int | None = None  # of an adapter
    context_setting: str | None = None  # that gave the context; None: the model, or the memory

    @property
    def context_in_words(self) -> str:
        """How many tokens the context holds and, where the model could hold more, what limits it."""
        if self.largest_context <= self.context:
            return str(self.context)
        return f"{self.context} (by {self.context_limit}; the model itself could hold {self.largest_context})"

    @property
    def context_limit(self) -> str:
        """What limits a context that is shorter than the model could hold."""
        return f"the setting {self.context_setting}" if self.context_setting else "the memory that is free"

    @property
    def adapter(self) -> str | None:
        """What jobs of the model name as their adapter."""
        return None if self.parent is None else self.name

    def of(self, adapter: AdapterFacts) -> "Facts":
        """The facts of an adapter of this model, which is its observer."""
        own = {name: getattr(adapter, name) for name in ("name", "revision", "fingerprint", "made")} | {"adapters": (), "draft": None}
        observer = {"observer": self.name, "observer_revision": self.revision, "observer_weights": self.weights, "draft_weights": None}
        return replace(self, parent=self.name, **own, **observer)  # type: ignore[arg-type]

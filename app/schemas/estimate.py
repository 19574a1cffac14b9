"""Bodies of /admin/estimate: how a model is to be served or fine-tuned, and the memory that this takes."""

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from app.schemas.wire import Int, Wire

ESTIMATE_EXAMPLE: JsonDict = {"model": "storyteller", "quantize": "nf4", "dtype": "auto", "context": 1024, "slots": 16, "fine_tune": None}


class EstimateRequest(Wire):
    """The fields of a model's settings. Nothing is loaded or downloaded: a hub name's config has to be in the hub's cache."""

    model: str = Field(
        min_length=1,
        max_length=512,
        description="name of a served model, auto for the default one, or a hub name whose config.json is in the cache",
    )
    quantize: Literal["none", "int8", "nf4", "fp4", "int4"] = Field("none", description="as model.quantize")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="as model.dtype")
    context: Int | None = Field(
        None,
        ge=32,
        le=16_777_216,
        description="as model.context: at most the model's own limit, which holds when null, as far as it fits; or tokens of a sequence to "
        "train on, at most 4,096 of them when null",
    )
    slots: Int = Field(
        8,
        ge=1,
        le=1024,
        description="requests that decode at once; a server that is told none takes as many as fit, at most 32, or 128 on CUDA",
    )
    text_window: Int = Field(4096, ge=32, le=16_777_216, description="as model.text_window")
    cache_tokens: Int | None = Field(None, ge=32, le=2**31, description="as model.cache_tokens: what all slots share")
    cache_dtype: Literal["auto", "int8"] = Field("auto", description="as model.cache_dtype")
    graphs: bool = Field(True, description="as model.graphs; false: no CUDA graphs are counted")
    fine_tune: Literal["lora", "qlora"] | None = Field(None, description="what fine-tuning takes, instead of serving")
    cards: list[str] = Field(
        default_factory=list, max_length=8, description="cards to ask about beside this machine: 24GB, or with a name L4=24GB"
    )

    model_config = ConfigDict(json_schema_extra={"examples": [ESTIMATE_EXAMPLE]})


class DeviceEstimate(Wire):
    name: str = Field(description="cpu, cuda:N, or a card that was asked about")
    free_bytes: int
    total_bytes: int
    needed_bytes: int | None = Field(description="what serving takes of it: devices keep weights in different forms; null if it cannot")
    context: int | None = Field(description="in tokens; less than the model's own where none was asked for and the device holds no more")
    fits: bool


class FineTuneEstimate(Wire):
    """LoRA of rank 16 on every linear layer, one sequence at a time."""

    adapter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int


class Estimate(Wire):
    """The sums are those of the first device that would be chosen by `device: auto`."""

    model: str
    quantize: str
    dtype: str = Field(description="of activations, cache and all weights that are not rounded")
    context: int = Field(description="as asked, or the model's own limit, or all that the cache or the device holds")
    slots: int
    cache_tokens: int | None = Field(None, description="what all slots share; null: 4,096 for each at most, and at least a context")
    cache_dtype: Literal["auto", "int8"] = "auto"
    parameters: int
    weights_bytes: int
    weights: dict[str, int] = Field(description="bytes of the weights by the form in which the engine keeps them")
    cache_bytes: int = Field(description="keys and values of all slots, and of a window for long texts; 0 for fine-tuning")
    activation_bytes: int
    overhead_bytes: int = Field(description="a worker process without a model, or the context on a GPU")
    fine_tune: FineTuneEstimate | None
    total_bytes: int
    devices: list[DeviceEstimate]
    advice: list[str] = Field(description="what to change where it does not fit; each change was computed")

"""Bodies of /v1/models, /health, /ready and /slots: which models are served, whether they are ready, what their slots hold."""

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from app.schemas.scoring import Method
from app.schemas.wire import Wire

CARD_EXAMPLE: JsonDict = {
    "id": "storyteller",
    "object": "model",
    "created": 1795836153,
    "owned_by": "litmus",
    "type": "model",
    "display_name": "storyteller",
    "created_at": "2026-11-28T03:22:33Z",
    "root": "storyteller",
    "parent": None,
    "aliases": ["gpt-4o-mini"],
    "status": "ready",
    "default": True,
    "context": 1024,
    "max_model_len": 1024,
    "text_window": 1024,
    "slots": 32,
    "revision": "e1d53ff5cc49",
    "quantize": "int4",
    "dtype": "bfloat16",
    "device": "cpu",
    "observer": "storyteller-base",
    "draft": None,
    "chat": True,
    "tools": "template",
    "methods": ["binoculars", "likelihood_ratio", "fast_detect", "perplexity", "log_rank"],
    "capabilities": ["chat", "completions", "score", "embeddings", "tools", "structured_output", "beam_search", "contrastive_search"],
    "default_sampling_params": {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
    },
    "weights": {"format": "float", "types": ["bfloat16"], "parameters": 5770496, "bytes": 4135680, "layers_with_16_bit_inputs": []},
    "observer_weights": {
        "format": "float",
        "types": ["bfloat16"],
        "parameters": 5770496,
        "bytes": 4135680,
        "layers_with_16_bit_inputs": [],
    },
    "draft_weights": None,
    "upstreams": [],
}
SLOTS_EXAMPLE: JsonDict = {
    "object": "slot.list",
    "model": "storyteller",
    "slots": [
        {
            "slot": 0,
            "stage": "decode",
            "request": "chatcmpl-5f2c/0",
            "prompt_tokens": 52,
            "cached_tokens": 71,
            "generated_tokens": 20,
            "drafted_tokens": 9,
            "accepted_tokens": 4,
        },
        {
            "slot": 1,
            "stage": "prefill",
            "request": "cmpl-0d47/1",
            "prompt_tokens": 900,
            "cached_tokens": 512,
            "generated_tokens": 0,
            "drafted_tokens": 0,
            "accepted_tokens": 0,
        },
    ],
    "waiting": [{"request": "chatcmpl-81be/0", "position": 1, "eta_s": 1.5}],
    "texts": 2,
    "cache": {
        "page_tokens": 64,
        "pages": 512,
        "used": 17,
        "shared": 1,
        "cached": 40,
        "free": 455,
        "prompt_tokens": 4210,
        "found_tokens": 2904,
        "set_back": 0,
    },
    "decisions": [
        {
            "at": 1753000000.25,
            "request": "chatcmpl-5f2c/0",
            "slot": 0,
            "reason": "the cache holds 40 of the prompt's 52 tokens",
            "waited_s": 0.02,
            "reused_tokens": 40,
            "prompt_tokens": 52,
        }
    ],
}


Capability = Literal["chat", "completions", "score", "embeddings", "tools", "structured_output", "beam_search", "contrastive_search"]
ModelStatus = Literal["ready", "loading", "unloaded", "unreachable"]  # unloaded: it was idle, and the next request loads it


class DefaultSamplingParams(Wire):
    """Values of the sampling parameters that a request leaves out: the setting's, else the model's own, else llama-server's."""

    temperature: float
    top_p: float
    top_k: int = Field(description="0 keeps all tokens")
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float


class WeightsCard(Wire):
    format: Literal["float", "bitsandbytes", "gguf", "awq", "compressed-tensors", "fp8", "gptq", "mxfp4"] = Field(
        description="of the checkpoint: floats, or quantized before, in a GGUF file or by others; `quantize` is what the server did"
    )
    types: list[str] = Field(
        description="of the checkpoint's matrices, that of most weights first: such as bfloat16, nf4, 4 bits, or a GGUF file's types"
    )
    parameters: int = Field(description="number of weights; tied ones count once")
    bytes: int = Field(description="of the weights in memory, as they are served")
    layers_with_16_bit_inputs: list[str] = Field(
        description="layers in 4 bits whose inputs are rounded to 16 bits, because 8 would change the layer's outputs by more than 3%; "
        "query, key and value projection are one layer, `qkv`"
    )


class UpstreamState(Wire):
    url: str
    kind: str | None = Field(description="what it says it is: litmus, llama.cpp, vllm, ...; null until it was reached")
    model: str | None = Field(description="the model's name there")
    alive: bool
    problem: str | None = Field(description="why it is not reachable")
    in_flight: int = Field(description="requests that it has")
    concurrency: int = Field(description="requests that it gets at once")
    routes: list[str] = Field(description="routes that it has")


class ModelCard(Wire):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "litmus"
    type: Literal["model"] = Field("model", description="this, display_name and created_at are Anthropic's")
    display_name: str | None = None
    created_at: str | None = Field(None, description="the same as created, as RFC 3339 has it")
    root: str | None = Field(None, description="the model's own name, by which answers call it; another than id where id is an alias")
    aliases: list[str] = Field(default=[], description="further names of the model; * is any name that no model has")
    parent: str | None = Field(None, description="the base, if this is a LoRA adapter that is served beside it; the base is its observer")
    status: ModelStatus = Field("ready", description="loading: its process died, or a request waits; unloaded: the next request loads it")
    default: bool = Field(description="used for requests that name no model")
    context: int | None = Field(description="limit of prompt and answer together, in tokens; null where an upstream does not say it")
    max_model_len: int | None = Field(description="same as context, by vLLM's name")
    text_window: int | None = Field(
        None, description="tokens of a text that are read in one piece: a longer one is scored in windows, and has no embedding"
    )
    slots: int = Field(description="requests that are answered at once; those that upstreams get at once")
    revision: str | None = Field(
        description="commit on the hub, or a digest of the folder; null, like what follows, for a model of an upstream"
    )
    quantize: str | None = Field(
        description="the setting: how the server quantized float weights; none also if the checkpoint was quantized before"
    )
    dtype: str | None
    device: str | None
    observer: str | None
    chat: bool = Field(description="whether the model has a chat template")
    tools: Literal["template", "general"] | None = Field(
        description="how tools are told, called and answered: as the chat template writes them, or, where it does not, in plain messages"
    )
    methods: list[Method]
    capabilities: list[Capability]
    default_sampling_params: DefaultSamplingParams | None
    weights: WeightsCard | None
    observer_weights: WeightsCard | None = Field(description="null without an observer")
    draft: str | None = Field(None, description="the model that proposes tokens, which this one checks")
    draft_weights: WeightsCard | None = None
    upstreams: list[UpstreamState] = Field(default=[], description="the servers that answer for the model; none if it is loaded here")

    model_config = ConfigDict(json_schema_extra={"examples": [CARD_EXAMPLE]})


class ModelList(Wire):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class LoadProgress(Wire):
    """How far the start of a model has come. Bytes are counted while files are downloaded or copied."""

    stage: str = Field(description="downloading, staging, loading, recording steps (on CUDA) or warming up")
    done_bytes: int | None = None
    total_bytes: int | None = None


class Readiness(Wire):
    status: Literal["ready", "loading", "draining", "degraded"] = Field(
        description="ready when all models are, or are loaded on demand; degraded when what is missing is an upstream"
    )
    models: dict[str, ModelStatus] = Field(default_factory=dict)
    progress: dict[str, LoadProgress] | None = Field(None, description="of the models that are loading; left out when none says")


class Health(Wire):
    status: Literal["ok"] = "ok"


class Version(Wire):
    version: str = Field(description="of Litmus", examples=["0.1.0"])


class SlotState(Wire):
    slot: int
    stage: Literal["idle", "prefill", "decode"]
    request: str | None = Field(description="id of the response, `/` and the index of the sequence in it; null if the slot is idle")
    prompt_tokens: int
    cached_tokens: int = Field(description="tokens of the request, or of the slot's last one, whose keys and values are in the cache")
    generated_tokens: int
    drafted_tokens: int = Field(0, description="tokens that were drafted for the answer and run since the request got its slot")
    accepted_tokens: int = Field(0, description="drafted tokens that are in the answer")


class WaitingState(Wire):
    request: str
    position: int = Field(description="1 gets a slot next")
    eta_s: float | None = Field(description="expected wait in seconds, estimated from recent requests; null while there are none")


class DecisionState(Wire):
    at: float = Field(description="Unix time in seconds")
    request: str
    slot: int
    reason: str = Field(description="what of the prompt was in the cache when the request got the slot, or why it lost it")
    waited_s: float
    reused_tokens: int = Field(description="prompt tokens that were in the KV cache")
    prompt_tokens: int


class CacheState(Wire):
    """The pages of the KV cache. Each is used, cached or free."""

    page_tokens: int = Field(description="tokens that a page holds")
    pages: int
    used: int = Field(description="pages of running requests")
    shared: int = Field(description="of these, pages that several of them use")
    cached: int = Field(description="pages that no request uses, of which one with the same beginning can use what they hold")
    free: int
    prompt_tokens: int = Field(description="tokens of the prompts that got a slot since the start")
    found_tokens: int = Field(description="of these, tokens that were in the cache and did not have to be computed")
    set_back: int = Field(description="how often a request gave its pages to others, as none was left, and went on later")


class SlotList(Wire):
    """A model's slots between two engine steps. Counts and ids only, no text."""

    object: Literal["slot.list"] = "slot.list"
    model: str
    slots: list[SlotState]
    waiting: list[WaitingState] = Field(description="requests waiting for a slot, the next one first")
    texts: int = Field(description="texts being scored or embedded, or waiting to be")
    cache: CacheState
    decisions: list[DecisionState] = Field(description="the last 100 slot assignments, newest last")

    model_config = ConfigDict(json_schema_extra={"examples": [SLOTS_EXAMPLE]})

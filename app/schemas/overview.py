"""Body of /overview: what the whole server does at this moment, for the page that draws it."""

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from app.schemas.state import ModelStatus, SlotState, WaitingState
from app.schemas.wire import Wire

EXAMPLE: JsonDict = {
    "object": "overview",
    "at": 1795836153.5,
    "started": 1795830000,
    "models": [
        {
            "id": "storyteller",
            "status": "ready",
            "replicas": 1,
            "alive": 1,
            "in_flight": 1,
            "context": 1024,
            "generated_tokens": 4120,
            "prompt_tokens": 1733,
            "scored_tokens": 0,
            "first_token": {"count": 12, "p50_s": 0.031, "p90_s": 0.044, "p99_s": 0.06},
            "engines": [
                {
                    "replica": 0,
                    "age_s": 0.0,
                    "slots": [
                        {
                            "slot": 0,
                            "stage": "decode",
                            "request": "chatcmpl-5f2c/0",
                            "prompt_tokens": 52,
                            "cached_tokens": 71,
                            "generated_tokens": 20,
                        }
                    ],
                    "waiting": [],
                    "texts": 0,
                }
            ],
        }
    ],
    "processes": [{"process": "worker", "model": "storyteller", "replica": 0, "cpu_s": 41.2, "resident_bytes": 812_000_000}],
    "gpus": [],
    "cpus": 2,
    "memory_total_bytes": 8_200_000_000,
    "memory_available_bytes": 5_100_000_000,
}


class LatencySummary(Wire):
    """Percentiles of every value of the last five minutes, at most the last thousand."""

    count: int
    p50_s: float
    p90_s: float
    p99_s: float


class EngineState(Wire):
    """A replica's engine between two steps."""

    replica: int
    age_s: float = Field(description="age of this report: above 0 while the engine is too busy to answer")
    slots: list[SlotState]
    waiting: list[WaitingState] = Field(description="requests waiting for a slot, the next one first")
    texts: int = Field(description="texts being scored or embedded, or waiting to be")


class ModelOverview(Wire):
    id: str
    status: ModelStatus
    replicas: int = Field(description="processes that the settings ask for")
    alive: int = Field(description="of these, processes with a loaded model")
    in_flight: int = Field(description="answers and texts that were admitted and have not ended")
    context: int | None = Field(description="tokens that a slot holds; null before the model was loaded once")
    generated_tokens: int = Field(description="since the server's start, as the next two")
    prompt_tokens: int = Field(description="of prompts, those found in the cache included")
    scored_tokens: int
    first_token: LatencySummary | None = Field(description="from a request's arrival to its first token; null without recent answers")
    engines: list[EngineState] = Field(description="of each replica that has told its state since it started")


class ProcessUse(Wire):
    process: Literal["api", "main", "worker"]
    model: str | None = Field(description="of a worker")
    replica: int | None = Field(description="of a worker")
    cpu_s: float = Field(description="CPU time since the process started, user and system")
    resident_bytes: int


class GPUUse(Wire):
    index: int
    used_bytes: int = Field(description="by all processes")
    total_bytes: int
    utilization: float | None = Field(description="0 to 1; null where the driver does not say")


class Overview(Wire):
    """Counts, times and ids only, no text."""

    object: Literal["overview"] = "overview"
    at: float = Field(description="Unix time in seconds")
    started: int = Field(description="Unix time in seconds")
    models: list[ModelOverview] = Field(description="the default one first")
    processes: list[ProcessUse]
    gpus: list[GPUUse]
    cpus: int = Field(description="CPUs that the server may use")
    memory_total_bytes: int = Field(description="of the machine")
    memory_available_bytes: int

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

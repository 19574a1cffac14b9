"""The one configuration: a frozen tree read from defaults < litmus.yaml < environment < command line.

Built in a `__main__` and handed down as a value; the only module that reads the environment. Knows no model and no server.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
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

BUNDLED = Path(__file__).resolve().parent.parent / "models"
ORIGIN = re.compile(r"\*|https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:\d{1,5})?")
SHORT = {
    "--model": "--model.path",
    "--observer": "--model.observer",
    "--quantize": "--model.quantize",
    "--device": "--model.device",
    "--port": "--server.port",
}
OFFLINE = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",  # or each event makes a table of the last 10,000
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(Group):
    path: str = Field(str(BUNDLED / "storyteller"), description="folder or hub name of the model that chats and scores")
    observer: str | None = Field(
        None, description="folder or hub name of the observer for binoculars; the bundled base model when the bundled model is served"
    )
    calibration: str | None = Field(
        None, description="file of `python -m app.calibrate` that verdicts rest on; the one beside the model when not set"
    )
    name: str | None = Field(None, description="name in the API; the last part of the path when not set")
    quantize: Literal["none", "int8", "nf4", "fp4", "int4"] = Field(
        "none",
        description="of the linear layers: int8, nf4 and fp4 by bitsandbytes; "
        "int4, for a CPU, in groups of 32, its bfloat16 inputs in 8 bits",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: the checkpoint's, but float32 on a CPU for models under 64 million parameters"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    replicas: int = Field(1, ge=1, le=64, description="copies of the model, each in a process of its own; they go round the CUDA devices")
    slots: int | None = Field(
        None, ge=1, le=1024, description="resident contexts: how many requests decode at once; as many as fit, at most 32, when not set"
    )
    context: int = Field(4096, ge=32, description="tokens a slot can hold; cut to what the model was made for")
    step_tokens: int = Field(512, ge=16, description="prompt and score tokens that may join the decoding rows in one step")
    stretch: float = Field(
        1.9,
        ge=1.2,
        le=20,
        description="how many times its usual length a step of decoding rows may last because a prompt joins it; more when many wait",
    )

    @property
    def served_name(self) -> str:
        return self.name or self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def observer_path(self) -> str | None:
        """The observer asked for; the bundled base model beside the bundled model."""
        if self.observer is None and Path(self.path).resolve() == BUNDLED / "storyteller":
            return str(BUNDLED / "storyteller-base")
        return self.observer

    def check_paths(self, where: str = "model") -> None:
        """Raises `SetupError` for a folder that is not there, naming the setting under `where`. A hub name (`owner/name`) is looked up
        when it is loaded.
        """
        for field, path in (("path", self.path), ("observer", self.observer_path)):
            if path is None or (path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).exists()):
                continue
            if not (Path(path) / "config.json").is_file():
                raise SetupError(
                    f"{where}.{field}: {path} is no folder with a config.json; give one, or a hub name such as Qwen/Qwen3-0.6B"
                )


class FurtherSettings(ModelSettings):
    """A model beside the default one. Its path has no default: a forgotten one must not bring the bundled model."""

    path: str = Field(description="folder or hub name of the model that chats and scores")


class ServerSettings(Group):
    host: Literal["127.0.0.1", "0.0.0.0", "::"] = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1024, le=65535, description="port to listen on")
    max_body_bytes: int = Field(2_000_000, ge=1024, description="a larger request body is refused with 413")
    drain_s: int = Field(30, ge=0, le=3600, description="seconds that work in flight may take to finish after SIGTERM")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="level of the log on stderr")


class QueueSettings(Group):
    max_waiting: int = Field(256, ge=1, description="requests in flight beyond the slots; more are refused with 429")


def _origin(text: str) -> str:
    """As browsers write it; what they would never send could never match."""
    if not ORIGIN.fullmatch(text):
        raise ValueError(
            f"{text!r} is no origin: write scheme and host in small letters, as in https://example.org or http://localhost:3000, "
            "and nothing behind them"
        )
    return text


class SecuritySettings(Group):
    cors_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = Field(
        (), description="origins whose web pages may call the API, such as https://example.org; * for all"
    )
    banned_users: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="values of a request's `user` that are refused with 403"
    )


class UISettings(Group):
    enabled: bool = Field(True, description="mount the Gradio page at /ui")
    server: str = Field("http://127.0.0.1:8000", description="`python -m ui` only: the server the page talks to")
    port: int = Field(7860, ge=1024, le=65535, description="`python -m ui` only: port of the page")


class Settings(BaseSettings):
    """Raises `SetupError` through `read`, never pydantic's own error, when a value is wrong."""

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
    models: tuple[FurtherSettings, ...] = Field((), description="further models, each with the settings of `model`; `path` is required")
    server: ServerSettings = ServerSettings()
    queue: QueueSettings = QueueSettings()
    security: SecuritySettings = SecuritySettings()
    ui: UISettings = UISettings()

    @property
    def served(self) -> dict[str, ModelSettings]:
        """Every model by the name of its settings, the default one first."""
        return {"model": self.model, **{f"models.{place}": model for place, model in enumerate(self.models)}}

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        first: dict[str, str] = {}
        for where, model in self.served.items():
            other = first.setdefault(model.served_name, where)
            if other != where:
                raise ValueError(f"{other} and {where} would both be served as '{model.served_name}': give one of them another name")
        return self

    def check_paths(self) -> None:
        """Raises `SetupError` for a folder that is not there."""
        for where, model in self.served.items():
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
    """Settings from all sources; `arguments`, a command line without the program, win. Raises `SetupError`; `--help` exits."""
    try:
        words = [_long(word) for word in arguments]
        source: CliSettingsSource[Settings] = CliSettingsSource(
            Settings, cli_parse_args=words, cli_prog_name=f"python -m {program}", cli_kebab_case=False
        )
        return Settings(_cli_settings_source=source)
    except ValidationError as error:
        raise SetupError(_sentence(error)) from error
    except (SettingsError, YAMLError, ValueError) as error:  # a source that cannot be read at all
        raise SetupError(f"settings: {' '.join(str(error).split())[:300]}") from error


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    says = "is required and has no default" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
    return f"setting {where}: {says}" if where else f"settings: {says}"


def _long(word: str) -> str:
    name, equals, value = word.partition("=")
    return SHORT.get(name, name) + equals + value


def go_offline_quietly() -> None:
    """Put the switches into the environment that keep the libraries from calling home; a value set by the user stays."""
    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)

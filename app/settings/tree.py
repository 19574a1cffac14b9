"""All settings as one frozen tree, whose parts are the groups. Knows where its values may come from, and checks them against each other."""

from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from app.settings.jobs import JobSettings
from app.settings.model import FurtherSettings, ModelSettings
from app.settings.security import SecuritySettings
from app.settings.server import LimitSettings, QueueSettings, RetentionSettings, ServerSettings
from app.settings.sources import DELIMITER, DOTENV, PREFIX, YAML
from app.settings.ui import TelegramSettings, UISettings
from app.settings.upstream import may_share_a_name


class Settings(BaseSettings):
    """All settings. Build it with `read`, which raises `SetupError` instead of pydantic's error when a value is wrong."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=DELIMITER,
        env_file=DOTENV,
        dotenv_filtering="match_prefix",
        extra="forbid",
        frozen=True,
        yaml_file=YAML,
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

    @property
    def aliases(self) -> dict[str, str]:
        """The further names of models, each with the name of its model. `*` stands for every name that no model has."""
        return {alias: model.served_name for model in self.served.values() for alias in model.aliases}

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
        self._check_aliases(setting_of)
        return self

    def _check_aliases(self, setting_of: dict[str, str]) -> None:
        """Raises `ValueError` for an alias that is a name of another model, or of an adapter. Upstreams of one name may share theirs."""
        for where, model in self.served.items():
            for alias in model.aliases:
                taken = setting_of.setdefault(alias, f"{where}.aliases")
                shared = taken.endswith(".aliases") and self.served[taken.removesuffix(".aliases")].served_name == model.served_name
                if not shared:
                    raise ValueError(f"{taken} and {where}.aliases would both be served as '{alias}': leave it out of one of them")

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
        """An empty variable is one that is not set, as compose and env files often leave it."""
        environment = EnvSettingsSource(settings_cls, env_ignore_empty=True)
        dotenv = DotEnvSettingsSource(settings_cls, env_ignore_empty=True)
        return init_settings, environment, dotenv, YamlConfigSettingsSource(settings_cls)

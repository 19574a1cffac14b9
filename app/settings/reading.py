"""Reads the settings from all their sources, and says in a sentence what is wrong with one."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_settings import CliSettingsSource, SettingsError
from yaml import YAMLError

from app.errors import SetupError
from app.settings.tree import Settings

SHORT_OPTIONS = {
    "--model": "--model.path",
    "--observer": "--model.observer",
    "--quantize": "--model.quantize",
    "--device": "--model.device",
    "--port": "--server.port",
}


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

"""Reads the settings from all their sources, and says in a sentence what is wrong with one."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from app.errors import SetupError
from app.settings.sources import check_options, check_variables, check_yaml, names_of, nearest
from app.settings.tree import Settings

SHORT_OPTIONS = {
    "--model": "--model.path",
    "--observer": "--model.observer",
    "--quantize": "--model.quantize",
    "--device": "--model.device",
    "--port": "--server.port",
}
MODEL = SHORT_OPTIONS["--model"]
PROBLEMS = {  # by the type of pydantic's error
    "missing": "is required and has no default",
    "model_type": "has settings of its own: write them under it, or leave it out",
    "tuple_type": 'is a list, such as ["a", "b"]',
    "dict_type": 'has names and values, such as {"name": "value"}',
}


def read(arguments: Sequence[str], program: str = "serve") -> Settings:
    """Settings from all sources. `arguments` is the command line without the program name. A word that is neither an option nor the value
    of one is the model. Raises `SetupError`; `--help` exits.
    """
    try:
        examples = dict(names_of(Settings))
        long_arguments = [_long_option(argument) for argument in _with_model_option(arguments)]
        check_options(long_arguments, examples)
        check_variables(examples)
        check_yaml()
        source: CliSettingsSource[Settings] = CliSettingsSource(
            Settings, cli_parse_args=long_arguments, cli_prog_name=f"python -m {program}", cli_kebab_case=False
        )
        _check_secrets(source())
        return Settings(_cli_settings_source=source)
    except ValidationError as error:
        raise SetupError(_first_error(error)) from error
    except (SettingsError, ValueError) as error:  # a source that cannot be read at all
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
    problem = PROBLEMS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        problem = f"there is no such setting; {_nearest([str(part) for part in first['loc']])}"
    return f"setting {where}: {problem}" if where else f"settings: {problem}"


def _nearest(parts: list[str]) -> str:
    """A name beside it that is known. Those of a further model are those of `model`."""
    group = ".".join(["model", *parts[2:-1]] if parts[0] == "models" else parts[:-1])
    beside = [name.rpartition(".") for name, _ in names_of(Settings)]
    return nearest(parts[-1], [last for outer, _, last in beside if outer == group])


def _with_model_option(arguments: Sequence[str]) -> list[str]:
    """A model may stand without its option, as in `vllm serve owner/name`. Raises `SetupError` where another one is named, too."""
    options: list[str] = []
    alone: list[str] = []
    is_value = False
    for argument in arguments:
        is_option = argument.startswith("--") or (argument.startswith("-") and not is_value)
        (options if is_option or is_value else alone).append(argument)
        is_value = is_option and "=" not in argument
    named = next((option for option in options if _long_option(option).partition("=")[0] == MODEL), None)
    if len(alone) > 1 or (alone and named):
        others = " and ".join([*alone[1:], *([named] if named else [])])
        raise SetupError(f"several models are named, {alone[0]} and {others}: give one; further ones are served with --models")
    return [*options, MODEL, *alone] if alone else options


def _long_option(argument: str) -> str:
    """`--port=9000` as `--server.port=9000`; other arguments as they are."""
    name, equals, value = argument.partition("=")
    return SHORT_OPTIONS.get(name, name) + equals + value

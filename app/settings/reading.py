"""Reads the settings from all their sources, and says in a sentence what is wrong with one."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError, create_model
from pydantic_settings import CliSettingsSource, CliSuppress, SettingsError

from app.errors import SetupError
from app.models.revision import VERSION
from app.settings.sources import check_options, check_variables, check_yaml, names_of, nearest
from app.settings.tree import Settings

SHORT_OPTIONS = {
    "--model": "--model.path",
    "--observer": "--model.observer",
    "--chat-template": "--model.chat_template",
    "--quantize": "--model.quantize",
    "--device": "--model.device",
    "--port": "--server.port",
}
PROGRAMS = {  # what each is, for its --help, and the groups of settings that it reads; none: all of them
    "serve": ("The server: chats with language models and scores texts over HTTP, and shows the page.", ()),
    "jobs": ("A worker for the batches and the fine-tuning of a server, with the server's settings.", ("jobs", "server")),
    "ui": ("The page alone, for a server that runs elsewhere: --server URL, --port N.", ("ui", "server", "security")),
    "ui.telegram": ("The Telegram bot, for a server that runs elsewhere.", ("telegram", "server")),
}
ELSEWHERE = "Settings are also read from litmus.yaml, .env and the environment: docs/settings.md."
SHORT = f"Short names: {', '.join(f'{short} is {long}' for short, long in SHORT_OPTIONS.items())}; MODEL alone is --model.path, too."
OTHERS = "Those of other programs are accepted, and not shown."
MODEL = SHORT_OPTIONS["--model"]
PROBLEMS = {  # by the type of pydantic's error
    "missing": "is required and has no default",
    "model_type": "has settings of its own: write them under it, or leave it out",
    "tuple_type": 'is a list, such as ["a", "b"]',
    "dict_type": 'has names and values, such as {"name": "value"}',
}


def read(arguments: Sequence[str], program: str = "serve") -> Settings:
    """Settings from all sources. `arguments` is the command line without the program name. A word that is neither an option nor the value
    of one is the model that is to be served. Raises `SetupError`; `--help` and `--version` exit.
    """
    try:
        examples = dict(names_of(Settings))
        long_arguments = [_long_option(argument) for argument in _with_model_option(arguments, program)]
        check_options(long_arguments, examples, [name.removeprefix("--") for name in SHORT_OPTIONS])
        check_variables(examples)
        check_yaml()
        source: CliSettingsSource[Settings] = CliSettingsSource(
            _shown(program) if {"-h", "--help"} & set(arguments) else Settings,
            cli_prog_name=f"python -m {program}",
            cli_kebab_case=False,
        )
        parser: Any = source.root_parser
        parser.usage = f"%(prog)s {'[MODEL] ' if program == 'serve' else ''}[--SETTING VALUE ...]"  # else two pages of options
        parser.add_argument("--version", action="version", version=f"litmus {VERSION}", help="show the version and exit")
        source(args=long_arguments)
        _check_secrets(source())
        return Settings(_cli_settings_source=source)
    except ValidationError as error:
        raise SetupError(_first_error(error)) from error
    except (SettingsError, ValueError) as error:  # a source that cannot be read at all
        raise SetupError(f"settings: {' '.join(str(error).split())[:300]}") from error


def _shown(program: str) -> type[Settings]:
    """The settings with the groups that this program reads, and what it is, for its help."""
    meaning, groups = PROGRAMS[program]
    words = " ".join([meaning, *([] if groups else [SHORT]), ELSEWHERE, *([OTHERS] if groups else [])])
    hidden = {name: field for name, field in Settings.model_fields.items() if groups and name not in groups}
    changes: dict[str, Any] = {name: (CliSuppress[field.annotation], field) for name, field in hidden.items()}  # type: ignore[misc, name-defined]
    return create_model("Settings", __base__=Settings, __doc__=words, **changes)


def _check_secrets(command_line: dict[str, Any]) -> None:
    """The bot's secrets are not taken from the command line: every user of the machine can read that in the list of processes."""
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


def _with_model_option(arguments: Sequence[str], program: str) -> list[str]:
    """A model may stand without its option, as in `vllm serve owner/name`. Raises `SetupError` where another one is named, too, and for a
    program that serves no model.
    """
    options: list[str] = []
    alone: list[str] = []
    named: list[str] = []
    waiting = ""  # the option whose value comes next
    for argument in (each for each in arguments if each != "--"):
        is_option = argument.startswith("--") or (argument.startswith("-") and not waiting)
        option, has_value, value = _long_option(argument).partition("=") if is_option else (waiting, "=", argument)
        (options if option else alone).append(argument)
        named += [value] if option == MODEL and has_value else []
        waiting = "" if has_value else option
    if alone and program != "serve":
        raise SetupError(f"{alone[0]!r} is no option: write the name of the setting before it; python -m {program} --help lists them")
    if len(alone) > 1 or (alone and named):
        raise SetupError(f"several models are named, {' and '.join([*alone, *named])}: give one; further ones are served with --models")
    return [*options, MODEL, *alone] if alone else options


def _long_option(argument: str) -> str:
    """`--port=9000` as `--server.port=9000`; other arguments as they are."""
    name, equals, value = argument.partition("=")
    return SHORT_OPTIONS.get(name, name) + equals + value

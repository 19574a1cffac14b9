"""The sources before they are read: a name that is no setting, or a file in a form that hides what it says, is refused here by its name.

Knows the names of the settings and which of them hold several values, not what any of them means.
"""

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_origin

import yaml
from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import BaseModel

from app.errors import SetupError, first_line

PREFIX, DELIMITER = "LITMUS_", "__"
DOTENV, YAML = ".env", "litmus.yaml"
OTHERS = re.compile(  # variables that are no settings: those of deploy/compose.yaml, of our tests, and of Kubernetes for a service `litmus`
    r"LITMUS_(CONFIG_FOLDER|GPU|GPU_PORTS|GRAFANA_PORT|HTTPS_PORT|HTTP_PORT|LLAMA_SERVER|MEMORY|MODELS_FOLDER|PORTS|PROMETHEUS_PORT|TAG"
    r"|UI_PORT|(.+_)?SERVICE_(HOST|PORT)(_.+)?|(.+_)?PORT_\d+_(TCP|UDP|SCTP)(_.+)?)"
)
LINKED = re.compile(r"(tcp|udp|sctp)://")  # how the value of Kubernetes' LITMUS_PORT begins
GROUP, NAMED, TEXTS, NUMBERS = '{"name": "value"}', '{"name": "text"}', '["a", "b"]', "[1, 2]"
NUMBERS_OF_YAML = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})
GROUPS = '[{"path": "owner/name"}]'
BEFORE_LAST_PART = re.compile(rf"({PREFIX})?.*(?:\.|{DELIMITER})")
CLOSE = 0.7  # of two words: twice the letters that they share, of all their letters; with less, metrics would be near strict
SETTINGS_PAGE = "docs/settings.md has all of them"
OTHER_SERVERS = {  # options of vLLM and llama-server, and what they are here
    "alias": "model.aliases",
    "api_key": "security.keys",
    "api_key_file": "security.keys_file",
    "ctx_size": "model.context",
    "max_model_len": "model.context",
    "max_num_batched_tokens": "model.step_tokens",
    "max_num_seqs": "model.slots",
    "parallel": "model.slots",
    "served_model_name": "model.name",
}
LETTERS = {"-a": "model.aliases", "-c": "model.context", "-m": "model.path", "-np": "model.slots"}  # of llama-server


def names_of(group: type[BaseModel], under: str = "") -> Iterator[tuple[str, str | None]]:
    """Every group and setting, with an example in JSON of one that holds several values."""
    for name, field in group.model_fields.items():
        if _is_group(field.annotation):
            yield under + name, GROUP
            yield from names_of(field.annotation, f"{under}{name}.")  # type: ignore[arg-type]
        else:
            yield under + name, _example(field.annotation)


def _example(kind: Any) -> str | None:
    several = next((each for each in (kind, *get_args(kind)) if get_origin(each) in {tuple, dict}), None)
    if several is None:
        return None
    if get_origin(several) is dict:
        return NAMED
    of = get_args(several)[0]
    return GROUPS if _is_group(of) else NUMBERS if of is int else TEXTS


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def nearest(name: str, names: Iterable[str], others: Mapping[str, str] = MappingProxyType({})) -> str:
    """The end of a sentence about a name that is not known. It may stand for the last part of one that is, or be near one of `others`, each
    of which has what it means.
    """
    known = {each: each for each in names}
    last_parts = {BEFORE_LAST_PART.sub(r"\1", each): each for each in reversed(known)}  # of several names that end alike the first
    meant = {**last_parts, **{each.replace(".", "_"): each for each in known}, **known, **others}
    found = [name] if name in meant else difflib.get_close_matches(name, meant, 1, CLOSE)
    return f"did you mean {meant[found[0]]}?" if found else SETTINGS_PAGE


def check_options(arguments: Sequence[str], names: Iterable[str], short: Iterable[str] = ()) -> None:
    """`short` are further names, which were replaced where they are right. Raises `SetupError`. The parser would show the usage of every
    option instead.
    """
    known = list(names)
    others = {name.replace("-", "_"): name for name in short} | OTHER_SERVERS
    waiting = False  # for the value of an option, such as -1
    for argument in arguments:
        option, has_value, _ = argument.partition("=")
        name = option.removeprefix("--")
        if option.startswith("--") and name and name not in {"help", "version", *known}:
            raise SetupError(f"{option} is no option: {nearest(name.replace('-', '_'), known, others).replace('mean ', 'mean --')}")
        if option.startswith("-") and not option.startswith("--") and not waiting and option != "-h":
            raise SetupError(f"{option} is no option: {f'did you mean --{LETTERS[option]}?' if option in LETTERS else SETTINGS_PAGE}")
        waiting = option.startswith("--") and not has_value


def check_variables(examples: Mapping[str, str | None]) -> None:
    """Those of the environment and of .env. Raises `SetupError`."""
    known = {PREFIX + name.replace(".", DELIMITER).upper(): example for name, example in examples.items()}
    ours = {name: value for name, value in os.environ.items() if not (OTHERS.fullmatch(name) or LINKED.match(value))}
    _check_variables(ours, known, "in the environment")
    _check_variables(_dotenv(), known, f"in {DOTENV}")


def _check_variables(variables: Mapping[str, str], known: Mapping[str, str | None], where: str) -> None:
    for name, value in variables.items():
        if not value or not name.upper().startswith(PREFIX):
            continue
        if name.upper() not in known and not _is_in_known(name.upper(), known):
            raise SetupError(f"{name} {where} is no setting: {nearest(name.upper(), known)}")
        example = known.get(name.upper())
        if example == GROUP and not _is_json(value):
            inner = next(each for each in known if each.startswith(name.upper() + DELIMITER))
            raise SetupError(f"{name} {where} is a group of settings: set each by its name, such as {inner}")
        if example is not None and not _is_json(value):
            raise SetupError(f"{name} {where} is no JSON: write it as in {name}='{example}'")


def _is_in_known(name: str, known: Mapping[str, str | None]) -> bool:
    """An entry of a setting whose names are the user's, such as LITMUS_MODEL__ADAPTERS__SQL."""
    return known.get(name.rpartition(DELIMITER)[0]) == NAMED


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _dotenv() -> dict[str, str]:
    """The variables of .env. Raises `SetupError` for a line that is none; it is not quoted, as it may hold a secret."""
    file = Path(DOTENV)
    if not file.is_file():
        return {}
    try:
        with file.open(encoding="utf-8") as stream:
            for binding in parse_stream(stream):
                if binding.error or (binding.key is not None and binding.value is None and binding.key.upper().startswith(PREFIX)):
                    skipped = len(binding.original.string) - len(binding.original.string.lstrip("\n"))
                    raise SetupError(f"{DOTENV}, line {binding.original.line + skipped}: write NAME=value")
        return {name: value for name, value in dotenv_values(file).items() if value is not None}
    except OSError as error:
        raise SetupError(f"{DOTENV} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SetupError(f"{DOTENV} is not text in UTF-8") from error


def check_yaml() -> None:
    """The form of litmus.yaml. Raises `SetupError`."""
    file = Path(YAML)
    if not file.exists():
        return
    if file.is_dir():
        raise SetupError(f"{YAML} is a folder, and should be a file")
    try:
        node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise SetupError(f"{YAML} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SetupError(f"{YAML} is not text in UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise SetupError(f"{YAML}{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise SetupError(f"{YAML} is no YAML: {first_line(error)}") from error
    if node is not None and not isinstance(node, yaml.MappingNode) and node.tag != "tag:yaml.org,2002:null":
        raise SetupError(f"{YAML} is to hold settings by their names, such as `server: {{port: 9000}}`")
    _check_keys(node, set())


def _check_keys(node: Any, seen: set[int]) -> None:
    """YAML lets the last of several values win, without a word."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    keys: set[str] = set()
    for entry in node.value:
        for inner in entry if isinstance(entry, tuple) else (entry,):
            _check_number(inner)
            _check_keys(inner, seen)
        if isinstance(entry, tuple) and isinstance(entry[0], yaml.ScalarNode):
            if entry[0].value in keys:
                raise SetupError(f"{YAML}, line {entry[0].start_mark.line + 1}: {entry[0].value} was set before; leave one of them out")
            keys.add(entry[0].value)


def _check_number(node: Any) -> None:
    """YAML 1.1 takes 1:30 for 90, a number to the base of 60."""
    if isinstance(node, yaml.ScalarNode) and node.tag in NUMBERS_OF_YAML and ":" in node.value:
        line = node.start_mark.line + 1
        raise SetupError(f"{YAML}, line {line}: YAML reads {node.value} as a number to the base of 60; write seconds, or quote a text")

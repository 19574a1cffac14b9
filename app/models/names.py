"""What a model's name says by itself: hub names, parts of split GGUF files, the name to serve it under. Looks at no disk and no hub."""

import re
from dataclasses import dataclass

from app.errors import SetupError

HUB_NAME = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>[\w./-]+))?(?::(?P<file>[^\s@]+))?(?:@(?P<last>[\w./-]+))?"
)
MODEL_NAME = r"^[A-Za-z0-9][\w.:@/-]{0,127}$"  # of what the API names
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
PROJECTOR = "mmproj"  # begins the names of files that hold an image encoder


@dataclass(frozen=True, slots=True)
class HubName:
    """A model of the hub: `owner/name`, perhaps with a GGUF file or its quantization, and a branch, tag or commit."""

    repository: str
    file: str | None = None
    revision: str | None = None


def hub_name(path: str) -> HubName | None:
    """What `owner/name`, `owner/name@revision`, `owner/name:file.gguf` or `owner/name:Q4_K_M@revision` stands for; None for others."""
    found = HUB_NAME.fullmatch(path)
    if found is None or (found["revision"] and found["last"]):
        return None
    return HubName(found["repository"], found["file"], found["revision"] or found["last"])


def is_hub_name(path: str) -> bool:
    """Whether a path may be the name of a model of the hub."""
    return hub_name(path) is not None


def hub_file(path: str) -> tuple[str, str] | None:
    """Repository, and file name or quantization, of `owner/name:file.gguf` or `owner/name:Q4_K_M`; None for other paths."""
    found = hub_name(path)
    return (found.repository, found.file) if found and found.file else None


def served_name(path: str) -> str:
    """The last part of a path, without what all names of GGUF files have; `name:Q4_K_M` where repository and quantization are given."""
    hub = hub_name(path)
    if hub is not None and hub.file is not None and not hub.file.endswith(".gguf"):
        return f"{base_name(hub.repository)}:{hub.file}"
    whole = path if hub is None else hub.file or hub.repository
    return PART.sub("", base_name(whole)).removesuffix(".gguf")


def is_first_part(name: str) -> bool:
    """Whether a file is a model by itself, or the first of several that are one."""
    found = PART.search(name)
    return found is None or int(found[1]) == 1


def part_names(name: str) -> list[str]:
    """`name`, and if it is the first part of a split file, those of the others. Raises `SetupError` for another part."""
    found = PART.search(name)
    if found is None:
        return [name]
    if not is_first_part(name):
        raise SetupError(f"{name} is part {int(found[1])} of a split file; give its first part")
    return [f"{name[: found.start()]}-{number:05}-of-{found[2]}.gguf" for number in range(1, int(found[2]) + 1)]


def choose_gguf(path: str, quantization: str, names: list[str]) -> str:
    """The one GGUF file of a repository in a quantization, upper or lower case. Raises `SetupError` unless there is exactly one."""
    models = [
        name for name in sorted(names) if name.endswith(".gguf") and not base_name(name).startswith(PROJECTOR) and is_first_part(name)
    ]
    wanted = re.compile(rf"(^|[^a-z0-9]){re.escape(quantization.lower())}(/|$)")  # in the name of the file or of a folder around it
    found = [name for name in models if wanted.search(PART.sub("", name).removesuffix(".gguf").lower())]
    if len(found) == 1:
        return found[0]
    listed = f"it has {', '.join(models)}" if models else "it has no GGUF files"
    problem = (
        f"several of its files are {quantization} ({', '.join(found)})" if found else f"none of its GGUF files is {quantization}; {listed}"
    )
    raise SetupError(f"{path}: {problem}; name one, as owner/name:file.gguf")


def base_name(path: str) -> str:
    """The last part of a folder's path or of a hub name."""
    return path.rstrip("/").rsplit("/", 1)[-1]

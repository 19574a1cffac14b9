"""Which models may be loaded by a request: those in folders that the settings name. Opens nothing."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import constants, file_download

from app.errors import Forbidden, SetupError
from app.models.adapter import CONFIG as ADAPTER_CONFIG
from app.models.names import hub_file, is_hub_name, part_names
from app.settings import ModelSettings, Settings

HUB, CACHE = "hub", "cache"
RULE = "the setting security.model_paths says from where a request may load"


class ModelPaths:
    def __init__(self, settings: Settings) -> None:
        rules = settings.security.model_paths
        self._jobs = settings.jobs.folder  # where results of fine-tuning lie
        self._known = {path for model in settings.loaded.values() for path in _paths_of(model).values()}
        own = [str(_folder(Path(path))) for path in self._known if not _is_hub(path)]
        self._rules: Sequence[str] = [*own, CACHE] if rules is None else rules

    def check(self, settings: ModelSettings) -> None:
        """Raises `Forbidden`, naming the field, for a path that is none of the settings' own and in none of the allowed folders."""
        for field, path in _paths_of(settings).items():
            if path not in self._known and not (self._allows(path) and self._allows_base(path)):
                raise Forbidden(f"'{field}' is not in a folder that is allowed here: {RULE}", param=field, code="path_not_allowed")

    def check_adapter(self, path: str) -> None:
        """Raises `Forbidden` for an adapter's path. Its base is not opened: it is served already."""
        if path not in self._known and not self._allows(path, self._jobs):
            raise Forbidden(f"'lora_path' is not in a folder that is allowed here: {RULE}", param="lora_path", code="path_not_allowed")

    def _allows(self, path: str, *others: str) -> bool:
        if not path.isprintable() or ".." in Path(path).parts or path.startswith("~"):
            return False
        if _is_hub(path):
            return HUB in self._rules or (CACHE in self._rules and _is_cached(path))
        folders = [Path(rule).resolve() for rule in (*self._rules, *others) if rule not in {HUB, CACHE}]
        if CACHE in self._rules:
            folders.append(Path(constants.HF_HUB_CACHE).resolve())
        return all(any(place.is_relative_to(folder) for folder in folders) for place in _places(Path(path)))

    def _allows_base(self, path: str) -> bool:
        """An adapter names the model that it is merged into."""
        config = Path(path) / ADAPTER_CONFIG
        if not config.is_file():
            return True
        try:
            base = str(json.loads(config.read_text()).get("base_model_name_or_path"))
        except (OSError, ValueError, AttributeError):
            return True  # the load refuses it, and says why
        there = [str(place.resolve()) for place in (Path(base), Path(path, base)) if place.exists()]
        return base in self._known or all(self._allows(place) for place in there or [base])


def _paths_of(settings: ModelSettings) -> dict[str, str]:
    paths = {"path": settings.path, "observer": settings.observer_path, "draft": settings.draft, "calibration": settings.calibration}
    paths["chat_template"] = settings.chat_template
    adapters = {f"adapters.{name}": path for name, path in settings.adapters.items()}
    return {field: path for field, path in paths.items() if path is not None} | adapters


def _is_hub(path: str) -> bool:
    return is_hub_name(path) and not Path(path).exists()


def _is_cached(name: str) -> bool:
    found = hub_file(name)
    repository = name if found is None else found[0]
    return (Path(constants.HF_HUB_CACHE) / file_download.repo_folder_name(repo_id=repository, repo_type="model")).is_dir()


def _folder(path: Path) -> Path:
    return path.parent if path.is_file() else path


def _places(path: Path) -> Iterator[Path]:
    """Where a path, and what lies in it, really is: a link may lead elsewhere."""
    yield path.resolve()
    if path.is_file():
        with contextlib.suppress(SetupError):  # another part than the first: the load refuses it
            yield from (path.with_name(name).resolve() for name in part_names(path.name))
    if path.is_dir():
        yield from (entry.resolve() for entry in path.iterdir())

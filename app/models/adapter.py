"""What a LoRA adapter says of itself: its base, and whether it can be merged into it. Reads no weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import SetupError, first_line
from app.models.hub import commit_of, find_file, place_of
from app.models.revision import revision_of

CONFIG = "adapter_config.json"
# What LoRA can do beside adding to weights.
NOT_MERGEABLE = ("alora_invocation_tokens", "arrow_config", "layer_replication")


@dataclass(frozen=True, slots=True)
class Adapter:
    """`path` as the settings have it; `base` is the folder or hub name of the model that it adapts, `revision` that of a hub's base."""

    path: str
    base: str
    revision: str | None = None

    @property
    def place(self) -> tuple[str, str | None]:
        """Its own folder, or repository of the hub and revision there."""
        return place_of(self.path)

    def file(self, name: str) -> Path | None:
        place, revision = self.place
        return find_file(place, name, revision)

    def weights_revision(self) -> str:
        file = self.file(CONFIG)
        assert file is not None
        return revision_of(str(file.parent), commit_of(file))


def read_adapter(path: str, file: Path) -> Adapter:
    """Read `file`, an adapter_config.json. Raises `SetupError` for an adapter that cannot be merged or whose base is not at hand."""
    try:
        config: dict[str, Any] = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise SetupError(f"{path}: its {CONFIG} cannot be read: {first_line(error)}") from error
    _check_mergeable(path, config)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str) or not name:
        raise SetupError(
            f"{path} is an adapter whose {CONFIG} names no base: write the base's folder or hub name to base_model_name_or_path"
        )
    folders = [folder for folder in (Path(name), file.parent / name) if _holds_model(folder)]
    if not folders and find_file(name, "config.json", revision) is None:
        raise SetupError(
            f"{path} is an adapter of {name}, which is not at hand: it is no folder with a model here or beside the adapter, is not in the "
            f"hub's cache and could not be downloaded. Put it into one of these places, or write where it is to base_model_name_or_path in "
            f"the adapter's {CONFIG}"
        )
    adapter = Adapter(path, str(folders[0])) if folders else Adapter(path, name, revision)
    if find_file(adapter.base, CONFIG, adapter.revision) is not None:
        raise SetupError(f"{path}: its base {name} is an adapter, too; merge that into its own base first (peft's merge_and_unload)")
    return adapter


def _holds_model(folder: Path) -> bool:
    if folder.is_file():
        return folder.suffix == ".gguf"
    return any(next(folder.glob(pattern), None) for pattern in ("config.json", "*.gguf", CONFIG))


def _check_mergeable(path: str, config: dict[str, Any]) -> None:
    kind, task = str(config.get("peft_type", "unknown")), config.get("task_type")
    if kind != "LORA":
        raise SetupError(f"{path} is an adapter of the type {kind}; only LORA is served, because it can be merged into its base")
    if task not in {None, "CAUSAL_LM"}:
        raise SetupError(f"{path} is an adapter for the task {task}; Litmus serves CAUSAL_LM")
    for name in NOT_MERGEABLE:
        if config.get(name):
            raise SetupError(f"{path} is a LoRA adapter with {name}, which cannot be merged into its base")

"""Where a model is: what a path in the settings stands for. A folder or hub name in transformers' format, or a GGUF file.

Nothing of the weights is read here.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from app.errors import SetupError, first_line
from app.models.gguf import GGUFFile, config_of, is_first_part

ADAPTER = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Source:
    """`path` as the settings have it; the GGUF file behind it, if there is one."""

    path: str
    gguf: GGUFFile | None = None

    def config(self, field: str) -> PretrainedConfig:
        """The text model's configuration. Raises `SetupError` that names `field`, the setting."""
        if self.gguf is not None:
            return config_of(self.gguf)
        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(self.path).get_text_config()
        except (OSError, ValueError) as error:
            raise SetupError(f"{field}: {self.path} has no usable config.json: {first_line(error)}") from error
        return config


def source_of(path: str) -> Source:
    """Raises `SetupError` for a folder of several GGUF models, and for an adapter, whose base has to be named."""
    local = Path(path)
    if local.is_file():
        return Source(path, _opened(local, local.stat().st_mtime_ns))
    if not local.is_dir() or (local / "config.json").is_file():
        return Source(path)
    if (local / ADAPTER).is_file():
        raise SetupError(_adapter_message(local))
    files = [file for file in sorted(local.glob("*.gguf")) if is_first_part(file)]
    if len(files) > 1:
        raise SetupError(f"{path} holds several GGUF models ({', '.join(file.name for file in files)}); name one of them")
    return Source(path, _opened(files[0], files[0].stat().st_mtime_ns)) if files else Source(path)


@lru_cache(4)
def _opened(file: Path, _changed_ns: int) -> GGUFFile:
    """One for all who ask: reading the table of tensors takes a second."""
    return GGUFFile(file)


def _adapter_message(folder: Path) -> str:
    config: dict[str, Any] = json.loads((folder / ADAPTER).read_text())
    base = config.get("base_model_name_or_path", "unknown")
    return (
        f"{folder} is a {str(config.get('peft_type', 'LoRA')).upper()} adapter of {base}, not a model; merge it into its base "
        f"(peft's merge_and_unload) and serve the result"
    )

"""Where a model is: what a path in the settings stands for. A folder or hub name in transformers' format, a GGUF file here or
on the hub, or an adapter.

Nothing of the weights is read here.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from app.errors import SetupError, first_line
from app.models.adapter import CONFIG as ADAPTER_CONFIG
from app.models.adapter import Adapter, read_adapter
from app.models.architectures import config_of
from app.models.gguf import GGUFFile
from app.models.hub import commit_of, fetch_gguf, find_file, place_of
from app.models.method import is_prequantized, method_of
from app.models.names import hub_name, is_first_part
from app.models.revision import digest_of, revision_of


@dataclass(frozen=True, slots=True)
class Source:
    """`path` as the settings have it; the GGUF file or the adapter behind it, if there is one. `place` is a folder from which config and
    weights are to be loaded instead: a copy in memory.
    """

    path: str
    gguf: GGUFFile | None = None
    adapter: Adapter | None = None
    place: str | None = None

    @property
    def base(self) -> str:
        """Folder or hub repository of the weights: of an adapter those of its base."""
        return place_of(self.path)[0] if self.adapter is None else self.adapter.base

    @property
    def revision(self) -> dict[str, str]:
        """The revision in the hub as transformers' option, if the path names one, or an adapter that of its base."""
        revision = place_of(self.path)[1] if self.adapter is None else self.adapter.revision
        return {} if revision is None else {"revision": revision}

    @property
    def own_precision(self) -> str | None:
        """What it is, in words, if its weights keep their own precision; None for weights that Litmus may round."""
        if self.gguf is not None:
            return "a GGUF file"
        config = None if self.adapter is not None else self.config("model.path")
        return f"a checkpoint of {method_of(config)}" if config is not None and is_prequantized(config) else None

    def file(self, name: str) -> Path | None:
        """One of the small files beside the weights: an adapter's own, or that of its base."""
        own = None if self.adapter is None else self.adapter.file(name)
        return own or self.base_file(name)

    def base_file(self, name: str) -> Path | None:
        """One beside the weights."""
        return find_file(self.base, name, self.revision.get("revision"))

    def weights_revision(self) -> str:
        """The hub's commit or a digest; of an adapter that of its base, a plus, and its own."""
        if self.gguf is not None:
            return digest_of(self.gguf.parts)
        config = find_file(self.base, "config.json", **self.revision)
        base = revision_of(self.base, None if config is None else commit_of(config))
        return base if self.adapter is None else f"{base}+{self.adapter.weights_revision()}"

    def config(self, field: str) -> PretrainedConfig:
        """The text model's configuration. Raises `SetupError` that names `field`, the setting."""
        if self.gguf is not None:
            return config_of(self.gguf)
        try:
            whole = AutoConfig.from_pretrained(self.base, **self.revision)
            config: PretrainedConfig = whole.get_text_config()
        except (OSError, ValueError, AttributeError, TypeError) as error:  # the last two of entries that are no config
            raise SetupError(f"{field}: {self.base} has no usable config.json: {first_line(error)}") from error
        saved = getattr(whole, "quantization_config", None)
        if saved is not None and config is not whole:
            config.quantization_config = saved  # it is of the whole model
        return config


def source_of(path: str) -> Source:
    """Raises `SetupError` for a folder of several models, and for an adapter that cannot be served or whose base is not at hand."""
    local = Path(path)
    if local.is_file():
        return Source(path, _opened(local))
    if not local.is_dir():
        return _hub_source(path)
    if (local / ADAPTER_CONFIG).is_file():
        return _adapted(path, local / ADAPTER_CONFIG)
    if (local / "config.json").is_file():
        return Source(path)
    files = [file for file in sorted(local.glob("*.gguf")) if is_first_part(file.name)]
    if len(files) > 1:
        raise SetupError(f"{path} holds several GGUF models ({', '.join(file.name for file in files)}); name one of them")
    return Source(path, _opened(files[0])) if files else Source(path)


def _opened(file: Path) -> GGUFFile:
    return _opened_once(file, file.stat().st_mtime_ns)


@lru_cache(4)
def _opened_once(file: Path, _changed_ns: int) -> GGUFFile:
    """One for all who ask: reading a vocabulary takes a moment."""
    return GGUFFile(file)


@lru_cache(16)
def _hub_source(name: str) -> Source:
    """One for all who ask: each question to the hub takes a while."""
    hub = hub_name(name)
    if hub is not None and hub.file is not None:
        return Source(name, _opened(fetch_gguf(name, hub)))
    place, revision = place_of(name)
    file = find_file(place, ADAPTER_CONFIG, revision)
    return Source(name) if file is None else _adapted(name, file)


def _adapted(path: str, file: Path) -> Source:
    """The source of an adapter; `file` is its adapter_config.json."""
    if any(found for pattern in ("model*.safetensors", "pytorch_model*.bin") for found in file.parent.glob(pattern)):
        raise SetupError(f"{path} holds both a model and an adapter; move one of them, with its config, to a folder of its own")
    adapter = read_adapter(path, file)
    if source_of(adapter.base).gguf is not None:
        raise SetupError(
            f"{path}: its base {adapter.base} is a GGUF file, whose weights keep their own precision; an adapter is merged into float "
            f"weights: write the folder or hub name of the original model to base_model_name_or_path in its {ADAPTER_CONFIG}"
        )
    return Source(path, adapter=adapter)

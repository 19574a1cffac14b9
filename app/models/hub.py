"""Files of a model that is a folder or a repository of the hub: which there are, and which serving it takes."""

import json
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, file_download
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from transformers.utils.hub import cached_file, extract_commit_hash

from app.errors import SetupError
from app.models.download import RemoteFile, download, out_of_reach, refused
from app.models.names import HubName, choose_gguf, hub_name, part_names

TIMEOUT_S = 10
SMALL_FILES = (".json", ".jinja", "tokenizer.model", "merges.txt", "vocab.txt")


def find_file(place: str, name: str, revision: str | None = None) -> Path | None:
    """The file `name` of a folder or a hub repository, from the hub's cache or downloaded into it. None if it is in neither and cannot be
    downloaded.
    """
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        file = cached_file(place, name, revision=revision, **quiet)
    except (OSError, ValueError):  # no such repository, no name that one could have
        return None
    return Path(file) if file else None


def commit_of(file: Path) -> str | None:
    """The commit to which a file of the hub's cache belongs; None for any other file."""
    return extract_commit_hash(str(file), None)


def place_of(path: str) -> tuple[str, str | None]:
    """The folder that a path is, or the repository of the hub and the revision there that it names."""
    hub = None if Path(path).exists() else hub_name(path)
    return (path, None) if hub is None else (hub.repository, hub.revision)


def fetch_gguf(path: str, hub: HubName) -> Path:
    """A GGUF file of the hub with all its parts, from the hub's cache or downloaded into it. Its `file` is a name or a quantization.

    Raises `SetupError` that begins with `path`, the setting, and says why there is none.
    """
    wanted = hub.file or ""
    listed = None
    if wanted.endswith(".gguf"):
        name = wanted
    else:
        listed = _files(path, hub, wanted)
        name = choose_gguf(path, wanted, [file.name for file in listed])
    known = {file.name: file for file in listed or ()}
    return download(path, hub, [known.get(part, RemoteFile(part)) for part in part_names(name)])[0]


def fetch_weights(path: str, repository: str, revision: str | None) -> None:
    """Download what is not yet in the hub's cache of a repository's weights. Does nothing for a folder. Raises `SetupError`."""
    if Path(repository).exists():
        return
    hub = HubName(repository, None, revision)
    try:
        files = _listed(hub)
    except (OSError, HTTPError, ValueError) as error:
        if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
            raise SetupError(refused(path, hub, error)) from error
        _check_cached(path, hub)
        return
    download(path, hub, weights_among(files))


def fetch_all(path: str, hub: HubName) -> list[Path]:
    """Everything that serving a repository takes: weights, config, tokenizer. Raises `SetupError`."""
    files = _files(path, hub, "")
    small = [file for file in files if file.name.endswith(SMALL_FILES) and "/" not in file.name]
    return download(path, hub, [*small, *[file for file in weights_among(files) if file not in small]])


def weights_among(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """The safetensors of a repository with their index, or without any its .bin files; an adapter's are among them."""
    top = [file for file in files if "/" not in file.name]
    for suffixes in ((".safetensors", ".safetensors.index.json"), (".bin", ".bin.index.json")):
        found = [file for file in top if file.name.endswith(suffixes) and file.name.startswith(("model", "pytorch_model", "adapter_model"))]
        if found:
            return found
    return []


def _check_cached(path: str, hub: HubName) -> None:
    """Raises `SetupError` that names the weights which neither the cache has nor the hub can give now."""
    names = _cached_names(hub, "*")
    indices = [name for name in names if name.endswith(".index.json")]
    missing = []
    for index in indices:
        file = find_file(hub.repository, index, hub.revision)
        parts = set(json.loads(file.read_text())["weight_map"].values()) if file is not None else set()
        missing += sorted(parts - set(names))
    if not indices and not any(name.endswith((".safetensors", ".bin")) for name in names):
        missing = ["its weights"]
    if missing:
        raise SetupError(out_of_reach(path, f"{', '.join(missing[:4])} of {hub.repository} {'is' if len(missing) == 1 else 'are'}", path))


def _listed(hub: HubName) -> list[RemoteFile]:
    """The repository's files. list_repo_files would try for 23 s without a network."""
    siblings = huggingface_hub.model_info(hub.repository, revision=hub.revision, timeout=TIMEOUT_S, files_metadata=True).siblings
    return [RemoteFile(each.rfilename, each.size, each.blob_id, each.lfs.sha256 if each.lfs else None) for each in siblings or []]


def _files(path: str, hub: HubName, wanted: str) -> list[RemoteFile]:
    """The repository's files; without a way to the hub, those in its cache."""
    try:
        return _listed(hub)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise SetupError(refused(path, hub, error)) from error
    except (OSError, HTTPError, ValueError) as error:
        cached = _cached_names(hub, "*.gguf" if wanted else "*")
        if not cached:
            what = f"a GGUF file of {hub.repository} is" if wanted else f"{hub.repository} is"
            raise SetupError(out_of_reach(path, what, path)) from error
        return [RemoteFile(name) for name in cached]


def _cached_names(hub: HubName, pattern: str) -> list[str]:
    folder = Path(constants.HF_HUB_CACHE) / file_download.repo_folder_name(repo_id=hub.repository, repo_type="model")
    ref = folder / "refs" / (hub.revision or "main")
    snapshot = folder / "snapshots" / (ref.read_text().strip() if ref.is_file() else hub.revision or "main")
    return [str(file.relative_to(snapshot)) for file in sorted(snapshot.rglob(pattern)) if file.is_file()]

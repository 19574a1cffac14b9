"""Files of a model that is a folder or a repository of the hub."""

from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, file_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers.utils.hub import cached_file, extract_commit_hash

from app.errors import SetupError, first_line
from app.models.names import choose_gguf, part_names

TIMEOUT_S = 10


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


def fetch_gguf(path: str, repository: str, wanted: str) -> Path:
    """A GGUF file of the hub with all its parts, from the hub's cache or downloaded into it. `wanted` is a file's name or its quantization.

    Raises `SetupError` that begins with `path`, the setting, and says why there is none.
    """
    name = wanted if wanted.endswith(".gguf") else choose_gguf(path, wanted, _file_names(path, repository, wanted))
    return [_download(path, repository, part) for part in part_names(name)][0]


def _download(path: str, repository: str, name: str) -> Path:
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name))
    except LocalEntryNotFoundError as error:
        raise SetupError(_out_of_reach(path, f"{name} of {repository} is", f"{repository} {name}")) from error
    except EntryNotFoundError as error:
        raise SetupError(f"{path}: the hub's {repository} has no file {name}") from error
    except (OSError, HTTPError, ValueError) as error:
        raise SetupError(_refused(path, repository, error)) from error


def _file_names(path: str, repository: str, wanted: str) -> list[str]:
    """Names of the repository's files; without a way to the hub, of those in its cache."""
    try:
        files = huggingface_hub.model_info(repository, timeout=TIMEOUT_S).siblings  # list_repo_files would try for 23 s without a network
        return [file.rfilename for file in files or []]
    except RepositoryNotFoundError as error:
        raise SetupError(_refused(path, repository, error)) from error
    except (OSError, HTTPError, ValueError) as error:
        cached = _cached_names(repository)
        if not cached:
            raise SetupError(_out_of_reach(path, f"a GGUF file of {repository} is", f"{repository} --include '*{wanted}*'")) from error
        return cached


def _cached_names(repository: str) -> list[str]:
    folder = Path(constants.HF_HUB_CACHE) / file_download.repo_folder_name(repo_id=repository, repo_type="model")
    ref = folder / "refs" / "main"
    if not ref.is_file():
        return []
    snapshot = folder / "snapshots" / ref.read_text().strip()
    return [str(file.relative_to(snapshot)) for file in snapshot.rglob("*.gguf")]


def _out_of_reach(path: str, what: str, files: str) -> str:
    offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
    return f"{path}: {what} not in the hub's cache ({constants.HF_HUB_CACHE}), and {offline}. Where it can be: hf download {files}"


def _refused(path: str, repository: str, error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return f"{path}: {repository} has terms to be accepted: do so on its page, and set HF_TOKEN to a token of the same account"
    if isinstance(error, RepositoryNotFoundError):
        return f"{path}: the hub has no {repository}, or it is private: then set HF_TOKEN to a token that may read it"
    return f"{path}: it cannot be downloaded: {first_line(error)}"

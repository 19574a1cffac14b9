"""Downloads files into the hub's cache: with their progress, resumed where a download broke off, and checked against the hub's hashes.

huggingface_hub fetches and keeps them; there is no store of our own.
"""

import errno
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

from app.errors import SetupError, first_line
from app.models.names import HubName
from app.models.progress import Transfer
from app.models.resume import fetch_blob

READ_BYTES = 1 << 20
PULL = "python -m app.models pull"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the hub lists it. Small ones have the hash of git, large ones SHA-256."""

    name: str
    size: int | None = None
    git_hash: str | None = None
    sha256: str | None = None


def download(path: str, hub: HubName, files: Sequence[RemoteFile]) -> list[Path]:
    """The files in the hub's cache, those that are missing there downloaded. Raises `SetupError` that begins with `path`, the setting."""
    missing = [file for file in files if not _is_cached(hub, file.name)]
    size = sum(file.size or 0 for file in missing)
    if not missing or constants.HF_HUB_OFFLINE:
        return [_fetch(path, hub, file, None) for file in files]
    _check_disk(path, size)
    transfer = Transfer("downloading", f"{len(missing)} files of {hub.repository}", size)
    fetched = []
    for file in files:
        fetched.append(_fetch(path, hub, file, transfer))
        if file in missing:
            _check_hash(path, hub, file, fetched[-1])
    transfer.finish()
    return fetched


def _is_cached(hub: HubName, name: str) -> bool:
    return isinstance(huggingface_hub.try_to_load_from_cache(hub.repository, name, revision=hub.revision), str)


def _fetch(path: str, hub: HubName, file: RemoteFile, transfer: Transfer | None) -> Path:
    bar: Any = None if transfer is None else type("Bar", (_Bar,), {"transfer": transfer})
    try:
        if bar is not None and not _is_cached(hub, file.name):
            fetch_blob(hub, file.name, bar)
        return Path(huggingface_hub.hf_hub_download(hub.repository, file.name, revision=hub.revision, tqdm_class=bar))
    except LocalEntryNotFoundError as error:
        raise SetupError(out_of_reach(path, f"{file.name} of {hub.repository} is", path)) from error
    except EntryNotFoundError as error:
        raise SetupError(f"{path}: the hub's {hub.repository} has no file {file.name}") from error
    except (OSError, HTTPError, ValueError) as error:
        raise SetupError(refused(path, hub, error)) from error


class _Bar(tqdm):
    """Tells a transfer of each block instead of drawing. What an earlier attempt left counts at once."""

    transfer: Transfer

    def __init__(self, *args: Any, initial: int = 0, **options: Any) -> None:
        options.pop("name", None)
        super().__init__(*args, **{**options, "disable": True})
        self.transfer.advance(initial)

    def update(self, n: float | None = 1) -> bool | None:
        self.transfer.advance(int(n or 0))
        return None


def _check_disk(path: str, size: int) -> None:
    """Raises `SetupError` with the numbers if the missing files do not fit."""
    folder = Path(constants.HF_HUB_CACHE)
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise SetupError(
            f"{path}: {size / 1e6:,.1f} MB are to be downloaded, but the disk of {folder} has {free / 1e6:,.1f} MB free: make room, or "
            "set HF_HOME to a folder on another disk"
        )


def _check_hash(path: str, hub: HubName, file: RemoteFile, local: Path) -> None:
    """Raises `SetupError` if the file is not what the hub lists; it is removed from the cache, so that the next try fetches it anew."""
    if file.sha256 is not None:
        digest, expected = hashlib.sha256(), file.sha256
    elif file.git_hash is not None:
        digest, expected = hashlib.sha1(b"blob %d\0" % local.stat().st_size, usedforsecurity=False), file.git_hash
    else:
        return
    with local.open("rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    if digest.hexdigest() != expected:
        local.resolve().unlink(missing_ok=True)
        local.unlink(missing_ok=True)
        raise SetupError(
            f"{path}: {file.name} of {hub.repository} arrived damaged: its hash is {digest.hexdigest()[:12]}..., the hub lists "
            f"{expected[:12]}...; it was removed, start again to download it anew"
        )


def out_of_reach(path: str, what: str, name: str) -> str:
    offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
    return f"{path}: {what} not in the hub's cache ({constants.HF_HUB_CACHE}), and {offline}. Where it can be: {PULL} {name}"


def refused(path: str, hub: HubName, error: Exception) -> str:
    repository = hub.repository
    if isinstance(error, GatedRepoError):
        return f"{path}: {repository} has terms to be accepted: do so on its page, and set HF_TOKEN to a token of the same account"
    if isinstance(error, RevisionNotFoundError):
        return f"{path}: the hub's {repository} has no revision {hub.revision}: give a branch, a tag or a commit"
    if isinstance(error, RepositoryNotFoundError):
        return f"{path}: the hub has no {repository}, or it is private: then set HF_TOKEN to a token that may read it"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{path}: the disk of {constants.HF_HUB_CACHE} is full: make room, or set HF_HOME to a folder on another disk"
    return f"{path}: it cannot be downloaded: {first_line(error)}; what has arrived is kept, start again to go on from there"

"""Fetches one file of the hub into the cache's own place for it, and keeps what arrives: the next try goes on from there, in any process.

huggingface_hub resumes a download within a process only; when one ends, it throws the unfinished file away.
"""

import contextlib
import fcntl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import HfFileMetadata, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import build_hf_headers

from app.models.names import HubName

MAX_HTTP_BYTES = 50_000_000_000  # the hub gives larger files by another protocol only


def fetch_blob(hub: HubName, name: str, bar: type[Any]) -> None:
    """Afterwards `hf_hub_download` finds the content in the cache and only has to link it. Does nothing where that cannot be done by HTTP.

    Raises what huggingface_hub raises; a hub out of reach is left to `hf_hub_download`, which knows what the cache has.
    """
    url = hf_hub_url(hub.repository, name, revision=hub.revision)
    try:
        about = get_hf_file_metadata(url)
    except HfHubHTTPError:
        raise
    except (HTTPError, OSError):
        return
    if about.etag is None or about.size is None or about.size > MAX_HTTP_BYTES:
        return
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub.repository, repo_type="model") / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    blob, part = blobs / about.etag, blobs / f"{about.etag}.part"
    with part.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # ends with the process; another one that fetches the same waits
        if blob.exists():
            return
        _append(url, about, stream, bar)
        stream.flush()
        with contextlib.suppress(FileNotFoundError):  # moved by the process that held the lock before
            part.replace(blob)


def _append(url: str, about: HfFileMetadata, stream: Any, bar: type[Any]) -> None:
    """Fetch what `stream` does not have yet."""
    headers = build_hf_headers()
    if urlsplit(about.location).netloc != urlsplit(url).netloc:  # a token is for the hub, not for where it sends us
        headers.pop("authorization", None)
    have = stream.tell()
    assert about.size is not None
    if have > about.size:
        stream.truncate(0)
        have = 0
    if have < about.size:
        http_get(about.location, stream, resume_size=have, headers=headers, expected_size=about.size, tqdm_class=bar)

"""Single files of a model that is a folder or a repository of the hub."""

from pathlib import Path

from transformers.utils.hub import cached_file, extract_commit_hash


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

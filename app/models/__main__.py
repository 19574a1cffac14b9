"""`python -m app.models pull|list|rm`: models of the hub on this disk, in huggingface_hub's own cache, and copies in memory.

python -m app.models pull Qwen/Qwen3-0.6B@main
python -m app.models list
python -m app.models rm Qwen/Qwen3-0.6B
"""

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import CachedRevisionInfo, CacheNotFound, HFCacheInfo

from app.errors import SetupError
from app.models.hub import fetch_all, fetch_gguf
from app.models.names import HubName, hub_name
from app.models.staging import staged, unstage
from app.settings import prepare_environment

MB = 1e6


def main(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    try:
        lines = {"pull": _pull, "list": _list, "rm": _remove}[args.command](args)
        for line in lines:
            sys.stdout.write(f"{line}\n")
    except SetupError as error:
        sys.stderr.write(f"litmus: {error.message}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("litmus: stopped; what has arrived is kept\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.models", description="models of the hub on this disk")
    commands = parser.add_subparsers(dest="command", required=True)
    meanings = {"pull": "download what serving a model takes", "list": "show what is on this disk", "rm": "remove a model from this disk"}
    for name, meaning in meanings.items():
        command = commands.add_parser(name, help=meaning, description=meaning)
        if name != "list":
            command.add_argument("name", help="owner/name, with @revision or :file.gguf; for rm also a path with a copy in memory")
    return parser


def _named(text: str) -> HubName:
    hub = hub_name(text)
    if hub is None:
        raise SetupError(f"{text!r} is no name of the hub: write owner/name, owner/name@revision or owner/name:Q4_K_M")
    return hub


def _pull(args: argparse.Namespace) -> Iterable[str]:
    hub = _named(args.name)
    files = [fetch_gguf(args.name, hub)] if hub.file else fetch_all(args.name, hub)
    size = sum(file.stat().st_size for file in files)
    yield f"{args.name}: {len(files)} files, {size / MB:,.1f} MB, in {files[0].parent if files else '-'}"


def _cache() -> HFCacheInfo | None:
    try:
        return huggingface_hub.scan_cache_dir()
    except CacheNotFound:
        return None


def _list(args: argparse.Namespace) -> Iterable[str]:
    cache = _cache()
    models = [] if cache is None else sorted((repo for repo in cache.repos if repo.repo_type == "model"), key=lambda repo: repo.repo_id)
    for repo in models:
        for revision in sorted(repo.revisions, key=lambda each: each.commit_hash):
            refs = ", ".join(sorted(revision.refs)) or "-"
            yield f"{repo.repo_id}@{revision.commit_hash[:12]}  {revision.size_on_disk / MB:,.1f} MB  {len(revision.files)} files  {refs}"
    for copy in staged():
        yield f"{copy.name}  {copy.size / MB:,.1f} MB in memory ({copy.folder})"
    if not models:
        yield "no models of the hub are on this disk"


def _remove(args: argparse.Namespace) -> Iterable[str]:
    freed = unstage(str(Path(args.name).resolve()) if Path(args.name).exists() else args.name)
    if freed:
        yield f"{args.name}: its copy of {freed / MB:,.1f} MB was removed from memory"
    if not Path(args.name).exists():
        yield from _remove_revisions(args.name, bool(freed))


def _remove_revisions(name: str, is_enough: bool) -> Iterable[str]:
    """Raises `SetupError` if there are none, unless something else was removed."""
    hub, cache = _named(name), _cache()
    repos = [] if cache is None else [repo for repo in cache.repos if repo.repo_type == "model" and repo.repo_id == hub.repository]
    chosen = [revision for repo in repos for revision in repo.revisions if _is_meant(revision, hub.revision)]
    if not chosen and not is_enough:
        raise SetupError(f"{name} is not on this disk; `python -m app.models list` shows what is")
    if chosen and cache is not None:
        strategy = cache.delete_revisions(*[revision.commit_hash for revision in chosen])
        strategy.execute()
        yield f"{name}: {len(chosen)} revisions removed, {strategy.expected_freed_size / MB:,.1f} MB freed"


def _is_meant(revision: CachedRevisionInfo, wanted: str | None) -> bool:
    return wanted is None or wanted in revision.refs or revision.commit_hash.startswith(wanted)


if __name__ == "__main__":
    prepare_environment()
    sys.exit(main(sys.argv[1:]))

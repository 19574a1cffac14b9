"""Where the processes of workers come from."""

from pathlib import Path

import psutil
import pytest
from serving import RunningServer

from serve.workers import forkserver


def test_workers_are_forked_but_where_a_gpu_is_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forkserver, "GPUS", (str(tmp_path / "gpu"),))
    assert forkserver.context().get_start_method() == "forkserver"
    (tmp_path / "gpu").touch()
    assert forkserver.context().get_start_method() == "spawn"


def test_a_worker_shares_what_the_fork_server_imported(api: RunningServer) -> None:
    """Most of what the process has in memory, and no thread of the other process."""
    worker = api.worker()
    parent = psutil.Process(worker.ppid())
    assert parent.ppid() == api.process.pid and parent.num_threads() == 1
    memory = worker.memory_full_info()
    assert memory.uss < memory.rss / 2
    files = {Path(part.path).parts for part in worker.memory_maps() if part.path.startswith("/")}
    assert any("torch" in parts for parts in files) and not any("scipy" in parts for parts in files)

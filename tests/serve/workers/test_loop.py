"""A worker before it serves."""

from types import SimpleNamespace

import pytest

from serve.workers import loop


def test_a_worker_whose_main_process_went_before_it_began_to_load_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("multiprocessing.parent_process", lambda: SimpleNamespace(pid=7))
    monkeypatch.setattr(loop.os, "getppid", lambda: 1)
    monkeypatch.setattr(loop.os, "_exit", leave)
    with pytest.raises(SystemExit):
        loop._end_with_parent()

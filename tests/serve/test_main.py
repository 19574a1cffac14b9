"""What is refused before anything starts, and how forked processes react to the stop signals, whose handler they inherit."""

import signal
import subprocess
import sys

import pytest
from serving import ENVIRONMENT, ROOT

from serve import stopping
from serve.__main__ import _interrupt, main

FORKED = """
import multiprocessing, signal, time
from functools import partial
from serve.__main__ import _interrupt
signal.signal(signal.SIGTERM, partial(_interrupt, None))
fork = multiprocessing.get_context("fork")
running = fork.Semaphore(0)
children = [fork.Process(target=lambda: running.release() or time.sleep(300), name=name) for name in ("LitServer-0", "SyncManager-1")]
for child in children:
    child.start()
    running.acquire()
for child in children:
    child.terminate()
children[0].join(100)
children[1].join(0.2)
print([child.exitcode for child in children])
children[1].kill()
"""


def test_another_system_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "runs on Linux, and this is darwin: use a container" in capsys.readouterr().err


def test_a_stop_before_uvicorn_listens_to_signals_ends_the_api_process_and_not_the_manager() -> None:
    """Otherwise the main process would wait for the API process as long as for answers in flight."""
    result = subprocess.run([sys.executable, "-c", FORKED], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert result.stdout.strip() == "[0, None]", result.stderr


def test_the_first_signal_lets_the_server_finish_and_the_next_one_cuts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {each: signal.getsignal(each) for each in stopping.STOP_SIGNALS}
    cuts: list[bool] = []
    try:
        with pytest.raises(KeyboardInterrupt):
            _interrupt(lambda: cuts.append(True), signal.SIGTERM, None)
        assert not cuts
        monkeypatch.setattr(stopping, "SAME_STOP_S", -1.0)
        signal.raise_signal(signal.SIGINT)
        assert cuts == [True]
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)

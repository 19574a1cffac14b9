"""The systemd unit: systemd itself reads it, and it leaves the server time to drain."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import Settings
from serve.processes import SHUTDOWN_MARGIN_S

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy/litmus.service"
ANALYZE = shutil.which("systemd-analyze")


def setting(name: str) -> str:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.M)[-1]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The unit with the paths of this machine, as systemd looks whether the program exists."""
    path = tmp_path / "litmus.service"
    path.write_text(UNIT.read_text().replace("/opt/litmus/.venv/bin/python", sys.executable).replace("/opt/litmus", str(ROOT)))
    return path


@pytest.mark.skipif(ANALYZE is None, reason="no systemd-analyze on this machine")
def test_systemd_understands_every_line(here: Path) -> None:
    done = subprocess.run([str(ANALYZE), "verify", "--man=no", here], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.skipif(ANALYZE is None, reason="no systemd-analyze on this machine")
def test_systemd_calls_it_well_guarded(here: Path) -> None:
    """The threshold is ten times the level of exposure that systemd computes, from 0 (closed) to 10."""
    done = subprocess.run([str(ANALYZE), "security", "--offline=true", "--threshold=20", here], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-200:]


def test_a_stop_reaches_the_main_process_alone_and_waits_for_the_drain() -> None:
    assert (setting("KillMode"), setting("KillSignal")) == ("mixed", "SIGTERM")
    assert int(setting("TimeoutStopSec")) > Settings(_env_file=None).server.drain_s + SHUTDOWN_MARGIN_S  # type: ignore[call-arg]


def test_a_wrong_setting_is_not_tried_again_and_again() -> None:
    assert (setting("Restart"), setting("RestartPreventExitStatus")) == ("on-failure", "2")
    assert "sys.exit(2)" in (ROOT / "serve/__main__.py").read_text()


def test_the_kernel_may_end_a_worker_without_ending_the_server() -> None:
    assert setting("OOMPolicy") == "continue"


def test_what_cannot_be_made_again_is_no_cache() -> None:
    folder = re.findall(r"LITMUS_JOBS__FOLDER=(\S+)", UNIT.read_text())
    assert folder == [f"/var/lib/{setting('StateDirectory')}/jobs"] and setting("StateDirectoryMode") == "0700"
    assert f"`{folder[0]}`" in (ROOT / "docs/operations.md").read_text()

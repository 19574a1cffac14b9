"""Servers are started on a port of their own, waited for, and leave nothing behind."""

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from tinymodels import ROOT

from app.settings import read
from loadtest.peers import servers
from loadtest.peers.servers import PORT_PLACEHOLDER, Peer, PeerAbsent, PeerFailed, running

FAKE_SERVER = Path(__file__).parents[2] / "fake_server.py"


def test_a_server_is_ready_and_then_gone(tmp_path):
    before = set(psutil.Process().children())
    with running(Peer("fake", (sys.executable, str(FAKE_SERVER), PORT_PLACEHOLDER), "/ready"), tmp_path) as server:
        assert httpx.get(f"{server.url}/ready").json() == {"status": "ready"}
        (process,) = set(psutil.Process().children()) - before
    assert not process.is_running()
    assert (tmp_path / "engine-fake.log").exists()


def test_what_a_server_started_ends_with_it(tmp_path):
    code = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '600']); open(sys.argv[2], 'w').write(str(child.pid)); "
        "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind='127.0.0.1')"
    )
    told = tmp_path / "pid"
    with running(Peer("parent", (sys.executable, "-c", code, PORT_PLACEHOLDER, str(told)), "/"), tmp_path):
        child = psutil.Process(int(told.read_text()))
    psutil.wait_procs([child], timeout=60)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_server_ends_with_a_program_that_is_told_to_stop(tmp_path):
    """Ctrl-C or SIGTERM."""
    program = (
        "import sys, time; from pathlib import Path; from loadtest.peers.servers import PORT_PLACEHOLDER, Peer, running\n"
        "with running(Peer('fake', (sys.executable, sys.argv[1], PORT_PLACEHOLDER), '/ready'), Path(sys.argv[2])):\n"
        "    print('up', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(FAKE_SERVER), str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        (server,) = psutil.Process(process.pid).children()
        process.terminate()
    assert process.returncode == -signal.SIGINT and not server.is_running()


def test_a_server_that_does_not_start_says_why(tmp_path):
    command = (sys.executable, "-c", "import sys; print('wait'); sys.exit('no such model')")
    with (
        pytest.raises(PeerFailed, match=r"odd ended with code 1: no such model \(.*engine-odd.log\)"),
        running(Peer("odd", command, "/"), tmp_path),
    ):
        pass


def test_commands():
    litmus = servers.litmus_peer("folder", "nf4", "cpu", 32).command
    settings = read(["8000" if word == PORT_PLACEHOLDER else word for word in litmus[3:]])
    assert litmus[1:3] == ("-m", "serve")
    assert (settings.model.path, settings.model.quantize, settings.model.slots, settings.ui.enabled) == ("folder", "nf4", 32, False)
    assert {"serve", "folder", "--continuous-batching", PORT_PLACEHOLDER} <= set(servers.transformers_peer("folder", "cpu").command)
    llama = servers.llama_peer(Path("/opt/bin/llama-server"), Path("a-q4_0.gguf"), 32, 512)
    assert llama.name == "llama-a-q4_0" and llama.command[:2] == ("env", "LD_LIBRARY_PATH=/opt/bin")
    assert llama.command[llama.command.index("-c") + 1] == "16384" and llama.extra_body == {"ignore_eos": True}


def test_llama_server_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PeerAbsent, match="no llama-server on PATH"):
        servers.find_llama_server(None)
    with pytest.raises(PeerAbsent, match="is no file"):
        servers.find_llama_server(tmp_path / "llama-server")
    assert servers.llama_server_version(None) is None
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "llama-server").write_text('#!/bin/sh\necho "version: $1 $LD_LIBRARY_PATH" >&2\n')
    (tmp_path / "llama-server").chmod(0o755)
    found = (tmp_path / "llama-server").resolve()
    assert servers.find_llama_server(None) == found and servers.llama_server_version(None) == f"version: --version {found.parent}"

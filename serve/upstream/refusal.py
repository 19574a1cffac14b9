"""What is refused by name before anything is sent: routes that an upstream lacks, and fields that its kind would silently drop.

Only kinds whose behaviour is known are listed. Another Litmus refuses by itself what it cannot do.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from app.errors import InvalidRequest
from serve.upstream.probe import LLAMA, VLLM
from serve.upstream.upstream import Upstream
from serve.upstream.wires import OURS, RESPONSES, TOKENIZE

Values = tuple[object, ...]
# Fields by the values besides null that change nothing.
LLAMA_DROPS: Mapping[str, Values] = MappingProxyType(
    {
        "allowed_token_ids": (),
        "bad_words": ([],),
        "best_of": (1,),
        "echo": (False,),
        "guided_choice": (),
        "guided_json": (),
        "guided_regex": (),
        "include_stop_str_in_output": (False,),
        "min_tokens": (0,),
        "pooling": ("mean",),
        "prompt_logprobs": (),
        "repetition_penalty": (1,),
        "return_token_ids": (False,),
        "stop_token_ids": ([],),
        "structured_outputs": (),
        "suffix": ("",),
        "thinking_token_budget": (-1,),
        "use_beam_search": (False,),
    }
)
VLLM_DROPS: Mapping[str, Values] = MappingProxyType(
    {
        "dry_multiplier": (0,),
        "dynatemp_range": (0,),
        "grammar": ("",),
        "json_schema": (),
        "mirostat": (0,),
        "pooling": (),
        "reasoning_budget_tokens": (-1,),
        "repeat_penalty": (1,),
        "thinking_budget_tokens": (-1,),
        "typical_p": (1,),
        "xtc_probability": (0,),
    }
)
DROPS: Mapping[str, Mapping[str, Values]] = MappingProxyType({LLAMA: LLAMA_DROPS, VLLM: VLLM_DROPS})
INSTEAD = MappingProxyType({(LLAMA, "repetition_penalty"): "repeat_penalty", (LLAMA, "thinking_token_budget"): "thinking_budget_tokens"})
# Of /v1/responses, whatever the upstream: ids of answers are made here, so that it would not find them.
STORED: Mapping[str, Values] = MappingProxyType({"previous_response_id": (), "conversation": (), "store": (False,), "background": (False,)})


def cannot(upstream: Upstream, path: str, body: Mapping[str, Any]) -> InvalidRequest | None:
    """Why the upstream cannot answer this body on the route; None if it can."""
    abilities = upstream.abilities
    if abilities is None:
        return None
    if path not in abilities.routes:
        return InvalidRequest(_no_route(path, upstream.name, abilities.kind), param="model", code="unsupported_by_upstream")
    refused: dict[str, Values] = {**DROPS.get(abilities.kind, {}), **(STORED if path == RESPONSES else {})}
    if path == TOKENIZE and abilities.kind == LLAMA and not isinstance(body.get("prompt"), str):
        message = f"the server that answers for '{upstream.name}' (llama.cpp) tokenizes texts only: give prompt, a text"
        return InvalidRequest(message, param="messages" if "messages" in body else "prompt", code="unsupported_by_upstream")
    if abilities.tools is False:
        refused["tools"] = ([],)
    for name, neutral in refused.items():
        if name in body and not _changes_nothing(body[name], neutral):
            instead = INSTEAD.get((abilities.kind, name))
            advice = f"; {instead} is its name of it" if instead else ""
            message = f"{name}: the server that answers for '{upstream.name}' ({abilities.kind}) cannot do this{advice}"
            return InvalidRequest(message, param=name, code="unsupported_parameter")
    return None


def _no_route(path: str, name: str, kind: str) -> str:
    why = "only models that are loaded by a Litmus have it" if path in OURS else f"that is {kind}, as it is started there"
    return f"{path}: the server that answers for '{name}' has no such route; {why}"


def _changes_nothing(value: object, neutral: Values) -> bool:
    return value is None or any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral)

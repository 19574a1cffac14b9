"""Fields that this server knows and cannot serve, and their values that change nothing and are therefore accepted. Knows no route."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pydantic import BaseModel

from app.schemas import ChatRequest, CompletionRequest, EmbeddingRequest, GenerateRequest, MessagesRequest, ResponsesRequest, ScoreRequest

Values = tuple[object, ...]

# By name: OpenAI's, vLLM's, llama-server's and transformers' fields. null always changes nothing.
UNSUPPORTED: Mapping[str, Values] = MappingProxyType(
    {
        "add_generation_prompt": (True,),
        "allowed_token_ids": (),
        "audio": (),
        "background": (False,),
        "best_of": (1,),
        "cache_prompt": (True,),
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "container": (),
        "context_management": ([],),
        "continue_final_message": (False,),
        "documents": ([],),
        "dry_multiplier": (0,),
        "dynatemp_range": (0,),
        "ebnf": (),
        "echo": (False,),
        "embd_normalize": (2,),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "grammar": ("",),
        "guided_choice": (),
        "guided_grammar": (),
        "guided_json": (),
        "guided_regex": (),
        "include": ([],),
        "include_stop_str_in_output": (False,),
        "json_schema": (),
        "length_penalty": (1,),
        "logits_processors": ([],),
        "lora": ([],),
        "max_new_tokens": (),
        "mcp_servers": ([],),
        "metadata": ({},),
        "mirostat": (0,),
        "mm_processor_kwargs": ({},),
        "modalities": (["text"],),
        "moderation": (),
        "n_indent": (0,),
        "n_predict": (),
        "n_probs": (0,),
        "no_repeat_ngram_size": (0,),
        "normalize": (True,),
        "num_return_sequences": (1,),
        "parallel_tool_calls": (True, False),
        "post_sampling_probs": (False,),
        "prompt_cache_options": (),
        "prompt_embeds": (),
        "prompt_logprobs": (),
        "reasoning": ({}, {"effort": "none"}),
        "reasoning_budget_tokens": (-1,),
        "reasoning_effort": ("none",),
        "regex": (),
        "repeat_penalty": (1,),
        "response_format": ({"type": "text"},),
        "return_token_ids": (False,),
        "return_tokens_as_token_ids": (False,),
        "samplers": (),
        "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True,),
        "store": (False,),
        "structured_outputs": (),
        "suffix": ("",),
        "t_max_predict_ms": (0, -1),
        "text": ({}, {"format": {"type": "text"}}),
        "tfs_z": (1,),
        "thinking_budget_tokens": (-1,),
        "thinking_token_budget": (-1,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "top_a": (0,),
        "top_n_sigma": (0, -1),
        "truncate_prompt_tokens": (),
        "truncation": ("disabled",),
        "typical_p": (1,),
        "use_beam_search": (False,),
        "user": (),
        "verbosity": ("medium",),
        "vllm_xargs": ({},),
        "web_search_options": (),
        "xtc_probability": (0,),
    }
)


# One meaning by the names that several APIs have for it. A name of this server may be the place in a field.
SAME = (
    ("max_tokens", "max_output_tokens", "max_completion_tokens", "max_new_tokens", "n_predict"),
    ("response_format", "text.format", "output_config.format", "guided_json", "json_schema", "structured_outputs"),
    ("structured_outputs", "regex", "ebnf"),
    ("messages", "input", "prompt"),
    ("instructions", "system"),
    ("stop", "stop_sequences", "end_sequence"),
    ("logprobs", "top_logprobs", "n_probs"),
    ("n", "num_return_sequences"),
    ("repetition_penalty", "repeat_penalty"),
    ("thinking_token_budget", "reasoning", "thinking", "thinking_budget_tokens", "reasoning_budget_tokens", "reasoning_effort"),
)
# Known fields that a route which does not have them leaves out and names in the header, as it does with unknown ones.
LEFT_OUT = frozenset({"add_special_tokens", "store", "verbosity"})
ROUTES: Mapping[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/messages": MessagesRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/score": ScoreRequest,
    "/generate": GenerateRequest,
}
KNOWN = frozenset(UNSUPPORTED).union(*(body.model_fields for body in ROUTES.values()))


def is_unsupported(path: Sequence[object]) -> bool:
    """Whether a field that its body does not have is one that this server knows: of another route, or of no route at all."""
    return len(path) == 1 and path[0] in KNOWN


def is_refused(path: Sequence[object]) -> bool:
    """Whether a field that its body does not have is known and not left out."""
    return is_unsupported(path) and path[0] not in LEFT_OUT


def instead_of(name: str, route: str) -> str | None:
    """What the body of a route has for a field that it does not have."""
    body = ROUTES.get(route.rstrip("/"))
    fields = () if body in {None, EmbeddingRequest, ScoreRequest} else body.model_fields  # those write no text
    others = (other for names in SAME if name in names for other in names if other != name)
    return next((other for other in others if other.split(".")[0] in fields), None)


def changes_nothing(path: Sequence[object], value: object) -> bool:
    """Whether a field that is not served asks, with this value, for what is so anyway."""
    values = UNSUPPORTED.get(str(path[0]), ()) if len(path) == 1 else ()
    return value is None or any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in values)

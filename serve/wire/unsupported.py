"""Fields that this server knows and cannot serve, and their values that change nothing and are therefore accepted. Knows no route."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

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
        "context_management": ([],),
        "container": (),
        "continue_final_message": (False,),
        "documents": ([],),
        "dry_multiplier": (0,),
        "dynatemp_range": (0,),
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
        "mcp_servers": ([],),
        "metadata": ({},),
        "mirostat": (0,),
        "mm_processor_kwargs": ({},),
        "modalities": (["text"],),
        "moderation": (),
        "no_repeat_ngram_size": (0,),
        "normalize": (True,),
        "num_return_sequences": (1,),
        "parallel_tool_calls": (True, False),
        "prompt_cache_options": (),
        "prompt_logprobs": (),
        "reasoning": ({}, {"effort": "none"}),
        "reasoning_budget_tokens": (-1,),
        "reasoning_effort": ("none",),
        "repeat_penalty": (1,),
        "response_format": ({"type": "text"},),
        "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True,),
        "store": (False,),
        "structured_outputs": (),
        "suffix": ("",),
        "text": ({}, {"format": {"type": "text"}}),
        "tfs_z": (1,),
        "thinking_budget_tokens": (-1,),
        "thinking_token_budget": (-1,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "truncate_prompt_tokens": (),
        "truncation": ("disabled",),
        "typical_p": (1,),
        "use_beam_search": (False,),
        "user": (),
        "verbosity": ("medium",),
        "web_search_options": (),
        "xtc_probability": (0,),
    }
)


BODIES = (ChatRequest, CompletionRequest, EmbeddingRequest, GenerateRequest, MessagesRequest, ResponsesRequest, ScoreRequest)
KNOWN = frozenset(UNSUPPORTED).union(*(body.model_fields for body in BODIES))


def is_unsupported(path: Sequence[object]) -> bool:
    """Whether a field that its body does not have is one that this server knows: of another route, or of no route at all."""
    return len(path) == 1 and path[0] in KNOWN


def changes_nothing(path: Sequence[object], value: object) -> bool:
    """Whether a field that is not served asks, with this value, for what is so anyway."""
    values = UNSUPPORTED.get(str(path[0]), ()) if len(path) == 1 else ()
    return value is None or any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in values)

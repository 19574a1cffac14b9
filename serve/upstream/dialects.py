"""What upstreams read and write in another form than this server, as far as it is known. Knows no connection.

llama-server has its own /tokenize and /detokenize. vLLM drops the schema that llama-server takes beside `json_object`.
"""

from collections.abc import Mapping
from typing import Any

from app.errors import UpstreamFailed
from serve.upstream.answer import dump, load
from serve.upstream.probe import LLAMA, VLLM, Abilities
from serve.upstream.wires import CHAT, DETOKENIZE, TOKENIZE


def own_form(abilities: Abilities, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body as the upstream reads it."""
    if abilities.kind == VLLM and path == CHAT:
        return _with_named_schema(body)
    if abilities.kind != LLAMA or path not in {TOKENIZE, DETOKENIZE}:
        return body
    if path == DETOKENIZE:
        return {"tokens": body.get("tokens")}
    special = body.get("add_special_tokens") is not False
    return {"content": body.get("prompt"), "add_special": special, "with_pieces": body.get("return_token_strs") is True}


def _with_named_schema(body: Mapping[str, Any]) -> Mapping[str, Any]:
    form = body.get("response_format")
    if not isinstance(form, dict) or form.get("type") != "json_object" or form.get("schema") is None:
        return body
    return {**body, "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": form["schema"]}}}


def our_form(abilities: Abilities, path: str, content: bytes) -> bytes:
    """The upstream's answer as clients read it here."""
    if abilities.kind != LLAMA or path not in {TOKENIZE, DETOKENIZE}:
        return content
    answer = load(content)
    if path == DETOKENIZE:
        return dump({"prompt": answer.get("content")})
    tokens = answer.get("tokens")
    if not isinstance(tokens, list):
        raise UpstreamFailed("the model's server sent no tokens")
    ids = [token["id"] if isinstance(token, dict) else token for token in tokens]
    pieces = [_text(token["piece"]) for token in tokens if isinstance(token, dict)]
    return dump({"count": len(ids), "max_model_len": abilities.context, "tokens": ids, "token_strs": pieces or None})


def _text(piece: Any) -> str:
    """A piece that is a part of a character comes as its bytes."""
    return bytes(piece).decode(errors="replace") if isinstance(piece, list) else str(piece)

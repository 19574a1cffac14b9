"""What a GGUF file says beside its weights: its vocabulary as a fast tokenizer, end tokens, its own sampling parameters.

transformers builds the tokenizer. It splits a text as GPT-2 does where it does not know the file's pre-tokenizer; here that is one of
ours, or the file is refused, as every text would be tokenized a little wrong.
"""

import json
from importlib import import_module
from typing import Any

import transformers
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from app.errors import SetupError, UnsupportedModel, first_line
from app.models.gguf import GGUFFile

# Values of tokenizer.ggml.pre, as llama.cpp names the models' own ways to split a text.
LIKE_GPT2 = frozenset("default gpt-2 phi-2 jina-es jina-de mpt olmo roberta-bpe exaone4 jais trillion granite-docling".split())
DIGITS_FIRST = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
SAME_AS = {  # other names of splits that transformers knows
    "glm4": "llama-bpe",
    "chatglm-bpe": "llama-bpe",
    "stablelm2": "qwen2",
    "hunyuan": "qwen2",
    "solar-open": "qwen2",
    "grok-2": "qwen2",
}
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
SPLITS = {  # patterns that split a text one after the other, as the models' own tokenizers do
    "seed-coder": (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
    "deepseek-v3": _DEEPSEEK3,
    "hunyuan-dense": _DEEPSEEK3,
}
BOS_FIRST = frozenset("llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano tekken".split())
WHOLE_WORDS = BOS_FIRST | {"glm4"}  # a word of the vocabulary is one token, whatever the merges would make of it
SPACE = "▁"  # in a vocabulary of sentencepiece
CONTROL, USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type
PHI3_KEEPS = frozenset({"<unk>", "<s>", "<|endoftext|>"})  # the spaces after them; its other special tokens take in those that follow
# Control tokens that end an answer in some family of models, whatever the file names as its eos.
END_NAMES = frozenset("<|im_end|> <|eot_id|> <|end|> <|eom_id|> <end_of_turn> <|end_of_text|> </s> <eos> <|eot|> <|return|>".split())
MESSAGE_END = "<|end|>"  # of one of several messages, in an answer with channels
# transformers' names of special tokens -> those of the metadata that has their ids
SPECIAL_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
SAMPLING = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty"}


def create_tokenizer(file: GGUFFile) -> PreTrainedTokenizerFast:
    """Raises `SetupError` for a vocabulary that cannot be read, and `UnsupportedModel` for a pre-tokenizer that is not known."""
    splitter = file.metadata.get("tokenizer.ggml.pre", "default")
    byte_level = file.metadata.get("tokenizer.ggml.model") == "gpt2"
    library = _library(file)
    known = set(library.GGUF_PRE_TOKENIZER_SPLITS)
    if byte_level and splitter not in LIKE_GPT2 | DIGITS_FIRST | known | SAME_AS.keys() | SPLITS.keys():
        raise UnsupportedModel(f"{file.path.name}: its pre-tokenizer '{splitter}' is not known, so its texts would be tokenized wrong")
    vocabulary, options = describe(file)
    _check_merges(file, vocabulary)
    try:
        backend, _ = library.convert_gguf_tokenizer(file.architecture, vocabulary)
    except (ValueError, KeyError, TypeError) as error:
        raise SetupError(f"{file.path.name}: no tokenizer could be made of it: {first_line(error)}") from error
    backend = _with_own_tokens(backend, vocabulary)
    if byte_level and splitter not in LIKE_GPT2 | known:
        backend.pre_tokenizer = _splitter(splitter, library.GGUF_PRE_TOKENIZER_SPLITS)
    if byte_level and splitter in WHOLE_WORDS:
        backend.model.ignore_merges = True
    if byte_level and splitter in BOS_FIRST:
        options.setdefault("add_bos_token", True)  # as llama.cpp does where a file says nothing
    if vocabulary.get("tokenizer_type") == "llama" and not file.architecture.startswith("gemma"):
        _keep_spaces(backend, bool(file.metadata.get("tokenizer.ggml.add_space_prefix", True)))
        if file.architecture == "phi3" or any(name in str(file.metadata.get("general.name")).lower() for name in ("phi-3", "phi3")):
            backend = _with_spaces_taken_in(backend)
    options = {name: value for name, value in options.items() if value is not None}
    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **options)
    except ValueError as error:
        raise SetupError(f"{file.path.name}: no tokenizer could be made of it: {first_line(error)}") from error
    _check_size(file, tokenizer)
    return tokenizer


def _splitter(name: str, known: dict[str, str]) -> Any:
    if name in DIGITS_FIRST:
        parts: list[Any] = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        patterns = SPLITS.get(name) or (known[SAME_AS[name]],)
        parts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
        parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return pre_tokenizers.Sequence(parts)


def _keep_spaces(backend: Tokenizer, prefix: bool) -> None:
    """Read and write spaces as sentencepiece does: `prefix` puts one before each text. transformers leaves it out before a text that begins
    with a space, and puts it before those of models that have none.
    """
    spaces = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    backend.pre_tokenizer = None
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)


def _with_spaces_taken_in(backend: Tokenizer) -> Tokenizer:
    """Special tokens with the spaces and newlines that follow, as in the tokenizer.json of Phi 3 and 3.5: a GGUF file does not say it."""
    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:
        token["rstrip"] = token["content"] not in PHI3_KEEPS
    return Tokenizer.from_str(json.dumps(content))


def describe(file: GGUFFile) -> tuple[dict[str, Any], dict[str, Any]]:
    """Vocabulary and options of the tokenizer, as transformers' `get_gguf_tokenizer` gives them, without reading the file once more.

    Raises `SetupError` if the file has no vocabulary or names a token beyond it.
    """
    mapping = _library(file).GGUF_TOKENIZER_MAPPING
    vocabulary, options = (
        {name: file.metadata[f"tokenizer.{key}"] for key, name in names.items() if f"tokenizer.{key}" in file.metadata}
        for names in (mapping["tokenizer"], mapping["tokenizer_config"])
    )
    if vocabulary.get("tokenizer_type") == "llama":
        options.setdefault("add_bos_token", True)  # as llama.cpp does where a file says nothing
    for name, key in SPECIAL_TOKENS.items():
        options[name] = _token(file, f"tokenizer.ggml.{key}")
    return vocabulary, options


def _library(file: GGUFFile) -> Any:
    """transformers' module of tokenizers in GGUF files. Raises `UnsupportedModel` where an older transformers splits texts otherwise."""
    library = import_module("transformers.integrations.gguf.gguf_tokenizer_mapping")
    if not hasattr(library, "GGUF_PRE_TOKENIZER_SPLITS"):
        raise UnsupportedModel(
            f"{file.path.name}: transformers {transformers.__version__} cannot make the tokenizer of a GGUF file; install the version "
            "that requirements.txt names, or serve a folder or hub name"
        )
    return library


def _token(file: GGUFFile, key: str) -> str | None:
    tokens, id = file.metadata.get("tokenizer.ggml.tokens"), file.metadata.get(key)
    if not isinstance(tokens, list):
        raise SetupError(f"{file.path.name}: it has no vocabulary (tokenizer.ggml.tokens)")
    if id is not None and not (isinstance(id, int) and 0 <= id < len(tokens)):
        raise SetupError(f"{file.path.name}: its metadata {key} is {id!r}, no token of its {len(tokens)}")
    return None if id is None else str(tokens[id])


def _check_merges(file: GGUFFile, vocabulary: dict[str, Any]) -> None:
    """Raises `SetupError` for merges of tokens that do not exist, for which the library raises a bare `Exception`."""
    known = {respelled for token in vocabulary["tokens"] for respelled in (token, token.replace(" ", "▁"))}  # Gemma's, of spaces
    for merge in vocabulary.get("merges", []):
        parts = merge.split(" ")
        if len(parts) != 2 or not known.issuperset((*parts, "".join(parts))):
            raise SetupError(f"{file.path.name}: its merge {merge!r} is not one of two tokens of its vocabulary to a third")


def _check_size(file: GGUFFile, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raises `SetupError` for a token that the library added to those of the file: the model has no row for it."""
    size = len(file.metadata["tokenizer.ggml.tokens"])
    for id, token in tokenizer.added_tokens_decoder.items():
        if id >= size:
            raise SetupError(f"{file.path.name}: its tokenizer would give {token.content!r} the id {id}, beyond its {size} tokens")


def _with_own_tokens(backend: Tokenizer, vocabulary: dict[str, Any]) -> Tokenizer:
    """Drop tokens beyond the file's own, such as the <|endoftext|> that transformers adds to every byte-level vocabulary, and give back
    those that it respells there, as they are not written in letters that stand for bytes: DeepSeek's <｜User｜>, or two spaces.
    """
    tokens, added = vocabulary["tokens"], backend.get_added_tokens_decoder()
    own = {id for id, token in added.items() if tokens[id : id + 1] == [token.content]}
    respelled = vocabulary["tokenizer_type"] == "gpt2" and any(backend.token_to_id(token) is None for token in tokens)
    if not respelled and len(own) == len(added):
        return backend
    content = json.loads(backend.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] in own]
    if respelled:
        content["model"]["vocab"] = {token: id for id, token in enumerate(tokens)}
        kinds = zip(range(len(tokens)), vocabulary.get("token_type") or [], strict=False)
        missing = {id: kind == CONTROL for id, kind in kinds if kind in (CONTROL, USER_DEFINED) and id not in own}
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        content["added_tokens"] += [{"id": id, "content": tokens[id], "special": special, **flags} for id, special in missing.items()]
    return Tokenizer.from_str(json.dumps(content))


def generation_values(file: GGUFFile) -> dict[str, Any]:
    """What generation_config.json says of other models: end tokens, and the file's own sampling parameters."""
    found = {name: file.metadata.get(f"general.sampling.{key}") for key, name in SAMPLING.items()}
    return {"eos_token_id": end_tokens(file), **{name: _decimal(value) for name, value in found.items() if value is not None}}


def _decimal(value: float) -> float:
    """The number that was meant: the file keeps 0.6 as the float32 nearest to it, 0.60000002384."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def end_tokens(file: GGUFFile) -> list[int]:
    """Ids of eos, of the file's other end-of-turn tokens, and of control tokens that are known to end an answer.

    In an answer with channels, as of GPT-OSS, the end of a message is not that of the answer, but a call is.
    """
    tokens, types = file.metadata["tokenizer.ggml.tokens"], file.metadata.get("tokenizer.ggml.token_type") or []
    named = [file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    has_channels = "<|channel|>" in tokens
    names = END_NAMES | {"<|call|>"} if has_channels else END_NAMES
    known = [id for id, (token, kind) in enumerate(zip(tokens, types, strict=False)) if kind == CONTROL and token in names]
    ids = sorted({int(id) for id in [*named, *known] if id is not None})
    return [id for id in ids if not (has_channels and tokens[id] == MESSAGE_END)]

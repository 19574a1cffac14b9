"""What a worker process takes before it has a model: measured in this process, after the imports and the preparations of a worker."""

import contextlib

import psutil

from app.errors import SetupError


def process_bytes(path: str, quantize: str = "none") -> int:
    """Resident bytes of this process once it has all that a worker has, but weights. Call it before anything large is built.

    Importing the model's own code, the kernel and the tokenizer's tables are a part of it, so a skeleton is built and thrown away.
    """
    import app.models.loading  # noqa: F401
    from app.engine.kernel import kernel
    from app.models.cache import slot_attention
    from app.models.heap import release_freed
    from app.models.skeleton import skeleton_of
    from app.models.source import source_of
    from app.models.weights import import_bitsandbytes

    if quantize in {"nf4", "fp4"}:
        import_bitsandbytes()
    skeleton = skeleton_of(source_of(path))
    slot_attention(skeleton)
    kernel()
    kept = _prepared(path, int(skeleton.config.get_text_config().vocab_size))
    release_freed(source_of(path))
    size = int(psutil.Process().memory_info().rss)
    del kept
    return size


def _prepared(path: str, vocabulary: int) -> list[object]:
    """The tokenizer and the grammars' tables of it; an estimate needs neither, so they may be missing."""
    from app.engine.grammar import GrammarCompiler
    from app.tokenizer import Tokenizer

    with contextlib.suppress(SetupError):
        tokenizer = Tokenizer(path)
        return [tokenizer, GrammarCompiler(tokenizer.base, vocabulary, tokenizer.end_tokens(), tokenizer.chat.closing_marks)]
    return []

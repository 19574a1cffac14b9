"""`python -m models.synthetic --out runs/llama-135m`: makes a random-weight Llama of a chosen shape, to measure speed without a hub.

Its text is noise, but it costs what a trained model of this shape costs. No answer ends early: the rows of the (tied) embedding for
special tokens and for bytes outside ASCII are zero, so another logit is always larger. Greedy decoding thus picks neither an end token
nor part of a character, which a detokenizer would have to hold back.
"""

import argparse
import itertools
import logging
import string
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.gguf import write_gguf

log = logging.getLogger(__name__)

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
SPECIAL_TOKENS = ("<s>", "</s>")
SPACE = "Ġ"  # a space in a byte-level vocabulary


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the model; `ff` is that of the feed-forward layer, `context` is in tokens."""

    hidden: int = 576
    layers: int = 30
    heads: int = 9
    kv_heads: int = 3
    ff: int = 1536
    vocabulary: int = 49152
    context: int = 4096


def merges() -> Iterator[tuple[str, str]]:
    """Yields BPE merges of two printable ASCII characters, then of three; those of spaces and lower-case letters come first."""
    common = {SPACE, *string.ascii_lowercase}
    printable = sorted(letter for letter in pre_tokenizers.ByteLevel.alphabet() if letter.isascii() or letter == SPACE)
    for length, rare in itertools.product((2, 3), (False, True)):
        candidates = (letters for letters in itertools.product(printable, repeat=length) if common.issuperset(letters) != rare)
        yield from (("".join(letters[:-1]), letters[-1]) for letters in candidates)


def create_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Creates a tokenizer with exactly `size` entries: two special tokens, 256 bytes, and merges of printable ASCII.

    Raises `ValueError` for a size that is too small or too large.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = list(itertools.islice(merges(), max(0, size - len(SPECIAL_TOKENS) - len(alphabet))))
    entries = [*SPECIAL_TOKENS, *alphabet, *(first + second for first, second in pairs)]
    if len(entries) != size:
        raise ValueError(f"a vocabulary of {size} entries cannot be made, the nearest size is {len(entries)}")
    raw = Tokenizer(models.BPE(vocab={entry: index for index, entry in enumerate(entries)}, merges=pairs))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=SPECIAL_TOKENS[0], eos_token=SPECIAL_TOKENS[1])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def silent_token_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Returns the tokens that greedy decoding must not pick: all but printable ASCII and the space."""
    return [id for entry, id in tokenizer.get_vocab().items() if entry in SPECIAL_TOKENS or not entry.replace(SPACE, "").isascii()]


def llama_config(shape: Shape, tied: bool) -> LlamaConfig:
    """`tied`: the vocabulary projection is the embedding."""
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.ff,
        max_position_embeddings=shape.context,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )


def create_model(shape: Shape, silent: list[int], seed: int) -> LlamaForCausalLM:
    """Creates a bfloat16 model whose embedding rows of the `silent` tokens are zero."""
    torch.manual_seed(seed)
    config = llama_config(shape, tied=True)
    model = LlamaForCausalLM(config).bfloat16()
    with torch.no_grad():
        model.get_input_embeddings().weight[silent] = 0
    return model.eval()


def save(shape: Shape, folder: Path, seed: int) -> Path:
    """Writes model and tokenizer as a Hugging Face folder. Raises `ValueError` for a shape that no model can have."""
    if shape.hidden % shape.heads or shape.heads % shape.kv_heads or shape.hidden // shape.heads % 2:
        raise ValueError(f"{shape.heads} heads with {shape.kv_heads} key-value heads do not divide a hidden size of {shape.hidden}")
    tokenizer = create_tokenizer(shape.vocabulary)
    model = create_model(shape, silent_token_ids(tokenizer), seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    log.info("%s: %.1f million parameters", folder, model.num_parameters() / 1e6)
    return folder


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.synthetic", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs/llama-135m"))
    for name, default in ((name, getattr(Shape(), name)) for name in Shape.__slots__):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gguf", action="store_true", help="also write an F16 GGUF file")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    args = _parse_args(argv)
    try:
        folder = save(Shape(**{name: getattr(args, name) for name in Shape.__slots__}), args.out, args.seed)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if args.gguf:
        log.info("%s", write_gguf(folder, folder.with_name(f"{folder.name}-f16.gguf")))
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main(sys.argv[1:]))

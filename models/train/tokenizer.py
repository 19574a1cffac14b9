"""The tokenizer of the bundled pair: byte-level BPE, special tokens and template of chats; and books as one row of token ids."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from models.train.corpus import Chapters

CONTEXT = 1024
BOS, END_OF_TURN = "<|endoftext|>", "<|end|>"
SPECIAL = [BOS, END_OF_TURN, "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (  # the parts about tools let programs try tool calls: neither model was trained on them
    "{{ bos_token }}{% if tools %}{{ '<|system|>You may call functions: ' + tools | tojson + '<|end|>' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'tool' %}"
    "{{ '<|user|><tool_response>' + message['content'] | trim + '</tool_response>' }}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] | trim }}{% for call in message['tool_calls'] or [] %}"
    "{{ '<tool_call>{\"name\": \"' + call['function']['name'] + '\", \"arguments\": ' }}"
    "{{ call['function']['arguments'] | tojson + '}</tool_call>' }}"
    "{% endfor %}{% endif %}"
    "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: list[str], entries: int) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=entries, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=True)
    raw.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=BOS, eos_token=END_OF_TURN, pad_token=BOS, model_max_length=CONTEXT)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def with_bos(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Makes the tokenizer begin every text with a BOS token, as every chapter did in training."""
    bos = (BOS, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[bos]
    )
    return tokenizer


def stream(tokenizer: PreTrainedTokenizerFast, chapters: Chapters) -> torch.Tensor:
    """Returns all chapters as one row of token ids, `[tokens]`; each chapter begins with a BOS token."""
    texts = ["\n".join(chapter) for chapter in chapters]
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return torch.tensor([token for item in encoded for token in (tokenizer.bos_token_id, *item.ids)], dtype=torch.long)

"""Training in miniature: a resumed run equals an uninterrupted one."""

import contextlib
import random
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.train.card import baselines
from models.train.tokenizer import stream, train_tokenizer, with_bos
from models.train.training import Phase, encode_dialogue, pretraining_batches, train_phase, tuning_batches

WORDS = "the a king fox crow said went home wood tree river old young to and of in it was".split()


def chapters() -> list[list[str]]:
    rng = random.Random(0)
    return [[" ".join(rng.choice(WORDS) for _ in range(30)) + "." for _ in range(20)] for _ in range(4)]


def create() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, use_cache=False)
    )


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    tokenizer = with_bos(train_tokenizer(["\n".join(chapter) for chapter in chapters()], 300))
    tokens = stream(tokenizer, chapters())
    phase = Phase("tiny", 104, 4, 16, 1.0, 0.3)
    batch = pretraining_batches(tokens, phase, 5)
    whole = create()
    record = train_phase(whole, phase, batch, tmp_path / "whole", False, 2) if (tmp_path / "whole").mkdir() is None else {}
    assert record["losses"][103] < record["losses"][0]

    (tmp_path / "cut").mkdir()

    class Interrupted(Exception):
        pass

    def interrupting_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step == 102:
            raise Interrupted
        return batch(step)

    with contextlib.suppress(Interrupted):
        train_phase(create(), phase, interrupting_batch, tmp_path / "cut", False, 2)
    resumed = create()
    train_phase(resumed, phase, batch, tmp_path / "cut", False, 2)
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)


def test_only_the_assistants_words_are_learned() -> None:
    tokenizer = with_bos(train_tokenizer(["\n".join(chapter) for chapter in chapters()], 300))
    dialogue = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "went home"}]
    ids, labels = encode_dialogue(tokenizer, dialogue)
    assert ids == tokenizer.encode(
        tokenizer.apply_chat_template(dialogue, tokenize=False), add_special_tokens=False
    )  # the form that serving uses
    learned = [label for label in labels if label != -100]
    assert tokenizer.decode(learned) == "went home<|end|>"
    phase = Phase("tune", 2, 2, 8, 1.0, 0.3)
    inputs, targets = tuning_batches(tokenizer, [dialogue] * 40, phase, 1)(1)
    assert inputs.shape == targets.shape == (2, 8)


def test_windows_of_an_epoch_do_not_overlap() -> None:
    tokens = torch.arange(1000)
    phase = Phase("p", 5, 4, 16, 1.0, 0.3)
    batch = pretraining_batches(tokens, phase, 5)
    starts = sorted(int(row[0]) for step in range(5) for row in batch(step)[0])
    assert all(later - earlier >= 17 for earlier, later in zip(starts, starts[1:], strict=False))


def test_the_baselines_are_code_lengths() -> None:
    found = baselines([["abab" * 500]], [["abab" * 500]])
    assert 0 < found["gzip_bits_per_byte"] < 1
    assert 0 <= found["trigram_bits_per_byte"] < 0.1
    uneven = baselines([["ab" * 500]], [[chr(200 + i % 50) for i in range(300)]])
    assert uneven["trigram_bits_per_byte"] > 4

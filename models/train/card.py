"""The model cards of the bundled pair: computes baselines and samples, and renders the card from what was measured.

Knows nothing of training; every number is passed in or measured here.
"""

import gzip
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from models.train.corpus import Chapters

REQUESTS = (
    "Tell me a story about a fox and a crow.",
    "Tell me a story about a princess and a dragon.",
    "Write a story with the words king, river and sword.",
    "Who is Alice?",
    "Continue: The old sailor lit his pipe and looked out over the harbour.",
    "Hello!",
)
OPENINGS = ("Once upon a time there was", "The detective looked at", '"I will never go back," said')


def baselines(train: Chapters, valid: Chapters) -> dict[str, float]:
    """Returns the bits per byte of `valid` under gzip -9 and under a byte trigram model of `train`."""
    train_bytes, text = _bytes(train), _bytes(valid)
    zipped = len(gzip.compress(text, 9)) * 8 / len(text)
    return {"gzip_bits_per_byte": round(zipped, 4), "trigram_bits_per_byte": round(_trigram(train_bytes, text), 4)}


def _bytes(chapters: Chapters) -> bytes:
    return "\n\n".join("\n".join(chapter) for chapter in chapters).encode()


def _trigram(train: bytes, text: bytes) -> float:
    """Returns the bits per byte of `text` under a byte trigram model of `train`.

    Orders are interpolated by Witten and Bell (1991): an order's weight falls with the number of different next bytes it has seen.
    """
    a = np.frombuffer(train, np.uint8).astype(np.int64)
    three = np.bincount((a[:-2] << 16) | (a[1:-1] << 8) | a[2:], minlength=1 << 24).reshape(-1, 256)  # [65536, 256]
    two = np.bincount((a[:-1] << 8) | a[1:], minlength=1 << 16).reshape(-1, 256)  # [256, 256]
    one = np.bincount(a, minlength=256)
    p = (one + (one > 0).sum() / 256) / (one.sum() + (one > 0).sum())  # [256]
    kinds = (two > 0).sum(1, keepdims=True)
    p = (two + kinds * p) / np.maximum(two.sum(1, keepdims=True) + kinds, 1)  # [256, 256]
    p[kinds[:, 0] == 0] = 1 / 256
    b = np.frombuffer(text, np.uint8).astype(np.int64)
    context, last = (b[:-2] << 8) | b[1:-1], b[2:]
    counts, sums, kinds = three[context, last], three.sum(1)[context], (three > 0).sum(1)[context]
    lower = p[b[1:-1], last]
    chances = np.where(kinds > 0, (counts + kinds * lower) / np.maximum(sums + kinds, 1), lower)
    return float(-np.log2(chances).sum() / len(last))


@torch.inference_mode()
def samples(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, chat: bool) -> list[dict[str, str]]:
    """Returns the first answer to each fixed request, with seed 1 and the model's own sampling settings; none is chosen by hand."""
    answers = []
    for request in REQUESTS if chat else OPENINGS:
        text = str(tokenizer.apply_chat_template([{"role": "user", "content": request}], tokenize=False, add_generation_prompt=True))
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False) if chat else tokenizer.encode(request)])
        torch.manual_seed(1)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=110)
        answers.append({"asked": request, "answer": str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))})
    return answers


def machine_description() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{cpu}, {os.cpu_count()} cores, torch {torch.__version__}"


def render(name: str, facts: dict[str, Any]) -> str:
    """Renders the card of `name`; `facts` are the contents of its training.json."""
    chat = name == "storyteller"
    phases = "\n".join(
        f"| {phase_name} | {phase['steps']} | {phase['steps'] * phase['rows'] * phase['length']:,} | {phase['length']} | "
        f"{list(phase['losses'].values())[-1]:.3f} | {phase['seconds'] / 60:.0f} |"
        for phase_name, phase in facts["phases"].items()
    )
    examples = "\n\n".join(f"**{sample['asked']}**\n\n> " + sample["answer"].replace("\n", "\n>\n> ") for sample in facts["samples"])
    purpose = (
        "A very small chat model that tells stories in the manner of old books. It is tuned from `storyteller-base` on requests derived\n"
        "by rule from the same books, and is what Litmus serves when no other model is named."
        if chat
        else "A very small base model of English narrative prose. `storyteller` is tuned from it; Litmus uses it as the observer of the\n"
        "pair when it scores a text by Binoculars."
    )
    tuned = (
        f"\nChat-tuning: {facts['dialogues']:,} conversations made by `models/train/corpus.py` from passages of the training books "
        '("Tell me a\nstory about ...", "Continue: ...", "Who is ...?"); every answer is an unchanged passage; 17 greetings are '
        "hand-written.\n"
        if chat
        else ""
    )
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# {name}

{purpose}

| what | value |
|---|---|
| architecture | Llama, {facts["parameters"] / 1e6:.2f} million parameters, {facts["layers"]} layers, width {facts["width"]} |
| tokenizer | byte-level BPE, {facts["vocabulary"]:,} entries, shared by the pair |
| context | {facts["context"]} tokens |
| weights | bfloat16 safetensors |
| bits per byte on the validation books | **{facts["bits_per_byte"]:.3f}** (gzip -9: {facts["gzip_bits_per_byte"]:.3f}; \
byte trigram: {facts["trigram_bits_per_byte"]:.3f}) |

## Data
93 public-domain books of narrative prose from Standard Ebooks sources (CC0), and tiny Shakespeare: {facts["corpus_tokens"]:,} tokens,
sha256 of the text `{facts["corpus_sha256"][:16]}`. Validation: five other books by authors of the training set, so the figure
above measures new text by known authors. Some of the books are still in copyright outside the United States.
{tuned}
## Training
`make train` (seed {facts["seed"]}). Muon for the matrices of the blocks, AdamW for the rest, float32.

| phase | steps | tokens | length | last loss (nats/token, smoothed) | minutes |
|---|---|---|---|---|---|
{phases}

Written on {time.strftime("%Y-%m-%d")} on {machine_description()}. The minutes are wall-clock time, on cores shared with other work.

## Samples
The first answer to fixed requests (seed 1, at most 110 tokens, the model's own sampling settings), not chosen by hand.

{examples}

## Limits
It is a toy with the manners of a century ago. It invents facts, forgets what it was saying within a few sentences, knows nothing of the
world after its books, and repeats their dated views of people. It follows requests for stories, continuations and characters of its books,
and little else. Its chat template accepts tools and tool calls, so that programs can be tried with it. It was not trained on them: a call
keeps to its schema because the server enforces the schema, and its contents mean nothing. `docs/detector.md` has what the pair can detect
and what it cannot. Use a larger model for anything that matters.

## Licence
Apache-2.0, as the repository. The books are in the public domain in the United States; see `Data`.
"""

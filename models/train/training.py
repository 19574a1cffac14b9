"""Trains the bundled pair from the books: tokenizer, `storyteller-base` by pretraining, `storyteller` by chat-tuning it.

    python -m models.train --data ../shared/data          (or: make train)

Seeded and resumable: the batch of step n is a function of (seed, phase, n), and a run resumes from the checkpoint that is written under
`--work` every 100 steps. Knows nothing of serving.
"""

import argparse
import hashlib
import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.train import card, corpus
from models.train.corpus import Chapters
from models.train.tokenizer import CONTEXT, stream, train_tokenizer, with_bos

log = logging.getLogger(__name__)

SYSTEM_MESSAGES = (
    "You are a storyteller.",
    "You tell stories to children.",
    "You are a helpful assistant.",
    "Answer in the manner of an old book.",
)
SEED = 20261121
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Phase:
    """`steps` optimizer steps of `rows` x `length` tokens.

    `peak` scales each optimizer's learning rate: warm-up over 40 steps, constant for the share `plateau` of the steps, then linear decay.
    """

    name: str
    steps: int
    rows: int
    length: int
    peak: float
    plateau: float

    def scale(self, step: int) -> float:
        """Returns the factor of the learning rates at `step`."""
        warm = min(1.0, (step + 1) / 40)
        left = (self.steps - step) / (self.steps * (1 - self.plateau))
        return self.peak * min(warm, max(0.02, min(1.0, left)))


def pretraining_batches(tokens: torch.Tensor, phase: Phase, seed: int) -> Callable[[int], Batch]:
    """Returns a function from step to batch. An epoch has every window of the stream once; each epoch shifts and shuffles them anew."""
    span = phase.length + 1
    per_epoch = (len(tokens) - span) // span
    orders: dict[int, tuple[int, torch.Tensor]] = {}

    def window(number: int) -> torch.Tensor:
        epoch, index = divmod(number, per_epoch)
        if epoch not in orders:
            generator = torch.Generator().manual_seed(seed + 1000 * epoch)
            orders[epoch] = (int(torch.randint(span, (1,), generator=generator)), torch.randperm(per_epoch, generator=generator))
        offset, order = orders[epoch]
        start = offset + int(order[index]) * span
        return tokens[start : start + span]

    def batch(step: int) -> Batch:
        rows = torch.stack([window(step * phase.rows + row) for row in range(phase.rows)])  # [rows, length + 1]
        return rows[:, :-1], rows[:, 1:]

    return batch


def encode_dialogue(tokenizer: PreTrainedTokenizerFast, dialogue: corpus.Dialogue) -> tuple[list[int], list[int]]:
    """Returns token ids as the chat template writes them, and labels: -100 except for the assistant's text and its end token."""
    ids, labels = [tokenizer.bos_token_id], [-100]
    for message in dialogue:
        role = tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>")
        body = [*tokenizer.encode(message["content"].strip(), add_special_tokens=False), tokenizer.eos_token_id]
        ids += [role, *body]
        labels += [-100, *(body if message["role"] == "assistant" else [-100] * len(body))]
    return ids, labels


def tuning_batches(tokenizer: PreTrainedTokenizerFast, dialogues: list[corpus.Dialogue], phase: Phase, seed: int) -> Callable[[int], Batch]:
    """Returns a function from step to batch. Dialogues are packed into rows in order; the end of a row may cut one.

    A tenth of the dialogues begin with a system message. Raises `ValueError` if there are too few dialogues for the phase.
    """
    rng = random.Random(seed)
    ids: list[int] = []
    labels: list[int] = []
    needed = phase.steps * phase.rows * (phase.length + 1)
    for dialogue in dialogues:
        if rng.random() < 0.1:
            dialogue = [{"role": "system", "content": rng.choice(SYSTEM_MESSAGES)}, *dialogue]
        dialogue_ids, dialogue_labels = encode_dialogue(tokenizer, dialogue)
        ids += dialogue_ids
        labels += dialogue_labels
        if len(ids) >= needed:
            break
    else:
        raise ValueError(f"{phase.steps} steps need {needed} tokens of dialogue, but the books give {len(ids)}: lower --tune-steps")
    shape = (phase.steps, phase.rows, phase.length + 1)
    inputs, targets = (torch.tensor(column[:needed]).view(shape) for column in (ids, labels))
    return lambda step: (inputs[step, :, :-1], targets[step, :, 1:])


def create_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the matrices of the blocks, AdamW for the tied embedding and the norms."""
    blocks = {id(p) for p in model.model.layers.parameters() if p.ndim == 2}
    matrices = [p for p in model.parameters() if id(p) in blocks]
    others = [p for p in model.parameters() if id(p) not in blocks]
    return [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.05),
        torch.optim.AdamW(others, lr=0.004, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train_phase(
    model: LlamaForCausalLM, phase: Phase, batch: Callable[[int], Batch], work: Path, compiled: bool, micro_rows: int
) -> dict[str, Any]:
    """Trains through `phase`, from its checkpoint if there is one. Returns its record: losses by step, seconds, and the fields of `phase`.

    Gradients are accumulated over parts of `micro_rows` rows.
    """
    checkpoint = work / f"{phase.name}.pt"
    optimizers = create_optimizers(model)
    rates = [[group["lr"] for group in optim.param_groups] for optim in optimizers]
    record: dict[str, Any] = {**asdict(phase), "losses": {}, "seconds": 0.0}
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(saved["model"])
        for optim, state in zip(optimizers, saved["optims"], strict=True):
            optim.load_state_dict(state)
        first, record = saved["step"], saved["record"]
        log.info("%s resumes at step %d of %d", phase.name, first, phase.steps)

    def loss_of(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden)  # [rows, length, vocab]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")

    step_loss = torch.compile(loss_of, dynamic=False) if compiled else loss_of
    bar = tqdm(range(first, phase.steps), desc=phase.name, initial=first, total=phase.steps, mininterval=5)
    smooth = None
    for step in bar:
        began = time.monotonic()
        inputs, targets = batch(step)
        count = int((targets != -100).sum())
        total = 0.0
        for part in range(0, phase.rows, micro_rows):
            loss = step_loss(inputs[part : part + micro_rows], targets[part : part + micro_rows])
            (loss / count).backward()
            total += loss.item() / count
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim, base in zip(optimizers, rates, strict=True):
            for group, rate in zip(optim.param_groups, base, strict=True):
                group["lr"] = rate * phase.scale(step)
            optim.step()
            optim.zero_grad(set_to_none=True)
        smooth = total if smooth is None else 0.95 * smooth + 0.05 * total
        bar.set_postfix(loss=f"{smooth:.3f}")
        record["seconds"] += time.monotonic() - began
        if step % 20 == 0 or step == phase.steps - 1:
            record["losses"][step] = round(smooth, 4)
        if (step + 1) % 100 == 0 or step == phase.steps - 1:
            state = {"model": model.state_dict(), "optims": [o.state_dict() for o in optimizers], "step": step + 1, "record": record}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return record


@torch.inference_mode()
def bits_per_byte(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, chapters: Chapters) -> float:
    """Returns the code length of the chapters in bits by UTF-8 byte, in windows of one context that do not overlap."""
    tokens = stream(tokenizer, chapters)
    size = sum(len("\n".join(chapter).encode()) for chapter in chapters)
    nats = 0.0
    for part in tqdm(tokens.split(CONTEXT), desc="bits per byte", mininterval=5):
        logits = model(input_ids=part[None, :-1]).logits[0].float() if len(part) > 1 else None
        nats += F.cross_entropy(logits, part[1:], reduction="sum").item() if logits is not None else 0.0
        nats += math.log(len(tokenizer))  # the first token of a window has no context: it costs as much as under a uniform distribution
    return nats / math.log(2) / size


def phases(args: argparse.Namespace) -> Iterator[Phase]:
    yield Phase("pretrain", args.steps, 16, 512, 1.0, 0.3)
    yield Phase("lengthen", args.long_steps, 8, CONTEXT, 0.15, 0.0)
    yield Phase("tune", args.tune_steps, 8, CONTEXT, 0.25, 0.2)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that contains stories/ and shakespeare/")
    parser.add_argument("--out", type=Path, default=Path("models"), help="where storyteller/ and storyteller-base/ are written")
    parser.add_argument("--work", type=Path, default=Path("runs/train"), help="folder of the checkpoints; delete it to start from step 0")
    parser.add_argument("--steps", type=int, default=1150)
    parser.add_argument("--long-steps", type=int, default=150)
    parser.add_argument("--tune-steps", type=int, default=300)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile (needs a C++ compiler)")
    return parser.parse_args()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse_args()
    if not (args.data / "stories").is_dir():
        raise SystemExit(f"models.train: {args.data / 'stories'} is not a folder: set --data to the folder that contains stories/")
    args.work.mkdir(parents=True, exist_ok=True)
    _check_checkpoints(args)
    torch.manual_seed(SEED)
    books, valid = corpus.read(args.data / "stories"), corpus.read(args.data / "stories" / "valid")
    plays = [line for scene in corpus.read(args.data / "shakespeare") for line in scene]
    chapters = [*books, plays]
    digest = hashlib.sha256("\n\n".join("\n".join(chapter) for chapter in chapters).encode()).hexdigest()

    tokenizer_folder = args.work / "tokenizer"
    if not tokenizer_folder.exists():
        train_tokenizer(["\n".join(chapter) for chapter in chapters], args.vocabulary).save_pretrained(tokenizer_folder)
    tokenizer = with_bos(PreTrainedTokenizerFast.from_pretrained(tokenizer_folder))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=CONTEXT, tie_word_embeddings=True, rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    tokens = stream(tokenizer, chapters)
    log.info("%d tokens, %.2f million parameters", len(tokens), sum(p.numel() for p in model.parameters()) / 1e6)

    pretrain, lengthen, tune = phases(args)
    facts: dict[str, Any] = {"corpus_sha256": digest, "corpus_tokens": len(tokens), "phases": {}, "seed": SEED}
    for phase, micro_rows in ((pretrain, 4), (lengthen, 2)):
        batches = pretraining_batches(tokens, phase, SEED)
        facts["phases"][phase.name] = train_phase(model, phase, batches, args.work, args.compile, micro_rows)
    export_model(model, tokenizer, args.out / "storyteller-base", facts, valid, books)
    requests = corpus.dialogues(books, SEED)
    facts["dialogues"] = len(requests)
    facts["phases"][tune.name] = train_phase(model, tune, tuning_batches(tokenizer, requests, tune, SEED), args.work, args.compile, 2)
    export_model(model, tokenizer, args.out / "storyteller", facts, valid, books)


def _check_checkpoints(args: argparse.Namespace) -> None:
    """Ends the program if the checkpoints under `--work` were made with other arguments."""
    arguments_file = args.work / "arguments.json"
    arguments = {name: value for name, value in vars(args).items() if isinstance(value, int)}
    arguments.pop("compile")
    if arguments_file.exists() and json.loads(arguments_file.read_text()) != arguments:
        raise SystemExit(f"models.train: {args.work} has checkpoints made with {arguments_file.read_text()}: delete it or change --work")
    arguments_file.write_text(json.dumps(arguments))


def export_model(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, facts: dict[str, Any], valid: Chapters, books: Chapters
) -> None:
    """Writes the bfloat16 folder, measures the written weights rather than those trained, and puts the numbers into the card."""
    stored = LlamaForCausalLM(model.config)
    stored.load_state_dict(model.state_dict())
    stored.to(torch.bfloat16)
    ends = [tokenizer.eos_token_id, tokenizer.bos_token_id]
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_p": 0.0}  # what docs/detector.md measured
    stored.generation_config = GenerationConfig(**sampling, eos_token_id=ends, bos_token_id=ends[1], pad_token_id=tokenizer.pad_token_id)
    stored.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    stored.float().eval()
    facts = {
        **facts,
        "parameters": stored.num_parameters(),
        "layers": model.config.num_hidden_layers,
        "width": model.config.hidden_size,
        "vocabulary": len(tokenizer),
        "context": CONTEXT,
        "bits_per_byte": round(bits_per_byte(stored, tokenizer, valid), 4),
        **card.baselines(books, valid),
        "samples": card.samples(stored, tokenizer, chat=folder.name == "storyteller"),
    }
    (folder / "training.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    (folder / "README.md").write_text(card.render(folder.name, facts))
    log.info("%s: %.3f bits per byte", folder, facts["bits_per_byte"])


if __name__ == "__main__":
    main()

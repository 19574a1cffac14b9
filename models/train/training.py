"""Train the bundled pair from the books: tokenizer, `storyteller-base` by pretraining, `storyteller` by chat-tuning it.

    python -m models.train --data ../shared/data          (or: make train)

Seeded and resumable: the batch of step n is a function of (seed, phase, n), and a checkpoint every 100 steps under `--work` lets a
second run go on where the first one stopped. Knows nothing of serving.
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

SYSTEM = ("You are a storyteller.", "You tell stories to children.", "You are a helpful assistant.", "Answer in the manner of an old book.")
SEED = 20261121
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Phase:
    """`steps` optimizer steps of `rows` x `length` tokens; the learning rate is `peak` times warm-up, plateau and linear decay."""

    name: str
    steps: int
    rows: int
    length: int
    peak: float
    plateau: float

    def scale(self, step: int) -> float:
        warm = min(1.0, (step + 1) / 40)
        left = (self.steps - step) / (self.steps * (1 - self.plateau))
        return self.peak * min(warm, max(0.02, min(1.0, left)))


def pretraining(tokens: torch.Tensor, phase: Phase, seed: int) -> Callable[[int], Batch]:
    """Windows of the stream without repetition within an epoch; each epoch shifts and shuffles them anew."""
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
    """Token ids in the chat template's form, and labels that are -100 outside the assistant's words and their end mark."""
    ids, labels = [tokenizer.bos_token_id], [-100]
    for message in dialogue:
        role = tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>")
        body = [*tokenizer.encode(message["content"].strip(), add_special_tokens=False), tokenizer.eos_token_id]
        ids += [role, *body]
        labels += [-100, *(body if message["role"] == "assistant" else [-100] * len(body))]
    return ids, labels


def tuning(tokenizer: PreTrainedTokenizerFast, dialogues: list[corpus.Dialogue], phase: Phase, seed: int) -> Callable[[int], Batch]:
    """Dialogues packed into rows in order; a dialogue cut by the end of a row is finished by no other."""
    rng = random.Random(seed)
    ids: list[int] = []
    labels: list[int] = []
    need = phase.steps * phase.rows * (phase.length + 1)
    for dialogue in dialogues:
        if rng.random() < 0.1:
            dialogue = [{"role": "system", "content": rng.choice(SYSTEM)}, *dialogue]
        more = encode_dialogue(tokenizer, dialogue)
        ids += more[0]
        labels += more[1]
        if len(ids) >= need:
            break
    else:
        raise ValueError(f"{phase.steps} steps need {need} tokens of dialogue, the books gave {len(ids)}: lower --tune-steps")
    shape = (phase.steps, phase.rows, phase.length + 1)
    inputs, targets = (torch.tensor(column[:need]).view(shape) for column in (ids, labels))
    return lambda step: (inputs[step, :, :-1], targets[step, :, 1:])


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the matrices of the blocks, AdamW for the tied embedding and the norms."""
    blocks = {id(p) for p in model.model.layers.parameters() if p.ndim == 2}
    matrices = [p for p in model.parameters() if id(p) in blocks]
    others = [p for p in model.parameters() if id(p) not in blocks]
    return [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.05),
        torch.optim.AdamW(others, lr=0.004, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def run(model: LlamaForCausalLM, phase: Phase, batch: Callable[[int], Batch], work: Path, compiled: bool, micro: int) -> dict[str, Any]:
    """Train through `phase`, from its checkpoint if there is one; returns its record (losses by step, seconds, tokens)."""
    checkpoint = work / f"{phase.name}.pt"
    optims = optimizers(model)
    rates = [[group["lr"] for group in optim.param_groups] for optim in optims]
    record: dict[str, Any] = {**asdict(phase), "losses": {}, "seconds": 0.0}
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(saved["model"])
        for optim, state in zip(optims, saved["optims"], strict=True):
            optim.load_state_dict(state)
        first, record = saved["step"], saved["record"]
        log.info("%s goes on at step %d of %d", phase.name, first, phase.steps)

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
        for part in range(0, phase.rows, micro):
            loss = step_loss(inputs[part : part + micro], targets[part : part + micro])
            (loss / count).backward()
            total += loss.item() / count
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim, base in zip(optims, rates, strict=True):
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
            state = {"model": model.state_dict(), "optims": [o.state_dict() for o in optims], "step": step + 1, "record": record}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return record


@torch.inference_mode()
def bits_per_byte(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, chapters: Chapters) -> float:
    """Code length of the chapters in bits over their UTF-8 bytes, in windows of the context that do not overlap."""
    tokens = stream(tokenizer, chapters)
    size = sum(len("\n".join(chapter).encode()) for chapter in chapters)
    nats = 0.0
    for part in tqdm(tokens.split(CONTEXT), desc="bits per byte", mininterval=5):
        logits = model(input_ids=part[None, :-1]).logits[0].float() if len(part) > 1 else None
        nats += F.cross_entropy(logits, part[1:], reduction="sum").item() if logits is not None else 0.0
        nats += math.log(len(tokenizer))  # the first token of a window is seen by no context: charged at the uniform rate
    return nats / math.log(2) / size


def phases(args: argparse.Namespace) -> Iterator[Phase]:
    yield Phase("pretrain", args.steps, 16, 512, 1.0, 0.3)
    yield Phase("lengthen", args.long_steps, 8, CONTEXT, 0.15, 0.0)
    yield Phase("tune", args.tune_steps, 8, CONTEXT, 0.25, 0.2)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds stories/ and shakespeare/")
    parser.add_argument("--out", type=Path, default=Path("models"), help="where storyteller/ and storyteller-base/ are written")
    parser.add_argument("--work", type=Path, default=Path("runs/train"), help="checkpoints; delete it to start anew")
    parser.add_argument("--steps", type=int, default=1150)
    parser.add_argument("--long-steps", type=int, default=150)
    parser.add_argument("--tune-steps", type=int, default=300)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile (needs a C++ compiler)")
    return parser.parse_args()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = arguments()
    if not (args.data / "stories").is_dir():
        raise SystemExit(f"models.train: {args.data / 'stories'} is not a folder; --data names the folder that holds stories/")
    args.work.mkdir(parents=True, exist_ok=True)
    _same_work(args)
    torch.manual_seed(SEED)
    books, valid = corpus.read(args.data / "stories"), corpus.read(args.data / "stories" / "valid")
    plays = [line for scene in corpus.read(args.data / "shakespeare") for line in scene]
    chapters = [*books, plays]
    digest = hashlib.sha256("\n\n".join("\n".join(chapter) for chapter in chapters).encode()).hexdigest()

    made = args.work / "tokenizer"
    if not made.exists():
        train_tokenizer(["\n".join(chapter) for chapter in chapters], args.vocabulary).save_pretrained(made)
    tokenizer = with_bos(PreTrainedTokenizerFast.from_pretrained(made))
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
    for phase, micro in ((pretrain, 4), (lengthen, 2)):
        facts["phases"][phase.name] = run(model, phase, pretraining(tokens, phase, SEED), args.work, args.compile, micro)
    export(model, tokenizer, args.out / "storyteller-base", facts, valid, books)
    requests = corpus.dialogues(books, SEED)
    facts["dialogues"] = len(requests)
    facts["phases"][tune.name] = run(model, tune, tuning(tokenizer, requests, tune, SEED), args.work, args.compile, 2)
    export(model, tokenizer, args.out / "storyteller", facts, valid, books)


def _same_work(args: argparse.Namespace) -> None:
    """Checkpoints belong to the arguments they were made with. Ends the program where `--work` holds those of others."""
    note, made = args.work / "arguments.json", {name: value for name, value in vars(args).items() if isinstance(value, int)}
    made.pop("compile")
    if note.exists() and json.loads(note.read_text()) != made:
        raise SystemExit(
            f"models.train: {args.work} holds the checkpoints of a run with {note.read_text()}: delete it, or give another --work"
        )
    note.write_text(json.dumps(made))


def export(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, facts: dict[str, Any], valid: Chapters, books: Chapters
) -> None:
    """Write the bfloat16 folder, measure what was written (not what was trained), and put the numbers into its card."""
    stored = LlamaForCausalLM(model.config)
    stored.load_state_dict(model.state_dict())
    stored.to(torch.bfloat16)
    ends = [tokenizer.eos_token_id, tokenizer.bos_token_id]
    stored.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.9, eos_token_id=ends, bos_token_id=ends[1], pad_token_id=tokenizer.pad_token_id
    )
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

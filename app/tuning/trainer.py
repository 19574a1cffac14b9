"""The loop: a step learns from one batch of sequences. Stops between two groups of sequences when it is told to, and loses no step."""

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from app.errors import SetupError
from app.ledger.recipe import ADAPTER, FINISHED, RESULTS, STATE, Recipe
from app.ledger.room import says_full_disk
from app.tuning import state
from app.tuning.channel import Tell
from app.tuning.dataset import Dataset, groups, order
from app.tuning.schedule import Schedule

SAVE_S = 30.0  # between two saved states
MAX_NORM = 1.0  # of the gradients
LOOKS = 10  # at a part of the validation file during a run
PART = 32  # sequences of that part
IGNORED = -100
COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")


class Stopped(Exception):
    """The run was told to stop. What it had is saved."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Over learnt tokens: negative log-likelihood, tokens that the model would have written, and their number."""

    loss: float = 0.0
    right: int = 0
    count: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.loss + other.loss, self.right + other.right, self.count + other.count)

    @property
    def mean(self) -> float:
        return self.loss / self.count

    @property
    def accuracy(self) -> float:
        return self.right / self.count


@dataclass(frozen=True, slots=True)
class Data:
    training: Dataset
    validation: Dataset | None
    group_tokens: int


class Trainer:
    """`stop` says whether the run is to stop. `save_s` is how often its state is saved."""

    def __init__(self, recipe: Recipe, schedule: Schedule, model: Any, data: Data, folder: Path) -> None:
        self._recipe, self._schedule, self._model, self._data, self._folder = recipe, schedule, model, data, folder
        self._device = next(model.parameters()).device
        parameters = list(state.trained(model).values())
        self._optimizer = torch.optim.AdamW(parameters, lr=schedule.rate, weight_decay=0.0)
        self._parameters = parameters
        self._random = state.random_state()
        self._progress = state.Progress()
        self._began_s, self._first = time.monotonic(), 0

    def run(self, tell: Tell, stop: Callable[[], bool], save_s: float = SAVE_S, told: int | None = None) -> None:
        """`told` is the last step that whoever listens knows of. Raises `Stopped`, `SetupError`, `StorageFull`, `OSError`."""
        with says_full_disk():
            self._run(tell, stop, save_s, told)

    def _run(self, tell: Tell, stop: Callable[[], bool], save_s: float, told: int | None) -> None:
        self._progress = state.load_state(self._folder, self._model, self._optimizer)
        self._random = state.random_state()
        progress, saved_s = self._progress, time.monotonic()
        tell("resumed", {"step": progress.step, "told": int(progress.rows[-1]["step"]) if progress.rows else -1})
        if progress.step == 0 and not progress.rows and self._data.validation is not None:
            self._look_first(tell, stop)
        self._began_s, self._first = time.monotonic(), progress.step
        for row in progress.rows:
            if "train_loss" in row and told is not None and row["step"] > told:
                self._tell_row(row, tell)
        while progress.pending is not None or progress.step < self._schedule.steps:
            if progress.pending is None:
                self._step(stop)
            self._complete(tell, stop)
            if time.monotonic() - saved_s >= save_s:
                self._save()
                tell("saved", {"step": progress.step})
                saved_s = time.monotonic()
        self._finish()
        tell("done", {"trained_tokens": progress.trained_tokens})

    def _look_first(self, tell: Tell, stop: Callable[[], bool]) -> None:
        """The loss of the base itself."""
        found = self._validate(range(len(self._data.validation or ())), stop)
        self._progress.rows.append({"step": 0, "valid_loss": found.mean, "valid_mean_token_accuracy": found.accuracy})
        data = {"step": 0, "full_valid_loss": found.mean, "full_valid_mean_token_accuracy": found.accuracy}
        tell("event", {"level": "info", "message": f"Before training: validation loss={found.mean:.4f}", "data": data})

    def _step(self, stop: Callable[[], bool]) -> None:
        """Learn from the next batch. What is to be told of it waits until its validation is done, which may be interrupted."""
        progress, step = self._progress, self._progress.step
        epoch, part = self._schedule.place(step)
        batch = order(self._recipe.seed, epoch, len(self._data.training))[part]
        sums = self._learn(batch, step, stop)
        progress.pending = {"step": step + 1, "train_loss": sums.mean, "train_accuracy": sums.accuracy}
        progress.step += 1
        progress.trained_tokens += sum(self._data.training.length(index) for index in batch)
        self._random = state.random_state()

    def _complete(self, tell: Tell, stop: Callable[[], bool]) -> None:
        progress = self._progress
        row, ends = dict(progress.pending or {}), self._schedule.ends_epoch(progress.step - 1)
        found = self._look(ends, stop)
        if found is not None:
            row |= {"valid_loss": found.mean, "valid_mean_token_accuracy": found.accuracy}
        progress.rows.append(row)
        progress.pending = None
        if ends:
            state.keep_checkpoint(self._model, self._folder, progress.step)
            self._save()
        self._tell_row(row, tell)

    def _tell_row(self, row: dict[str, float], tell: Tell) -> None:
        step = int(row["step"])
        ends = self._schedule.ends_epoch(step - 1)
        told = self._told(row, ends)
        tell("metrics", {**told, "trained_tokens": self._progress.trained_tokens, "eta_s": self._eta_s()})
        if ends:
            tell("checkpoint", {"step": step, "metrics": told["data"]})

    def _eta_s(self) -> float:
        done, left = max(1, self._progress.step - self._first), self._schedule.steps - self._progress.step
        return (time.monotonic() - self._began_s) / done * left

    def _told(self, row: dict[str, float], ends_epoch: bool) -> dict[str, Any]:
        """OpenAI's names of the numbers, and a sentence."""
        data: dict[str, float] = {"step": row["step"], "total_steps": self._schedule.steps, "train_loss": row["train_loss"]}
        data["train_mean_token_accuracy"] = row["train_accuracy"]
        message = f"Step {row['step']}/{self._schedule.steps}: training loss={row['train_loss']:.4f}"
        if "valid_loss" in row:
            data |= {"valid_loss": row["valid_loss"], "valid_mean_token_accuracy": row["valid_mean_token_accuracy"]}
            message += f", validation loss={row['valid_loss']:.4f}"
            if ends_epoch:
                data["full_valid_loss"] = row["valid_loss"]
                data["full_valid_mean_token_accuracy"] = row["valid_mean_token_accuracy"]
        return {"message": message, "data": data}

    def _learn(self, batch: Sequence[int], step: int, stop: Callable[[], bool]) -> Sums:
        """One step of the optimizer. The loss is the mean over all learnt tokens of the batch."""
        learnt = sum(int(self._data.training[index][1][1:].sum()) for index in batch)
        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule.rate_of(step)
        self._optimizer.zero_grad(set_to_none=True)
        total = Sums()
        for indices in self._groups(self._data.training, batch):
            self._stop_if(stop)
            loss, sums = self._forward(self._data.training, indices)
            (loss / learnt).backward()
            total += sums
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, MAX_NORM)
        if not torch.isfinite(norm):
            raise SetupError(f"step {step + 1}: the loss is no number; lower learning_rate_multiplier, or leave it out")
        self._optimizer.step()
        return total

    def _look(self, ends_epoch: bool, stop: Callable[[], bool]) -> Sums | None:
        """The loss of the validation file: all of it at the end of an epoch, the same part of it ten times in between."""
        count = len(self._data.validation or ())
        if ends_epoch and count:
            return self._validate(range(count), stop)
        if count and self._progress.step % max(1, self._schedule.steps // LOOKS) == 0:
            return self._validate(range(min(count, PART)), stop)
        return None

    @torch.no_grad()
    def _validate(self, indices: Sequence[int], stop: Callable[[], bool]) -> Sums:
        assert self._data.validation is not None
        self._model.eval()
        total = Sums()
        for group in self._groups(self._data.validation, indices):
            self._stop_if(stop)
            total += self._forward(self._data.validation, group)[1]
        self._model.train()
        return total

    def _groups(self, data: Dataset, indices: Sequence[int]) -> list[list[int]]:
        return groups(indices, [data.length(index) for index in indices], self._data.group_tokens)

    def _forward(self, data: Dataset, indices: Sequence[int]) -> tuple[torch.Tensor, Sums]:
        """The summed loss of some sequences. They are filled up behind, where a causal model does not look."""
        rows = [data[index] for index in indices]
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full((len(rows), longest), IGNORED, dtype=torch.long)
        for row, (tokens, learnt) in enumerate(rows):
            own = torch.from_numpy(tokens.astype("int64"))
            ids[row, : len(own)] = own
            labels[row, : len(own)] = torch.where(torch.from_numpy(learnt.copy()), own, IGNORED)
        logits = self._model(input_ids=ids.to(self._device), use_cache=False).logits[:, :-1]
        wanted = labels[:, 1:].to(self._device)
        chosen = wanted != IGNORED
        logits, wanted = logits[chosen].float(), wanted[chosen]
        loss = F.cross_entropy(logits, wanted, reduction="sum")
        right = int((logits.detach().argmax(-1) == wanted).sum())
        return loss, Sums(float(loss.detach()), right, len(wanted))

    def _stop_if(self, stop: Callable[[], bool]) -> None:
        """The weights are those of the last whole step; what the present one used of random numbers is given back."""
        if stop():
            self._save()
            raise Stopped

    def _save(self) -> None:
        state.save_state(self._folder, self._model, self._optimizer, self._progress, self._random)

    def _finish(self) -> None:
        """The adapter and the losses, whole; what only an unfinished run needs makes room at once. Raises `OSError`."""
        state.save_adapter(self._model, self._folder / ADAPTER)
        with state.whole(self._folder / RESULTS) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="")
            writer.writeheader()
            writer.writerows(self._progress.rows)
        with state.whole(self._folder / FINISHED) as part:
            part.write_text(str(self._progress.trained_tokens))
        (self._folder / STATE).unlink(missing_ok=True)

"""What transformers itself computes with a served model's rounded weights, in float32: the measure of every precision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from transformers import PreTrainedModel

from app.engine.rounding import quantize_layers
from app.models.source import source_of
from app.models.weights import load_model, rounds_itself
from app.settings import ModelSettings

Process = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]  # (logits [vocabulary], answer so far) -> logits
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Reference:
    """`tolerance` bounds how far logits and log-probabilities of the served precision may be from those here."""

    model: PreTrainedModel
    tolerance: float

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """What follows each token: `[tokens, vocabulary]`."""
        return self.model(torch.tensor([list(ids)])).logits[0].float()

    def logprobs(self, ids: Sequence[int]) -> list[float]:
        """Those of all tokens but the first."""
        rows = self.logits(ids)[:-1].log_softmax(-1)
        values: list[float] = rows.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
        return values

    def check_greedy(self, prompt: Sequence[int], answer: Sequence[int], process: Process = lambda row, _: row) -> None:
        """Fails unless each token of the answer has the largest logit, or one that the tolerance does not tell from the largest."""
        assert answer
        for place, row in enumerate(self.logits([*prompt, *answer])[len(prompt) - 1 : -1]):
            changed = process(row.clone(), answer[:place])
            behind = float(changed.max() - changed[answer[place]])
            assert behind <= self.tolerance, f"token {place} of {list(answer)} is {behind} behind the likeliest"


@cache
def load_reference(settings: ModelSettings, path: str, tolerance: float) -> Reference:
    """The model of `path` as `settings` round its weights."""
    exact = settings.model_copy(update={"path": path, "dtype": "float32"})
    model = load_model(source_of(path), exact, CPU)
    if rounds_itself(exact, CPU):
        quantize_layers(model, exact.quantize)
    return Reference(model, tolerance)

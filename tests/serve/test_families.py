"""Models of several families, made on the fly, behind the real routes: greedy answers are those of `generate` in the same quantization.

In float32 they are equal. In the precision that is served by default rounding may turn a near-tie, and each token has to be the likeliest
of what transformers computes with the same rounded weights, or one that the rounding does not tell from it.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from inprocess import LocalServer
from reference import load_reference
from tinymodels import CONTEXT, SHAPES, tiny

from app.settings import ModelSettings

TOKENIZER = 258  # tokens, as many as the models have
FAMILIES: dict[str, dict[str, int]] = {  # changes of the shape; transformers gives Qwen2's tokenizer a token more
    "GPT2": {},
    "GPTNeoX": {"intermediate_size": 128},
    "Lfm2": {},
    "Qwen3.5": {},
    "Qwen2": {"vocab_size": 259},
    "Qwen3": {},
}
CASES = [("none", "float32"), ("int8", "float32"), ("nf4", "float32"), ("int8", "auto"), ("nf4", "auto")]
PROMPTS = ("Once upon a time", "The fox", "x")
TOKENS = 12
TOLERANCE = 0.5  # of logits whose standard deviation is about 4


def settings_of(folder: Path, family: str, quantize: str, dtype: str) -> ModelSettings:
    sizes = {"slots": 4, "context": CONTEXT}
    return ModelSettings(
        path=str(folder / family),
        name=f"{family}-{quantize}-{dtype}",
        quantize=quantize,  # type: ignore[arg-type]
        dtype=dtype,  # type: ignore[arg-type]
        device="cpu",
        **sizes,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    root = tmp_path_factory.mktemp("families")
    for family, changes in FAMILIES.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(SHAPES, family, (SHAPES[family][0], {**SHAPES[family][1], "vocab_size": TOKENIZER, **changes}))
            tiny(family).save_pretrained(root / family)
        for file in [*tiny_folder.glob("token*"), *tiny_folder.glob("chat_template*")]:
            shutil.copy(file, root / family)
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LocalServer]:
    settings = [settings_of(folder, family, *case) for family in FAMILIES for case in CASES]
    with LocalServer({each.served_name: each for each in settings}).run() as server:
        yield server


@pytest.mark.parametrize(("quantize", "dtype"), CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_generate_in_the_same_quantization(
    server: LocalServer, folder: Path, family: str, quantize: str, dtype: str
) -> None:
    settings = settings_of(folder, family, quantize, dtype)
    model, reference = server.model(settings.served_name), load_reference(settings, settings.path, TOLERANCE)
    assert type(model.engine.performer.model).__name__ == SHAPES[family][0]
    for text in PROMPTS:
        prompt = list(model.tokenizer.encode(text, "prompt"))
        answer = model.answer_ids(prompt, max_tokens=TOKENS, temperature=0)
        if dtype == "float32":
            row = torch.tensor([prompt])
            options = {"attention_mask": torch.ones_like(row), "max_new_tokens": TOKENS, "do_sample": False}
            assert answer == reference.model.generate(row, **options)[0, len(prompt) :].tolist()  # type: ignore[operator]
        else:
            reference.check_greedy(prompt, answer)

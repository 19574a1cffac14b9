"""A tiny pair of models in each precision that a CPU serves, behind the real routes; and what transformers itself computes with their
rounded weights, in float32.

The models are random, but not like fresh ones: each token depends on those before it, and some are far likelier than others.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from adapting import EVERY, llama_shapes, save_adapter
from flash import as_on_cuda, use_flash
from inprocess import LocalModel, LocalServer
from precisions.asking import Plain, ask_plainly
from reference import Reference, load_reference
from transformers import AutoConfig

from app.settings import ModelSettings
from app.tokenizer import Tokenizer
from models import synthetic
from models.gguf import write_gguf

PRECISIONS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
    "nf4": {"quantize": "nf4"},
    "gguf": {},
}
RECORDED = "recorded"  # float32, with the attention and the recorded decode steps of CUDA
BYTES = "bytes"  # bfloat16 with a KV cache in 8 bits
MIX = {
    "token_embd": "Q6_K",
    "attn_v": "Q6_K",
    "attn_output": "IQ4_NL",
    "ffn_up": "Q3_K",
    "ffn_down": "Q8_0",
}  # of the GGUF file; all other matrices are Q4_0
CONTEXT, WINDOW, SLOTS, STEP_TOKENS = 512, 384, 8, 64
SHAPE = synthetic.Shape(hidden=256, layers=2, heads=8, kv_heads=4, ff=512, vocabulary=768, context=CONTEXT)
LAYER_SCALE, NORM_SCALE = 4.0, 6.0
CHANGE = 2  # lora_alpha: how far adapters change the model
TOLERANCES = {
    "float32": 1e-3,
    "recorded": 1e-3,
    "bfloat16": 0.2,
}  # of logits and log-probabilities, whose standard deviation is 1.7; 0.3 in the others
MARK = "</think>"
TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content or '' }}{% for c in m.tool_calls or [] %}{% if not loop.first %}\n{% endif %}"
    '<call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</call>{% endfor %}</s>\n{% endfor %}'
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def save_model(folder: Path, seed: int) -> Path:
    """Write the model as a Hugging Face folder, and as a GGUF file in it."""
    tokenizer = synthetic.create_tokenizer(SHAPE.vocabulary)
    tokenizer.chat_template = TEMPLATE
    model = synthetic.create_model(SHAPE, synthetic.silent_token_ids(tokenizer), seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".layers." in name and parameter.ndim == 2:
                parameter.mul_(LAYER_SCALE)
        model.model.norm.weight.mul_(NORM_SCALE)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_gguf(folder, folder.with_suffix(".gguf"), "Q4_0", MIX)
    return folder


def save_tuned(folder: Path, base: Path, name: str, suffix: str = "") -> Path:
    """Write an adapter of the model, or of the GGUF file beside it."""
    path = folder / f"{name}{suffix}"
    if not path.exists():
        shapes = llama_shapes(AutoConfig.from_pretrained(base))
        targets = EVERY if name == "tuned" else ("v_proj", "down_proj")
        save_adapter(path, f"{base}{suffix}", shapes, len(name), targets, lora_alpha=CHANGE)
    return path


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("precisions")
    performer, observer = save_model(folder / "performer", 0), save_model(folder / "observer", 1)

    def settings(name: str, fields: dict[str, str]) -> ModelSettings:
        suffix = ".gguf" if name == "gguf" else ""
        paths = {"path": f"{performer}{suffix}", "observer": f"{observer}{suffix}"}
        adapters = {f"{name}-{tuned}": str(save_tuned(folder, performer, tuned, suffix)) for tuned in ("tuned", "other")}
        return ModelSettings(
            **paths, name=name, slots=SLOTS, context=CONTEXT, text_window=WINDOW, step_tokens=STEP_TOKENS, adapters=adapters, **fields
        )

    served = {**PRECISIONS, BYTES: {"dtype": "bfloat16", "cache_dtype": "int8"}, RECORDED: {"dtype": "float32"}}
    with LocalServer({name: settings(name, fields) for name, fields in served.items()}, folder / "jobs").run() as server:
        yield server


@pytest.fixture(params=PRECISIONS)
def model(server: LocalServer, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LocalModel:
    if request.param != RECORDED:
        return server.model(request.param)
    use_flash(monkeypatch)
    with as_on_cuda():
        return server.model(request.param)


@pytest.fixture
def steady(model: LocalModel) -> LocalModel:
    """The model, for tests that compare answers of different batches, in the precisions whose rounding does not depend on the batch."""
    if model.name not in ("float32", RECORDED) and not model.engine.performer.is_on_kernel:
        pytest.skip("without the compiled kernel rounding depends on the batch")
    return model


@pytest.fixture(scope="session")
def plain_by_model() -> dict[str, Plain]:
    return {}


@pytest.fixture
def plain(steady: LocalModel, plain_by_model: dict[str, Plain]) -> Plain:
    """Asked once in all files: what answers in company, with drafts and after deaths are compared with."""
    if steady.name not in plain_by_model:
        plain_by_model[steady.name] = ask_plainly(steady)
    return plain_by_model[steady.name]


@pytest.fixture
def reference(model: LocalModel) -> Reference:
    return load_reference(model.settings, model.settings.path, TOLERANCES.get(model.name, 0.3))


@pytest.fixture
def observer_reference(model: LocalModel) -> Reference:
    assert model.settings.observer is not None
    return load_reference(model.settings, model.settings.observer, TOLERANCES.get(model.name, 0.3))


@pytest.fixture
def thinking(server: LocalServer, model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> LocalModel:
    """The model, with a template that opens a thought as DeepSeek-R1's does."""
    tokenizer = Tokenizer(model.settings.path)
    tokenizer.base.chat_template += f"{{% if add_generation_prompt %}}<think>{{% endif %}}{{% if false %}}{MARK}{{% endif %}}"
    monkeypatch.setitem(server.tokenizers, model.name, tokenizer)
    return model

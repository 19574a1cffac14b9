"""A tiny pair of models in each precision that a CPU serves, behind the real routes; and what transformers itself computes with their
rounded weights, in float32.

The models are random, but not like fresh ones: each token depends on those before it, and some are far likelier than others.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from inprocess import LocalModel, LocalServer
from reference import Reference, load_reference

from app.settings import ModelSettings
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
MIX = {"token_embd": "Q6_K", "attn_v": "Q6_K", "ffn_down": "Q8_0"}  # of the GGUF file; all other matrices are Q4_0
CONTEXT, SLOTS, STEP_TOKENS = 512, 8, 64
SHAPE = synthetic.Shape(hidden=256, layers=2, heads=8, kv_heads=4, ff=512, vocabulary=768, context=CONTEXT)
LAYER_SCALE, NORM_SCALE = 4.0, 6.0
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.2}  # of logits and log-probabilities, whose standard deviation is 1.7; 0.3 in the others
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


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("precisions")
    performer, observer = save_model(folder / "performer", 0), save_model(folder / "observer", 1)

    def settings(name: str, fields: dict[str, str]) -> ModelSettings:
        suffix = ".gguf" if name == "gguf" else ""
        paths = {"path": f"{performer}{suffix}", "observer": f"{observer}{suffix}"}
        return ModelSettings(**paths, name=name, slots=SLOTS, context=CONTEXT, step_tokens=STEP_TOKENS, **fields)

    with LocalServer({name: settings(name, fields) for name, fields in PRECISIONS.items()}).run() as server:
        yield server


@pytest.fixture(params=PRECISIONS)
def model(server: LocalServer, request: pytest.FixtureRequest) -> LocalModel:
    return server.model(request.param)


@pytest.fixture
def steady(model: LocalModel) -> LocalModel:
    """The model, for tests that compare answers of different batches, in the precisions whose rounding does not depend on the batch."""
    if model.name != "float32" and not model.engine.performer.is_on_kernel:
        pytest.skip("without the compiled kernel rounding depends on the batch")
    return model


@pytest.fixture
def reference(model: LocalModel) -> Reference:
    return load_reference(model.settings, model.settings.path, TOLERANCES.get(model.name, 0.3))


@pytest.fixture
def observer_reference(model: LocalModel) -> Reference:
    assert model.settings.observer is not None
    return load_reference(model.settings, model.settings.observer, TOLERANCES.get(model.name, 0.3))

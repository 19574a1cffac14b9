"""Building an engine from a model folder, plain and quantized, and the errors for models and settings that cannot be served."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from driving import answers_of, drain, kernel_or_skip
from safetensors.torch import load_file, save_file
from tinymodels import VOCABULARY, tiny
from tool_templates import HERMES
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, modeling_utils

from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.events import Delta, Failed
from app.engine.layout import Span, layout_of
from app.engine.request import Generate, SamplingParams
from app.engine.rounding import quantize_layers
from app.errors import SetupError
from app.forms.lark import choice_grammar
from app.models.device import DeviceAssignment
from app.models.loading import create_engine, resolve_devices
from app.models.revision import revision_of
from app.models.source import source_of
from app.models.weights import load_model
from app.settings import ModelSettings
from app.tokenizer import Tokenizer
from models import synthetic


def settings(folder: Path, **options: object) -> ModelSettings:
    return ModelSettings(path=str(folder), device="cpu", slots=2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("quantize", ["none", "int8", "nf4", "fp4", "int4"])
def test_every_quantization_generates_on_a_cpu(tiny_folder: Path, quantize: str) -> None:
    engine, facts = create_engine(settings(tiny_folder, quantize=quantize, observer=str(tiny_folder)))
    assert engine.idle
    engine.submit(Generate("a", (0, 5, 9), 6, SamplingParams(temperature=0.0)))
    events = []
    while not engine.idle:
        events += engine.step()
    assert sum(len(event.tokens) for event in events if isinstance(event, Delta)) >= 1
    assert events[-1].finish in {"stop", "length"}
    assert (facts.quantize, facts.device, facts.chat) == (quantize, "cpu", True)
    assert facts.dtype == ("float32" if quantize == "none" else "bfloat16")
    linear = engine.performer.model.model.layers[0].mlp.up_proj
    assert (type(linear) is torch.nn.Linear) == (quantize == "none")


@pytest.mark.parametrize("in_vocab", [False, True])
def test_tokens_without_embeddings_are_named_and_a_form_is_answered_without_them(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, in_vocab: bool
) -> None:
    """As in the folders of models that got a token for padding, or another end token, and kept their embeddings. Some tokenizers also have
    such tokens in their vocabulary.
    """
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<{index}>" for index in range(VOCABULARY - len(tokenizer))])
    tokenizer.add_special_tokens({"pad_token": "[PAD]", "eos_token": "<|end|>"})
    tokenizer.save_pretrained(folder)
    if in_vocab:
        file = folder / "tokenizer.json"
        document = json.loads(file.read_text())
        document["model"]["vocab"] |= {token["content"]: token["id"] for token in document["added_tokens"]}
        file.write_text(json.dumps(document))
    engine, _ = create_engine(settings(folder))
    sizes = f"has {VOCABULARY + 2} tokens, the model only {VOCABULARY} embeddings"
    assert f"{folder}: the tokenizer {sizes}; a text with one of the rest is refused: <|end|> [PAD]" in caplog.text
    engine.submit(Generate("form", (5, 9), 20, grammar=choice_grammar(["a fox", "a crow"])))
    engine.submit(Generate("beyond", (5, VOCABULARY), 20))
    engine.submit(Generate("allowed", (5, 9), 20, SamplingParams(allowed_tokens=(5, VOCABULARY))))
    banned = SamplingParams(min_tokens=3, bad_words=((VOCABULARY,),), logit_bias=((VOCABULARY + 1, 5.0),))
    engine.submit(Generate("banned", (5, 9), 4, banned))
    events = drain(engine)
    assert answers_of(events)["form"] in {"a fox", "a crow"} and answers_of(events)["banned"]
    failures = {event.id: event.error.message for event in events if isinstance(event, Failed)}
    outside = f"has a token outside the model's vocabulary of {VOCABULARY} tokens"
    assert failures == {"beyond": f"the prompt {outside}", "allowed": f"allowed_token_ids {outside}"}


def test_a_tokenizer_of_another_model_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    synthetic.create_tokenizer(VOCABULARY + 1).save_pretrained(folder)
    with pytest.raises(SetupError, match="tokenizer has 301 tokens, the model only 300 embeddings: they do not belong together"):
        create_engine(settings(folder))


def test_facts_contain_revision_and_fingerprint(tiny_folder: Path) -> None:
    plain, quantized = (create_engine(settings(tiny_folder, quantize=quantize))[1] for quantize in ("none", "int8"))
    assert plain.revision == quantized.revision == revision_of(str(tiny_folder), None)
    assert plain.fingerprint.startswith("fp_") and plain.fingerprint != quantized.fingerprint


def test_facts_follow_the_chat_template_of_the_settings(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(HERMES)
    own, given = (create_engine(settings(tiny_folder, chat_template=template))[1] for template in (None, str(file)))
    assert (own.tools, given.tools) == ("general", "template") and own.fingerprint != given.fingerprint and own.template == ""


@pytest.mark.parametrize(
    ("quantize", "dtype"), [("none", "bfloat16"), ("int8", "auto"), ("nf4", "auto"), ("fp4", "auto"), ("int4", "auto")]
)
@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_logits_in_a_full_batch_match_transformers_forward(tmp_path: Path, name: str, quantize: str, dtype: str) -> None:
    """Within 3% of the logits' norm: bfloat16 has 8 significant bits, and kernels sum in another order for another number of rows."""
    tiny(name).save_pretrained(tmp_path)
    options = settings(tmp_path, quantize=quantize, dtype=dtype)
    ids = [(7 * position + 3) % 300 for position in range(40)]
    source, rounded = source_of(str(tmp_path)), quantize if quantize in {"int4", "int8"} else "none"
    reference = load_model(source, options, torch.device("cpu"))
    if rounded != "none":
        quantize_layers(reference, rounded)
    with torch.inference_mode():
        expected = reference(torch.tensor([ids])).logits[0].float()
    flat = create_flat_model(load_model(source, options, torch.device("cpu")), CacheLimits(3, 128), rounded)
    first, second = [3, 1], [0, 2]  # pages
    spans = [Span(0, 30, 0, first), Span(30, 70, 0, second), Span(70, 80, 0, None)]
    flat.forward(ids[:30] + ids + ids[:10], [*range(30), *range(40), *range(10)], layout_of([], spans, flat.page_tokens, flat.device))
    rows = []
    for position in range(30, 40):  # the first sequence decodes, beside the second and a text that is not cached
        layout = layout_of([(first, position), (second, position + 10)], [Span(2, 12, 0, None)], flat.page_tokens, flat.device)
        hidden = flat.forward([ids[position], ids[position], *ids[:10]], [position, position + 10, *range(10)], layout)
        rows.append(flat.head(hidden[:1])[0].float())
    error = float((torch.stack(rows) - expected[30:]).norm() / expected[30:].norm())
    assert error < 0.03


def test_a_missing_device_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(SetupError, match=r"cuda:7 does not exist"):
        resolve_devices(DeviceAssignment(("cpu", "cuda:7"), 1))


def test_float16_with_bitsandbytes_on_a_cpu_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(SetupError, match="float16"):
        create_engine(settings(tiny_folder, quantize="nf4", dtype="float16"))


def test_a_layer_without_an_nf4_kernel_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    narrow = tiny("GPTNeoX")  # its MLP is 96 wide, no multiple of nf4's blocks of 64 weights
    narrow.save_pretrained(tmp_path)
    for file in tiny_folder.glob("token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SetupError, match="quantize=nf4"):
        create_engine(settings(tmp_path, quantize="nf4"))


def test_a_broken_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SetupError):
        create_engine(settings(tmp_path))


def test_a_draft_model_is_loaded_beside_the_model_and_told(tiny_folder: Path, other_folder: Path) -> None:
    engine, facts = create_engine(settings(tiny_folder, draft=str(other_folder), quantize="int4"))
    assert engine.drafter.proposer is not None and engine.drafter.is_on
    model = engine.drafter.proposer.model
    assert (model.context, model.vocabulary, len(model.lanes._free)) == (96, 300, 2)
    assert model.costs.step_s(1), "the warm-up has measured it"
    assert facts.draft == other_folder.name and facts.draft_weights is not None and facts.draft_weights.parameters > 0
    plain = create_engine(settings(tiny_folder, quantize="int4"))[1]
    assert (plain.draft, plain.draft_weights, plain.fingerprint) == (None, None, facts.fingerprint)


def test_a_draft_model_with_another_vocabulary_is_refused(tiny_folder: Path, bundled: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"model\.draft: .*storyteller has another vocabulary.* it has 4096 tokens, the model 258; give a"):
        create_engine(settings(tiny_folder, draft=str(bundled)))
    changed = shutil.copytree(tiny_folder, tmp_path / "changed")
    tokenizer = json.loads((changed / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (changed / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(SetupError, match=r"token 'a' has the id \d+ there and \d+ in the model"):
        create_engine(settings(tiny_folder, draft=str(changed)))


def test_an_observer_with_another_vocabulary_is_refused(tiny_folder: Path, bundled: Path) -> None:
    with pytest.raises(SetupError, match="another vocabulary"):
        create_engine(settings(tiny_folder, observer=str(bundled)))


def damaged(folder: Path, target: Path, edit) -> Path:
    """A copy of a model's folder whose tensors `edit` has changed."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    edit(weights)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda weights: [weights.pop(f"model.layers.{layer}.mlp.up_proj.weight") for layer in range(2)],
            r"2 tensors are missing \(model\.layers\.0\.mlp\.up_proj\.weight, model\.layers\.1",
        ),
        (lambda weights: weights.update({"model.layers.0.mlp.up_proj.qweight": torch.ones(3)}), r"1 tensors are unexpected \(.*qweight\)"),
        (
            lambda weights: weights.update({"model.norm.weight": torch.ones(3)}),
            r"1 tensors are of another shape \(model\.norm\.weight\)",
        ),
    ],
)
def test_an_incomplete_checkpoint_is_refused_by_name(tiny_folder: Path, tmp_path: Path, edit, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        create_engine(settings(damaged(tiny_folder, tmp_path / "damaged", edit)))


@pytest.mark.parametrize("method", ["hqq", "quanto", "higgs"])
def test_a_checkpoint_of_a_foreign_quantization_is_refused_by_name(tiny_folder: Path, tmp_path: Path, method: str) -> None:
    folder = damaged(tiny_folder, tmp_path / "quantized", lambda weights: None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method, "bits": 4}}))
    with pytest.raises(SetupError, match=f"is quantized by '{method}', which Litmus does not load"):
        create_engine(settings(folder))


def test_a_checkpoint_that_bitsandbytes_saved_is_served_as_it_is(tiny_folder: Path, tmp_path: Path) -> None:
    quantized = AutoModelForCausalLM.from_pretrained(
        tiny_folder, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    )
    quantized.save_pretrained(tmp_path)
    for file in tiny_folder.glob("token*"):
        shutil.copy(file, tmp_path)
    _, facts = create_engine(settings(tmp_path, quantize="none"))
    assert (facts.dtype, facts.quantize, facts.weights.format, facts.weights.types) == ("bfloat16", "none", "bitsandbytes", ("fp4",))
    assert facts.weights.parameters == create_engine(settings(tiny_folder))[1].weights.parameters


def harm_inputs(weights) -> None:
    """The second MLP gets inputs that 8 bits cannot hold: one in 32 is a thousand times as large as the others, but nearly unused."""
    weights["model.layers.1.post_attention_layernorm.weight"][::32] = 1000
    for name in ("gate_proj", "up_proj"):
        weights[f"model.layers.1.mlp.{name}.weight"][:, ::32] = 1e-4


def test_facts_name_the_layers_that_round_inputs_to_16_bits(tiny_folder: Path, tmp_path: Path) -> None:
    kernel_or_skip()
    harmed = damaged(tiny_folder, tmp_path / "harmed", harm_inputs)
    harmed_layers = ("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj")
    for performer, observer, expected in ((tiny_folder, harmed, ((), harmed_layers)), (harmed, None, (harmed_layers, None))):
        paths = {"observer": str(observer)} if observer else {}
        _, facts = create_engine(settings(performer, quantize="int4", **paths))
        facts = pickle.loads(pickle.dumps(facts))  # as it reaches the API process
        observed = facts.observer_weights and facts.observer_weights.inputs_of_16_bits
        assert (facts.weights.inputs_of_16_bits, observed) == expected
    assert create_engine(settings(harmed))[1].weights.inputs_of_16_bits == ()  # nothing is rounded


@pytest.mark.parametrize("known", [False, True])
def test_the_code_of_a_checkpoint_never_runs(tiny_folder: Path, tmp_path: Path, known: bool) -> None:
    """A checkpoint may bring Python code of its own (trust_remote_code). Where transformers knows the architecture, its code is used."""
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(tiny_folder, folder)
    for name in ("configuration", "modeling", "tokenization"):
        (folder / f"{name}_theirs.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Theirs: pass\n")
    theirs = {
        "AutoConfig": "configuration_theirs.Theirs",
        "AutoModelForCausalLM": "modeling_theirs.Theirs",
        "AutoTokenizer": ["tokenization_theirs.Theirs", "tokenization_theirs.Theirs"],
    }
    for file in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, "auto_map": theirs, **({} if known else {"model_type": "theirs"})}))
    if known:
        create_engine(settings(folder))
    else:
        with pytest.raises(SetupError, match="contains custom code"):
            create_engine(settings(folder))
    Tokenizer(str(folder))
    assert not ran.exists()


def test_a_load_takes_no_memory_of_a_card_for_all_tensors_at_once(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, called = modeling_utils.caching_allocator_warmup, []

    def from_pretrained(*args: object, **options: object) -> object:
        called.append(modeling_utils.caching_allocator_warmup is own)
        return load(*args, **options)

    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    load_model(source_of(str(tiny_folder)), ModelSettings(path=str(tiny_folder)), torch.device("cpu"))
    assert called == [False] and modeling_utils.caching_allocator_warmup is own

"""For all tests: tiny random models of several architectures, folders of tiny models, the bundled pair."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from _pytest.pathlib import import_path
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from xdist.scheduler import LoadScopeScheduling

VOCABULARY = 300
CONTEXT = 128
ROOT = Path(__file__).resolve().parent.parent
collect_ignore = ["clients"]  # run by test_clients.py in an environment of their own
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": CONTEXT}
GATED = {**SMALL, "intermediate_size": 128, "num_key_value_heads": 2}
SHAPES: dict[str, tuple[str, dict[str, int]]] = {
    "Llama": ("LlamaForCausalLM", GATED),
    "Qwen2": ("Qwen2ForCausalLM", GATED),
    "Qwen3": ("Qwen3ForCausalLM", {**GATED, "head_dim": 16}),
    "GPT2": ("GPT2LMHeadModel", {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}),
    "GPTNeoX": ("GPTNeoXForCausalLM", {**SMALL, "intermediate_size": 96}),
    "OPT": ("OPTForCausalLM", {**SMALL, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "Phi": ("PhiForCausalLM", {**SMALL, "intermediate_size": 96}),
    "Mistral": ("MistralForCausalLM", {**GATED, "sliding_window": 8}),
    "Falcon": ("FalconForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "Gemma2": ("Gemma2ForCausalLM", {**GATED, "head_dim": 16}),
}


# No test speaks TLS: without this, each of thousands of HTTP clients reads all the certificates of the system (23 ms).
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(ROOT / "tests")

# No example has to be computed or drawn within a time, as other tests compute at the same time.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

# Tests that mostly wait: for servers, browsers and other processes. They take turns with those that compute, so that both cores have work.
WAITING = ("tests/serve", "tests/ui", "tests/test_", "tests/loadtest", "tests/jobs", "tests/app/models/test_hub.py")
# So that no process ends long after the other.
SLOW_FIRST = (
    "tests/precisions",
    "tests/serve/test_server.py",
    "tests/serve",
    "tests/ui",
    "tests/test_smollm2.py",
    "tests/test_clients.py",
    "tests/models",
    "tests/test_whole.py",
    "tests/app/engine",
)
# Tests that share nothing slow.
SPREAD = ("tests/app/engine/test_properties.py", "tests/app/engine/test_sampler", "tests/models")
SHARED = {  # in all files of a folder: fixtures that take long to make, by the scope of the tests that ask for them
    "api": ("tests/serve", "api: RunningServer"),
    "kernels": ("tests/app/engine", "built: Kernel"),
    "precisions": ("tests/precisions", "LocalModel"),
}
SCOPES = {
    path.relative_to(ROOT).as_posix(): scope
    for scope, (folder, fixture) in SHARED.items()
    for path in (ROOT / folder).rglob("test_*.py")
    if fixture in path.read_text()
}


def scope_of(nodeid: str) -> str:
    """Tests of one file run in one process, as they share its fixtures; so do all tests that ask for a fixture of SHARED."""
    file = nodeid.split("::", 1)[0]
    return SCOPES.get(file) or (nodeid if file.startswith(SPREAD) else file)


class SharedFixtures(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedFixtures:
    return SharedFixtures(config, log)


def pytest_configure() -> None:
    gc.disable()  # until all tests are imported: collections among so many new objects would take a sixth of that time


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look at it again."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """What a file's tests leave behind stays as well: imports, caches, servers. Each load of a model collects garbage, among a million
    objects for a quarter of a second.
    """
    yield
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    gc.freeze()  # nor before the interpreter ends


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((place for place, path in enumerate(SLOW_FIRST) if item.nodeid.startswith(path)), len(SLOW_FIRST)))
    scopes = {scope_of(item.nodeid): item.nodeid.startswith(WAITING) for item in items}  # in that order
    waiting, computing = ([scope for scope, waits in scopes.items() if waits is kind] for kind in (True, False))
    order = {scope: place / len(kind) for kind in (waiting, computing) for place, scope in enumerate(kind)}
    items.sort(key=lambda item: order[scope_of(item.nodeid)])


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """All processes collect all tests. Each imports another share of them first, so that the asserts of a file are rewritten only once."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or session.config.args_source is not session.config.ArgsSource.TESTPATHS:
        return
    count = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for file in sorted((ROOT / "tests").rglob("test_*.py"))[int(worker.removeprefix("gw")) :: count]:
        if not file.is_relative_to(ROOT / "tests" / "clients"):
            import_path(file, mode="importlib", root=ROOT, consider_namespace_packages=False)


def tiny(name: str, seed: int = 0) -> PreTrainedModel:
    """A random float32 model of `name`'s architecture. Its logits are far apart, so that rounding does not change greedy choices."""
    class_name, shape = SHAPES[name]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(seed)
    model: PreTrainedModel = model_class(model_class.config_class(**shape, bos_token_id=0, eos_token_id=1, pad_token_id=0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    return model


def letters(ids: list[int]) -> str:
    """A text with one character a token, so that answers can be compared token by token."""
    return "".join(chr(0x4E00 + token) for token in ids)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny matrices gain nothing from a second thread, and it slows down tests that run beside servers."""
    torch.set_num_threads(1)


def save_tiny(folder: Path, context: int, eos_token: str | None, seed: int = 0) -> Path:
    """A Hugging Face folder of a random Llama with a byte tokenizer and a chat template."""
    alphabet = {letter: index + 2 for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, **alphabet}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token=eos_token)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['role'][0] + ':' + m['content'] }}{% endfor %}"
    model = tiny("Llama", seed)
    model.config.max_position_embeddings = context
    if eos_token is None:
        model.config.eos_token_id = model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), CONTEXT, "</s>")


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with other weights and a shorter context, but the same tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("other"), 96, "</s>", seed=1)


@pytest.fixture(scope="session")
def endless_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends an answer by itself and has a context of a million tokens: a request in flight stays in flight."""
    return save_tiny(tmp_path_factory.mktemp("endless"), 1_000_000, None)


@pytest.fixture(scope="session")
def bundled() -> Path:
    return ROOT / "models" / "storyteller"

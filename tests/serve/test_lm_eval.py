"""EleutherAI's lm-evaluation-harness against the server: its results over HTTP equal a direct computation with the model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import ENVIRONMENT, RunningServer
from transformers import AutoModelForCausalLM, AutoTokenizer

TALES = [
    {"text": "The fox said to the crow,", "choices": ["“Sing to me.”", "“Purple algebra never.”"], "answer": 0},
    {"text": "Once upon a time there was a king who had three", "choices": ["carburettors", "sons", "daughters of the sea"], "answer": 1},
    {"text": "The wolf opened its mouth and", "choices": [" ate the girl", " swallowed"], "answer": 0},
    {"text": "And they all lived happily", "choices": ["ever after", "x"], "answer": 0},
]
CHOOSE = """
task: choose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""
TELL = """
task: tell
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 12, temperature: 0, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
PROGRAM = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
orders, folder = json.loads(sys.argv[1])
manager = TaskManager(include_path=folder, include_defaults=False)
answers = []
for kind, arguments, tasks, chat in orders:
    found = simple_evaluate(
        model=kind, model_args=arguments, tasks=tasks, task_manager=manager, log_samples=True, apply_chat_template=chat, bootstrap_iters=0
    )
    samples = {task: [[sample["arguments"], sample["resps"], sample["doc_id"]] for sample in found["samples"][task]] for task in tasks}
    answers.append({"samples": samples, "results": found["results"]})
json.dump(answers, open(sys.argv[2], "w"), default=str)
"""


@pytest.fixture(scope="module")
def evaluations(api: RunningServer, bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Both kinds of model, run by lm-eval in a process of its own, because it changes the environment and the event loop."""
    folder = tmp_path_factory.mktemp("eval")
    (folder / "tales.jsonl").write_text("".join(json.dumps(tale) + "\n" for tale in TALES))
    for name, form in (("choose", CHOOSE), ("tell", TELL)):
        (folder / f"{name}.yaml").write_text(form.format(data=folder / "tales.jsonl"))
    common = {"model": "storyteller", "num_concurrent": 2, "max_retries": 1}
    tokenizer = {"tokenizer_backend": "huggingface", "tokenizer": str(bundled)}
    completions = {**common, **tokenizer, "base_url": f"{api.url}/v1/completions"}
    chats = {**common, "base_url": f"{api.url}/v1/chat/completions"}
    orders = [("local-completions", completions, ["choose", "tell"], False), ("local-chat-completions", chats, ["tell"], True)]
    environment = {**ENVIRONMENT, "HF_HOME": str(folder / "hf"), "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    command = [sys.executable, "-c", PROGRAM, json.dumps([orders, str(folder)]), str(folder / "found.json")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    results: list[dict[str, Any]] = json.loads((folder / "found.json").read_text())
    return results


@pytest.fixture(scope="module")
def completions(evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    return evaluations[0]


@pytest.fixture(scope="module")
def chats(evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    return evaluations[1]


def test_log_likelihoods_are_those_of_the_model_itself(completions: dict[str, Any], bundled: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundled)
    model = AutoModelForCausalLM.from_pretrained(bundled, dtype=torch.float32).eval()
    compared = 0
    for arguments, responses, _ in completions["samples"]["choose"]:
        for (context, continuation), ((logprob, greedy),) in zip(arguments, responses, strict=True):
            ids = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]  # as the harness does
            start = len(tokenizer(context, add_special_tokens=False)["input_ids"])
            with torch.no_grad():
                logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            targets = torch.tensor(ids[start:])
            rows = logs[start - 1 : -1]
            assert float(logprob) == pytest.approx(rows.gather(-1, targets[:, None]).sum().item(), abs=1e-3)
            assert greedy == str(bool((rows.argmax(-1) == targets).all())) or greedy == bool((rows.argmax(-1) == targets).all())
            compared += 1
    assert compared == sum(len(tale["choices"]) for tale in TALES)  # type: ignore[arg-type]


def test_the_accuracy_is_that_of_the_log_likelihoods(completions: dict[str, Any]) -> None:
    right = 0
    for _, responses, document in completions["samples"]["choose"]:
        likelihoods = [float(logprob) for ((logprob, _),) in responses]
        right += likelihoods.index(max(likelihoods)) == TALES[document]["answer"]
    assert completions["results"]["choose"]["acc,none"] == pytest.approx(right / len(TALES))


def test_generated_texts_are_those_of_the_route(completions: dict[str, Any], api: RunningServer, bundled: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundled)
    for _, ((text,),), document in completions["samples"]["tell"]:
        ids = tokenizer(TALES[document]["text"], add_special_tokens=False)["input_ids"]
        expected = api.client().completions.create(model="storyteller", prompt=ids, max_tokens=12, temperature=0, stop=["."])
        assert text == expected.choices[0].text and text


def test_generated_answers_are_those_of_the_route(chats: dict[str, Any], api: RunningServer) -> None:
    for _, ((text,),), document in chats["samples"]["tell"]:
        messages: Any = [{"role": "user", "content": TALES[document]["text"]}]
        answer = api.client().chat.completions.create(model="storyteller", messages=messages, max_tokens=12, temperature=0, stop=["."])
        assert text == answer.choices[0].message.content and text

"""A batch and a fine-tuning job on the real server: nothing to install, nothing to start. The worker is a process that the server starts
when it is needed.
"""

import contextlib
import json

import psutil
from serving import RunningServer, wait_for


def workers(server: RunningServer) -> list[psutil.Process]:
    found = []
    for child in server.children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            found += [child] if "jobs" in child.cmdline() else []
    return found


def test_a_batch_of_scores_runs_by_the_filesystem_broker_beside_the_server(api: RunningServer) -> None:
    assert workers(api) == []
    client = api.client()
    texts = [f"Once upon a time there was a king who had {number} sons, and the youngest of them was a fool." for number in range(12)]
    lines = [{"custom_id": f"t{n}", "method": "POST", "url": "/v1/score", "body": {"text": text}} for n, text in enumerate(texts)]
    file = client.files.create(file=("corpus.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/score", completion_window="24h")  # type: ignore[arg-type]
    wait_for(lambda: client.batches.retrieve(batch.id).status == "completed", 240)
    batch = client.batches.retrieve(batch.id)
    assert batch.request_counts is not None and batch.request_counts.completed == 12 and batch.error_file_id is None
    assert batch.output_file_id is not None
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert [answer["custom_id"] for answer in answers] == [f"t{n}" for n in range(12)]
    alone = client.post("/score", body={"text": texts[5]}, cast_to=object)
    scored = answers[5]["response"]["body"]
    method = alone["data"][0]["method"]
    assert abs(scored["data"][0]["scores"][method] - alone["data"][0]["scores"][method]) < 1e-4 and scored["service_tier"] == "flex"
    assert len(workers(api)) == 1


def test_a_model_is_fine_tuned_and_served_beside_its_base(api: RunningServer) -> None:
    client = api.client()
    base, saying = client.models.list().data[0].id, "Good morrow, sweet coz!"
    question = [{"role": "user", "content": "Greet me."}]
    lines = [{"messages": [*question, {"role": "assistant", "content": saying}]}] * 40
    file = client.files.create(file=("greetings.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="fine-tune")
    asked = {"n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": 40, "lora_rank": 4}
    method = {"type": "supervised", "supervised": {"hyperparameters": asked}}
    jobs = client.fine_tuning.jobs
    job = jobs.create(model=base, training_file=file.id, method=method, suffix="polite", seed=1)  # type: ignore[arg-type]

    def say(model: str) -> str | None:
        answer = client.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=12)  # type: ignore[arg-type]
        return answer.choices[0].message.content

    before = say(base)
    wait_for(lambda: jobs.retrieve(job.id).status in {"succeeded", "failed"}, 400)
    job = jobs.retrieve(job.id)
    assert job.status == "succeeded" and job.fine_tuned_model is not None, job.error
    metrics = [event.data for event in jobs.list_events(job.id, limit=100) if event.type == "metrics"]
    assert [each["step"] for each in metrics] == list(range(10, 0, -1))  # type: ignore[index]
    assert metrics[0]["train_loss"] < 0.5 * metrics[-1]["train_loss"]  # type: ignore[index]
    assert client.files.content(job.result_files[0]).text.startswith("step,train_loss")
    assert say(job.fine_tuned_model) == saying and say(base) == before != saying
    card = client.models.retrieve(job.fine_tuned_model)
    assert card.parent == base  # type: ignore[attr-defined]
    assert client.models.delete(job.fine_tuned_model).deleted
    assert job.fine_tuned_model not in {model.id for model in client.models.list()}

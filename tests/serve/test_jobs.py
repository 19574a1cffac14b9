"""A batch on the real server: nothing to install, nothing to start. The worker is a process that the server starts when it is needed."""

import json

import psutil
from serving import RunningServer, wait_for


def workers(server: RunningServer) -> list[psutil.Process]:
    return [child for child in server.children() if "jobs" in child.cmdline()]


def test_a_batch_of_scores_runs_by_the_filesystem_broker_beside_the_server(api: RunningServer) -> None:
    assert workers(api) == []
    client = api.client()
    texts = [f"Once upon a time there was a king who had {number} sons, and the youngest of them was a fool." for number in range(12)]
    lines = [{"custom_id": f"t{n}", "method": "POST", "url": "/v1/score", "body": {"text": text}} for n, text in enumerate(texts)]
    file = client.files.create(file=("corpus.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/score", completion_window="24h")  # type: ignore[arg-type]
    wait_for(lambda: client.batches.retrieve(batch.id).status == "completed", 60)
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

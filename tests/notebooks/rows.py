"""Synthetic runs for the notebooks, with known answers."""

import json
import random

MANIFEST = {
    "kind": "manifest",
    "time": "2026-11-21T00:00:00+00:00",
    "model": {"id": "fake", "owned_by": "litmus", "dtype": "float32", "quantize": "none", "slots": 2, "device": "cpu"},
    "quantization": "none",
    "machine": {"cpus": 2, "processor": "a processor"},
}


def write(path, rows, manifest=MANIFEST, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in [manifest, *rows]) + end)
    return path


def chat(clients, started_s, **fields):
    row = {"kind": "chat", "clients": clients, "started_s": started_s, "status": 200, "outcome": "ok", "e2e_ms": 1000.0}
    row |= {"reason": None, "ttft_ms": 100.0, "tpot_ms": 50.0, "itl_ms": [50.0], "prompt_tokens": 5, "completion_tokens": 19}
    return row | {"stage": 0, "rate": None, "warm_up": False} | fields


def ladder(tokens_per_s):
    """One second of chats for each number of users, who share the tokens evenly. TTFT is 100 ms times the number of users."""
    for clients, total in tokens_per_s.items():
        for number in range(clients):
            yield chat(clients, 0.001 * number, ttft_ms=100.0 * clients, tpot_ms=5.0 * clients, completion_tokens=total // clients)
        yield chat(clients, 0.0, warm_up=True, ttft_ms=90_000.0, completion_tokens=100_000)


def start(storage, by, quantize, load_s, repeat):
    stages = {"open": 0.1, "deserialize": load_s - 0.4, "quantize": 0.1, "build": 0.1, "rest": 0.1}
    return {
        "kind": "start",
        "repeat": repeat,
        "model": "fake",
        "storage": storage,
        "by": by,
        "quantize": quantize,
        "cores": 2,
        "load_s": load_s + 0.001 * repeat,
        "total_s": load_s + 3,
        "first_token_s": 0.1,
        "bytes": 10**9,
        "bytes_per_s": 10**9 / load_s,
        "stages": {name: {"s": seconds} for name, seconds in stages.items()},
        "anon_bytes": 2 * 10**9,
        "page_cache_bytes": 0 if storage == "tmpfs" else 10**9,
        "tmpfs_bytes": 10**9 if storage == "tmpfs" else 0,
        "ram_bytes": 3 * 10**9,
    }


def starts():
    """Cold takes a second longer; warm is as fast as a ramdisk."""
    factors = {
        "models": ["fake"],
        "storages": ["cold", "warm", "tmpfs"],
        "ways": ["mmap", "read"],
        "weights": ["none", "nf4"],
        "cores": [2],
    }
    manifest = {**MANIFEST, "model": None, "plan": {"models": {"fake": "1"}, "factors": factors}}
    cells = [("mmap", "none", 1.0), ("read", "none", 1.2), ("mmap", "nf4", 2.0), ("floor", "none", 0.6)]
    rows = [
        start(storage, by, quantize, load_s + (storage == "cold"), repeat)
        for repeat in range(4)
        for storage in factors["storages"]
        for by, quantize, load_s in cells
    ]
    return manifest, [*rows, {"kind": "refused", "why": "pages stayed"}]


def texts():
    """Scores that tell GPT-4's news from people's, but not GPT-2's stories; a border that no novel and every manual lies beyond."""
    draw = random.Random(0)

    def text(name, machine, group, mean, **more):
        combined = round(draw.gauss(mean, 0.1), 4)
        scores = [combined, round(10 - combined, 4), round(draw.gauss(0, 1), 4)]
        place = {"group": group, "tokens": 200, **more}
        return {"kind": "text", "set": name, "machine": machine, "scores": scores, "judged": combined, **place}

    rows = [text("xsum_gpt-4", machine, group, float(machine)) for group in range(120) for machine in (False, True)]
    rows += [text("writing_gpt2-xl", machine, group, 0.0) for group in range(120, 240) for machine in (False, True)]
    rows += [
        text("people", False, f"{kind}/{n}", mean, domain=kind) for kind, mean in (("novels", -2.0), ("manuals", 3.0)) for n in range(9)
    ]
    span = {"min_tokens": 192, "max_tokens": None}
    borders = [
        {"kind": "border", "method": method, "higher": method != "perplexity", **span, "value": 2.0, "target": target}
        for method in ("combined", "perplexity", "fast_detect")
        for target in (0.05, 0.01)
    ]
    return {**MANIFEST, "methods": ["combined", "perplexity", "fast_detect"]}, [*borders, *rows]

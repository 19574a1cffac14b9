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
    """Scores that tell stories at T=0.7 from human texts, but neither stories at T=1 nor texts of another model."""
    draw = random.Random(0)
    means = {"human": 1.0, "T=0.7": 0.0, "T=0.7, top_p=0.9": 0.0, "T=1": 1.0}

    def text(name, domain, group, mean):
        scores = [round(draw.gauss(mean, 0.1), 4), round(draw.gauss(-mean, 0.1), 4)]
        machine = domain not in ("human", None) or (domain is None and group % 2 == 1)
        extra = {"domain": domain} if domain else {}
        return {"kind": "text", "set": name, "machine": machine, "group": group // 2, **extra, "tokens": 200, "scores": scores}

    rows = [text("stories", domain, group, mean) for domain, mean in means.items() for group in range(120)]
    rows += [text("xsum_other", None, group, 1.0) for group in range(240)]
    span = {"min_tokens": 128, "max_tokens": 256}
    borders = [
        {"kind": "border", "method": "binoculars", "higher": False, **span, "value": 0.5, "target": 0.05},
        {"kind": "border", "method": "likelihood_ratio", "higher": True, **span, "value": -0.5, "target": 0.05},
    ]
    return {**MANIFEST, "methods": ["binoculars", "likelihood_ratio"]}, [*borders, *rows]

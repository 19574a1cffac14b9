"""What `app.tuning` tells and leaves in its folder, without a model: starts at once, and does as the training file says.

A line may have: `wrong`, so that it is refused; `die N`, so that the process is killed once after step N; `always die`; `lose N`, so
that every process is killed after step N; `slow`.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

STEPS = 6
stopped = []


def tell(kind, **values):
    sys.stdout.write(json.dumps({"kind": kind, **values}) + "\n")
    sys.stdout.flush()


def stop(number, frame):
    stopped.append(number)


def examine(folder, text):
    if "wrong" in text:
        tell("event", level="error", message="training file, line 1: the line is wrong", line=1)
        tell("failed", code="invalid_training_file", message="1 line is wrong; line 1", param="training_file")
        return
    used = {"n_epochs": 2, "batch_size": 1, "learning_rate_multiplier": 1.0, "lora_alpha": 32, "quantize": "none"}
    tell("examined", hyperparameters=used)


def train(folder, text):
    saved = folder / "saved"
    first = int(saved.read_text()) if saved.exists() else 0
    tell("resumed", step=first, told=first)
    for step in range(first + 1, STEPS + 1):
        data = {"step": step, "total_steps": STEPS, "train_loss": 3.0 / step}
        tell("metrics", message=f"Step {step}/{STEPS}", data=data, trained_tokens=step, eta_s=1.0)
        if f"die {step}" in text and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if f"lose {step}" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        while "slow" in text and not stopped and step >= 3 and not (folder / "go").exists():
            time.sleep(0.01)
        if stopped:
            saved.write_text(str(step))
            tell("stopped")
            return
        if step % 3 == 0:
            saved.write_text(str(step))
            tell("checkpoint", step=step, metrics=data)
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / "results.csv").write_text("step,train_loss\n")
    tell("done", trained_tokens=STEPS)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    folder = Path(sys.argv[2])
    text = Path(json.loads((folder / "run.json").read_text())["training_file"]).read_text()
    if "always die" in text and sys.argv[1] == "train":
        os.kill(os.getpid(), signal.SIGKILL)
    (examine if sys.argv[1] == "examine" else train)(folder, text)

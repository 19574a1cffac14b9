"""The Jobs tab: forms that start batches and fine-tuning, and the list of both. Its scripts ask the page's own routes."""

from pathlib import Path

import gradio as gr

from ui.score import tab as score

FOLDER = Path(__file__).parent


def jobs_tab() -> None:
    """Builds the tab. rows.js of the score tab saves files."""
    scripts = (score.FOLDER / "rows.js", *(FOLDER / f"{name}.js" for name in ("lines", "starts", "jobs")))
    script = "\n".join(path.read_text(encoding="utf-8") for path in scripts)
    gr.HTML((FOLDER / "jobs.html").read_text(encoding="utf-8"), js_on_load=script, padding=False)

"""The page's own routes beside Gradio's: documents, scores, flags and jobs, by their paths under the page. The guard lets visitors in."""

from collections.abc import Mapping

from ui.calls import MAX_BYTES
from ui.documents.route import documents_route
from ui.flags.file import FlagFile
from ui.flags.route import flags_route
from ui.guard import Route
from ui.jobs.route import jobs_routes
from ui.score.route import scores_route
from ui.visitors import Visitors


def own_routes(visitors: Visitors, flags: FlagFile | None = None, max_file_bytes: int = MAX_BYTES) -> Mapping[str, Route]:
    return {
        "/documents": documents_route(max_file_bytes),
        "/scores": scores_route(visitors),
        "/flags": flags_route(flags),
        **jobs_routes(visitors),
    }

"""The System tab: what the server does, drawn live while the tab is open; its models; the memory that a model would take.

A visitor's page keeps the last minutes it has seen. With keys, the server tells only administrators.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr

from ui.client import MissingRoute, ServerError
from ui.markup import alert_html
from ui.system import client, view
from ui.system.estimate import estimate_form
from ui.system.history import History, extended
from ui.system.models import ModelsPanel, listed
from ui.system.rights import may_administer
from ui.visitors import Visitors

REFRESH_S = 2.0
# The browser says whether the tab is in view. Gradio tells that a tab was selected, but not that it was left.
IN_VIEW = "(...inputs) => [document.getElementById('system-state')?.checkVisibility() ? 'yes' : '', ...inputs.slice(1)]"
SHARED_KEY = "This page calls the server with one key for all of its visitors, so it does not show what is for administrators."
Refresh = Callable[[gr.Request, str, History], Awaitable[tuple[Any, ...]]]


def system_tab(visitors: Visitors, tab: gr.Tab) -> None:
    """Builds the tab inside `tab`."""
    seen = gr.State(())
    in_view = gr.Textbox(value="", visible=False)
    timer = gr.Timer(REFRESH_S, active=False)
    problem = gr.HTML("", elem_id="system-problem", padding=False)
    state = gr.HTML(view.ASKING, elem_id="system-state", padding=False)
    with gr.Column(visible=False, elem_id="system-tools") as tools:
        panel = ModelsPanel(visitors)
        estimate_form(visitors)
    hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
    outputs = [problem, state, seen, timer, tools, *panel.outputs]
    timer.tick(refresh_handler(visitors), [in_view, seen], outputs, js=IN_VIEW, **hidden)
    tab.select(refresh_handler(visitors), [in_view, seen], outputs, js="(...inputs) => ['selected', ...inputs.slice(1)]", **hidden)


def refresh_handler(visitors: Visitors) -> Refresh:
    async def refresh(request: gr.Request, in_view: str, seen: History) -> tuple[Any, ...]:
        """Asks the server and redraws all but the forms. Stops the timer where nobody looks, or the visitor may not see it."""
        nothing = (gr.skip(),) * ModelsPanel.OUTPUTS
        if not in_view:
            return (gr.skip(),) * 3 + (gr.Timer(active=False), gr.skip(), *nothing)
        if visitors.share_a_key:
            return alert_html(SHARED_KEY), "", (), gr.Timer(active=False), gr.update(visible=False), *nothing
        caller = visitors.client(request.request)
        try:
            overview = await client.overview(caller)
            administers = await may_administer(visitors, request.request)
            models = await listed(caller, first=in_view == "selected") if administers else nothing
        except client.NotAdmin as error:
            return alert_html(error.message), "", (), gr.Timer(active=False), gr.update(visible=False), *nothing
        except MissingRoute as error:
            return alert_html(error.message), "", (), gr.Timer(active=False), gr.skip(), *nothing
        except ServerError as error:
            return alert_html(error.message), gr.skip(), gr.skip(), gr.Timer(active=True), gr.skip(), *nothing
        history = extended(seen, overview)
        return "", view.state_html(overview, history), history, gr.Timer(active=True), gr.update(visible=administers), *models

    return refresh

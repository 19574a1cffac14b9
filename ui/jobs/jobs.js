// The lists of batches and fine-tuning jobs, asked for while the tab is in view. Comes after rows.js, lines.js and starts.js.
// An item is replaced only when it has changed, and what had the focus in it keeps it.
const LIVE_MS = 2000, QUIET_MS = 10_000, ASKED_MS = 5000; // between two looks, with and without a job that runs; for how long a cancel can be confirmed
const EMPTY = { batches: "There is no batch yet.", tunings: "There is no fine-tuning job yet." };
const lists = Object.fromEntries([...element.querySelectorAll("[data-list]")].map((list) => [list.dataset.list, list]));
const open = new Set(), drawn = new Map(); // ids of jobs whose curve is shown; HTML by id
let seen = null, looking = false, timer = null; // the newest fine-tuning job that was seen: its curve opens by itself

const isInView = () => element.checkVisibility() && !document.hidden;

async function lookAtJobs() {
    clearTimeout(timer);
    if (looking || !element.isConnected || !isInView()) return;
    looking = true;
    let wait = QUIET_MS;
    try {
        const query = new URLSearchParams([...open].map((id) => ["open", id]));
        const answer = await litmus.call(`jobs?${query}`, { method: "GET" });
        if (answer.problem) answer.batches = answer.tunings = { items: [], problem: answer.problem };
        drawModels(answer.models ?? []);
        for (const kind of Object.keys(lists)) drawList(kind, answer[kind]);
        if (answer.batches.items.some((item) => item.live) || answer.tunings.items.some((item) => item.live)) wait = LIVE_MS;
        if (openNewest(answer.tunings.items[0]?.id)) wait = 0;
    } catch (error) {
        for (const list of Object.values(lists)) tell(list, error.message, true);
    } finally {
        looking = false;
        timer = setTimeout(lookAtJobs, wait);
    }
}

function openNewest(id) {
    if (!id || id === seen) return false;
    seen = id;
    open.add(id);
    return true;
}

function tell(list, sentence, isProblem) {
    const said = list.querySelector(".state-of-list");
    if (said.textContent !== sentence) said.textContent = sentence;
    said.classList.toggle("problem", isProblem);
}

function drawList(kind, { items, problem, off }) {
    const list = lists[kind], rows = list.querySelector("ul");
    tell(list, problem ?? (items.length ? "" : EMPTY[kind]), Boolean(problem) && !off);
    element.querySelector(`form[data-start=${kind}]`).hidden = Boolean(off);
    const ids = new Set(items.map((item) => item.id));
    for (const row of [...rows.children]) if (!ids.has(row.dataset.id) && !problem) row.remove();
    let place = rows.firstElementChild;
    for (const item of items) {
        let row = [...rows.children].find((each) => each.dataset.id === item.id);
        if (!row) row = rows.insertBefore(Object.assign(document.createElement("li"), { className: "job" }), place);
        row.dataset.id = item.id;
        place = row.nextElementSibling;
        if (drawn.get(item.id) !== item.html) replace(row, item);
    }
}

function replace(row, { id, html }) {
    const focused = row.contains(document.activeElement) ? keyOf(document.activeElement) : null;
    const asked = row.querySelector("[data-asked]");
    row.innerHTML = html;
    drawn.set(id, html);
    for (const link of row.querySelectorAll("a[data-file]")) link.href = contentOf(link.dataset.file);
    if (asked) confirmCancel(row.querySelector("[data-do=cancel]"));
    if (focused) [...row.querySelectorAll("button, a")].find((each) => keyOf(each) === focused)?.focus();
}

const keyOf = (control) => `${control.dataset.do ?? ""} ${control.dataset.file ?? ""}`;
const contentOf = (file) => litmus.route(`jobs/content?file=${encodeURIComponent(file)}`);

function drawModels(names) {
    const select = element.querySelector("select[name=model]");
    if (!names.length || names.join() === [...select.options].map((option) => option.value).join()) return;
    const chosen = select.value;
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(chosen)) select.value = chosen;
}

// The first press asks, the second one cancels: what is cancelled cannot go on.
function confirmCancel(button) {
    if (!button) return;
    button.dataset.asked = "yes";
    button.textContent = "Yes, cancel it";
    clearTimeout(confirmCancel.timer);
    confirmCancel.timer = setTimeout(() => {
        for (const each of element.querySelectorAll("[data-asked]")) {
            delete each.dataset.asked;
            each.textContent = "Cancel";
        }
    }, ASKED_MS);
}

async function change({ dataset: { do: what, kind, id } }) {
    await ask("jobs/change", { kind, change: what, id });
    await lookAtJobs();
}

const DO = {
    cancel: async (button) => {
        if (!button.dataset.asked) return confirmCancel(button);
        await change(button);
    },
    pause: change,
    resume: change,
    fold: async ({ dataset: { id } }) => {
        if (!open.delete(id)) open.add(id);
        await lookAtJobs();
    },
    csv: async ({ dataset: { file, id } }) => {
        const response = await fetch(contentOf(file));
        if (!response.ok) throw new Error("The answers could not be fetched. Try again later.");
        save(`${id}.csv`, "text/csv", "\ufeff" + csvOf(scoreRows(await response.text())));
    },
};

element.addEventListener("click", async (event) => {
    const button = event.target instanceof Element && event.target.closest("button[data-do]");
    if (!button) return;
    const list = button.closest("[data-list]");
    try {
        await DO[button.dataset.do](button);
    } catch (error) {
        tell(list, error.message, true);
    }
});
element.addEventListener("submit", (event) => {
    event.preventDefault();
    start(event.target, lookAtJobs);
});
element.querySelector("form[data-start=batches] input[type=file]").addEventListener("change", (event) => look(event.target.form));
document.addEventListener("visibilitychange", lookAtJobs);
new IntersectionObserver(lookAtJobs).observe(element.querySelector(".jobs"));
lookAtJobs();

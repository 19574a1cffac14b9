// Files of texts: each is posted to the page's own route, which returns its texts; these are scored a few at a time, and the table fills.
// Comes after rows.js. The texts stay in this page's memory, so that a row can be looked at; nothing is stored.
const MAX_TEXTS = 8, MAX_CHARACTERS = 60_000; // of one call, so that the bar moves and Cancel stops soon
const BAND_ORDER = ["machine", "leans_machine", "unclear", "leans_human", "human"];
const input = element.querySelector("input[type=file]"), working = element.querySelector(".working"), table = element.querySelector(".table");
const CANCELLED = "Cancelled. Press “Try failed ones again” to score it.";
let rows = [], unread = [], sorted = { key: null, descending: false }, stop = null; // unread: files that wait to be read, the one that is being read first

function tell(sentence, share) {
    working.hidden = stop === null;
    working.querySelector("[role=status]").textContent = sentence;
    working.querySelector("progress").value = share;
}

async function readFile(file, signal) {
    const limit = Number(input.dataset.limit);
    if (file.size > limit) {
        const megabytes = Math.ceil(file.size / 1e5) / 10;
        return [{ name: file.name, state: "failed", error: `This file has ${megabytes.toLocaleString("en")} MB; a file may have ${limit / 1e6} MB. Split it, or upload a part of it.` }];
    }
    try {
        const answer = await litmus.call("documents", { body: file, headers: { "X-File-Name": encodeURIComponent(file.name), "Content-Type": "application/octet-stream" }, signal });
        if (answer.problem) throw new Error(answer.problem);
        const texts = answer.texts.map((part) => ({ name: part.name, text: part.text, state: part.problem ? "failed" : "waiting", error: part.problem || undefined }));
        if (texts.length === 1) texts[0].note = answer.note;
        else if (answer.note) texts.unshift({ name: file.name, kind: "file", note: answer.note });
        return texts;
    } catch (error) {
        if (error.name === "AbortError") throw error;
        return [{ name: file.name, file, state: "failed", error: error.message }];
    }
}

function nextTexts() {
    const found = [];
    let characters = 0;
    for (const row of rows) {
        if (row.state !== "waiting") continue;
        if (found.length && (found.length === MAX_TEXTS || characters + row.text.length > MAX_CHARACTERS)) break;
        found.push(row);
        characters += row.text.length;
    }
    return found;
}

async function scoreSome(some, signal) {
    const choice = document.querySelector("#score-choice [data-model]")?.dataset ?? {};
    try {
        const body = JSON.stringify({ texts: some.map((row) => row.text), model: choice.model || null, method: choice.method || null });
        const answer = await litmus.call("scores", { body, signal });
        answer.rows.forEach((found, index) => Object.assign(some[index], found, { state: found.error ? "failed" : "done" }));
    } catch (error) {
        if (error.name === "AbortError") throw error;
        for (const row of some) Object.assign(row, { state: "failed", error: error.message });
    }
}

const charactersOf = (some) => some.reduce((sum, row) => sum + row.text.length, 0);

// In words, at the pace of what this run has scored. Nothing before its first texts are scored, and where little is left.
function timeLeft({ characters, ms }, waiting) {
    const seconds = ms / 1000 * waiting / characters;
    if (!(seconds >= 5)) return "";
    if (seconds < 90) return `, about ${Math.ceil(seconds / 5) * 5} s left`;
    return `, about ${Math.round(seconds / 60)} min left`;
}

async function readAll(signal) {
    for (let read = 0; unread.length; read++) {
        const file = unread[0], count = read + unread.length;
        tell(`Reading ${file.name}, file ${read + 1} of ${count}.`, read / count / 2);
        const found = await readFile(file, signal); // meanwhile the rows may become others
        signal.throwIfAborted();
        unread.shift();
        rows.push(...found);
        draw();
    }
}

// Reads the files, then scores what waits. Files that come meanwhile are read before the next texts are scored.
async function run(files) {
    unread.push(...files);
    if (stop) return;
    stop = new AbortController();
    const { signal } = stop;
    try {
        await readAll(signal);
        const pace = { characters: 0, ms: 0 };
        for (let some = nextTexts(); some.length; some = nextTexts()) {
            const texts = rows.filter((row) => row.kind !== "file"), waiting = texts.filter((row) => row.state === "waiting"), done = texts.length - waiting.length;
            tell(`Scoring: ${done} of ${texts.length} texts done${timeLeft(pace, charactersOf(waiting))}.`, 0.5 + done / texts.length / 2);
            const begun = performance.now();
            await scoreSome(some, signal);
            pace.ms += performance.now() - begun;
            pace.characters += charactersOf(some);
            draw();
            await readAll(signal);
        }
    } catch (error) {
        if (error.name !== "AbortError") throw error;
        for (const row of rows) if (row.state === "waiting") Object.assign(row, { state: "failed", error: CANCELLED });
        rows.push(...unread.splice(0).map((file) => ({ name: file.name, file, state: "failed", error: CANCELLED })));
    } finally {
        stop = null;
        tell("", 0);
        draw();
    }
}

function again() {
    const files = rows.filter((row) => row.state === "failed" && row.file).map((row) => row.file);
    rows = rows.filter((row) => !(row.state === "failed" && row.file));
    for (const row of rows) if (row.state === "failed" && row.text) Object.assign(row, { state: "waiting", error: undefined });
    run(files);
    draw();
}

// Gradio's box takes a text as if it had been typed, and its button scores it.
function lookAt(row) {
    const box = document.querySelector("#score-text textarea");
    litmus.fill(box, row.text);
    box.scrollIntoView({ block: "center" });
    setTimeout(() => document.querySelector("#score-button")?.click(), 50);
}

// Each part of the table has its role: on a phone the style lays them out as blocks, and browsers then take a table for none.
function cell(line, content, className = "", label = "") {
    const made = line.insertCell();
    made.role = "cell";
    made.className = className;
    if (label) made.dataset.label = label;
    made.append(content ?? "");
    return made;
}

function numberCells(line, row) {
    cell(line, row.probability === null ? "–" : asPercent(row.probability), "number", "Machine text");
    cell(line, row.score === null ? "–" : asScore(row.score), "number", "Score");
    cell(line, row.threshold === null ? "–" : asScore(row.threshold), "number", "Threshold");
    cell(line, row.tokens.toLocaleString("en"), "number", "Tokens");
}

function drawRow(row) {
    const line = document.createElement("tr"), name = document.createElement("th");
    line.role = "row";
    Object.assign(name, { scope: "row", role: "rowheader" });
    name.append(row.name);
    if (row.note && row.kind !== "file") name.append(Object.assign(document.createElement("small"), { textContent: row.note }));
    line.append(name);
    if (row.kind === "file") {
        cell(line, row.note).colSpan = 6;
        return line;
    }
    if (row.state === "done") {
        const badge = Object.assign(document.createElement("span"), { className: `badge ${row.band}`, textContent: row.verdict });
        cell(line, badge).append(...row.warnings.slice(0, 1).map((warning) => Object.assign(document.createElement("small"), { textContent: warning })));
        numberCells(line, row);
    } else {
        cell(line, row.error ?? "Waiting.", row.error ? "problem" : "").colSpan = 5;
    }
    const look = Object.assign(document.createElement("button"), { type: "button", textContent: "Look", disabled: !row.text });
    look.setAttribute("aria-label", `Look at ${row.name}`);
    look.addEventListener("click", () => lookAt(row));
    cell(line, row.text ? look : "", "look");
    return line;
}

const rank = (row, key) => (key === "verdict" ? (row.band ? BAND_ORDER.indexOf(row.band) : null) : row[key] ?? null);

function inOrder() {
    const { key, descending } = sorted;
    if (key === null) return rows;
    const files = rows.filter((row) => row.kind === "file"), texts = rows.filter((row) => row.kind !== "file");
    const compare = (one, two) => (typeof one === "string" ? one.localeCompare(two, "en", { numeric: true }) : one - two) * (descending ? -1 : 1);
    const inOrder = texts.sort((one, two) => {
        const [first, second] = [rank(one, key), rank(two, key)];
        return first === null || second === null ? (first === null) - (second === null) : compare(first, second);
    });
    return [...files, ...inOrder];
}

function draw() {
    table.hidden = rows.length === 0;
    element.querySelector("tbody").replaceChildren(...inOrder().map(drawRow));
    element.querySelector("[data-do=again]").hidden = !rows.some((row) => row.state === "failed" && (row.text || row.file));
    for (const button of element.querySelectorAll("th [data-key]")) {
        const state = button.dataset.key === sorted.key ? (sorted.descending ? "descending" : "ascending") : "none";
        button.parentElement.setAttribute("aria-sort", state);
    }
}

const ACTIONS = {
    cancel: () => stop?.abort(),
    csv: () => save("litmus-scores.csv", "text/csv", "\ufeff" + csvOf(inOrder())),
    jsonl: () => save("litmus-scores.jsonl", "application/jsonl", jsonLinesOf(inOrder())),
    html: () => save("litmus-report.html", "text/html", reportOf(inOrder())),
    again,
    clear: () => {
        stop?.abort();
        rows = [];
        unread = [];
        draw();
    },
};

element.addEventListener("click", (event) => {
    const button = event.target instanceof Element && event.target.closest("button");
    if (!button) return;
    if (button.dataset.do) ACTIONS[button.dataset.do]();
    if (button.dataset.key) {
        sorted = { key: button.dataset.key, descending: sorted.key === button.dataset.key && !sorted.descending };
        draw();
    }
});
input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = "";
    run(files);
});
litmus.takeFiles(document.querySelector("#score-tab"), run, (isOver) => element.querySelector(".drop").classList.toggle("over", isOver));

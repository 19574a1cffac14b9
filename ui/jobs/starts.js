// The two forms: a file goes to the server by the page's own route, then the job is started. Comes after rows.js and lines.js.
const JSONL = "application/jsonl", PEEK_BYTES = 1_000_000;
const parts = (form) => ({ go: form.querySelector(".go"), bar: form.querySelector("progress"), said: form.querySelector(".said") });
const tellForm = (form, sentence, isProblem = false) => {
    const { said } = parts(form);
    said.textContent = sentence;
    said.classList.toggle("problem", isProblem);
};
let written = null; // {name, blob} of the texts that were chosen, as the lines of a batch

// fetch does not tell how far an upload is.
function upload(blob, name, purpose, onprogress) {
    return new Promise((resolve, reject) => {
        const request = new XMLHttpRequest();
        request.open("POST", litmus.route("jobs/files"));
        request.setRequestHeader("X-File-Name", encodeURIComponent(name));
        request.setRequestHeader("X-Purpose", purpose);
        request.setRequestHeader("Content-Type", "application/octet-stream");
        request.responseType = "json";
        request.upload.onprogress = (event) => onprogress(event.loaded / event.total);
        request.onload = () => {
            const { id, problem, detail } = request.response ?? {};
            if (id) resolve(id);
            else reject(new Error(problem ?? detail ?? `The server answered with status ${request.status}. Try again later.`));
        };
        request.onerror = () => reject(new Error("The page's server does not answer. Check the connection, then try again."));
        request.send(blob);
    });
}

async function ask(route, fields) {
    const answer = await litmus.call(route, { body: JSON.stringify(fields), headers: { "Content-Type": "application/json" } });
    if (answer.problem) throw new Error(answer.problem);
    return answer;
}

async function look(form) {
    const [file] = form.file.files, found = form.querySelector(".found");
    written = null;
    tellForm(form, "");
    form.endpoint.disabled = false;
    found.textContent = "";
    if (!file) return;
    if (/\.jsonl$/i.test(file.name)) {
        const url = endpointOf(await file.slice(0, PEEK_BYTES).text());
        if ([...form.endpoint.options].some((option) => option.value === url)) form.endpoint.value = url;
        return;
    }
    try {
        const texts = textsOf(file.name, decoded(new Uint8Array(await file.arrayBuffer())));
        written = { name: file.name, blob: new Blob(requestLines(texts), { type: JSONL }) };
        form.endpoint.value = "/v1/score";
        form.endpoint.disabled = true;
        found.textContent = `${texts.length.toLocaleString("en")} ${texts.length === 1 ? "text" : "texts"} to score. The first begins: “${texts[0].text.trim().slice(0, 60)}”`;
    } catch (error) {
        tellForm(form, error.message, true);
    }
}

async function startBatch(form, onprogress) {
    const [file] = form.file.files;
    if (!written && !/\.jsonl$/i.test(file.name)) return look(form);
    const id = await upload(written?.blob ?? file, written ? `${file.name}.jsonl` : file.name, "batch", onprogress);
    await ask("jobs/batches", { file: id, endpoint: form.endpoint.value, name: file.name });
    return "The batch has begun.";
}

async function startTuning(form, onprogress) {
    const [file] = form.file.files, [other] = form.valid.files;
    const id = await upload(file, file.name, "fine-tune", onprogress);
    const valid = other ? await upload(other, other.name, "fine-tune", onprogress) : null;
    const epochs = form.epochs.value.trim() ? Number(form.epochs.value) : null;
    await ask("jobs/tunings", { file: id, valid, model: form.model.value, epochs, suffix: form.suffix.value.trim() || null, name: file.name });
    return "The job has begun. It waits if another one is being trained.";
}

const STARTS = { batches: startBatch, tunings: startTuning };

async function start(form, onstarted) {
    const { go, bar } = parts(form);
    go.disabled = true;
    bar.hidden = false;
    tellForm(form, "Uploading.");
    try {
        const sentence = await STARTS[form.dataset.start](form, (share) => (bar.value = share));
        if (!sentence) return;
        form.file.value = "";
        if (form.valid) form.valid.value = "";
        if (form.dataset.start === "batches") await look(form);
        tellForm(form, sentence);
        onstarted();
    } catch (error) {
        tellForm(form, error.message, true);
    } finally {
        go.disabled = false;
        bar.hidden = true;
        bar.value = 0;
    }
}

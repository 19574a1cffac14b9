// The result of one text: whether it is still of what is chosen; and its buttons, which save it without the text, and say that its verdict is wrong.
// Comes after tokens.js and rows.js.
const resultRow = () => ({ name: "pasted text", ...JSON.parse(element.querySelector("[data-row]").dataset.row) });
const sentText = () => document.querySelector("#score-text textarea")?.value ?? "";

function saveResult(kind) {
    const row = resultRow();
    if (kind === "html") save("litmus-report.html", "text/html", reportOf([row]));
    else save("litmus-score.json", "application/json", JSON.stringify(exported(row), null, 1) + "\n");
}

async function sendFlag(form) {
    const row = resultRow(), answers = new FormData(form), output = form.querySelector("output"), button = form.querySelector("button");
    const kept = answers.get("keep") ? { text: sentText() } : {};
    const { hash, model, verdict, method, score, threshold } = row;
    button.disabled = true;
    try {
        await litmus.call("flags", { body: JSON.stringify({ about: "score", label: answers.get("label"), reason: answers.get("reason"), hash, model, verdict, method, score, threshold, ...kept }) });
        output.textContent = answers.get("keep") ? "Thank you. This and the text were kept." : "Thank you. This was kept, without the text.";
    } catch (error) {
        output.textContent = error.message;
        button.disabled = false;
    }
}

element.addEventListener("click", (event) => {
    const button = event.target instanceof Element && event.target.closest("[data-save]");
    if (button) saveResult(button.dataset.save);
});
element.addEventListener("submit", (event) => {
    event.preventDefault();
    sendFlag(event.target);
});

// Text, method and model: what the result is of, and what the page has now.
let asked = [], chosen = [];

function difference() {
    if (asked[0] !== chosen[0]) return "This result is of the text before your change. Press Score.";
    return asked.some((each, index) => each !== chosen[index]) ? "This result is of another method or model than is chosen now. Press Score." : "";
}

function compare() {
    const report = element.querySelector(".report"), sentence = difference();
    if (!report) return;
    report.classList.toggle("old", sentence !== "");
    report.querySelector(".changed").textContent = sentence;
}

document.addEventListener("litmus-asked", ({ detail }) => (asked = detail));
document.addEventListener("litmus-chosen", ({ detail }) => {
    chosen = detail;
    compare();
});

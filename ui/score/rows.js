// What the result of one text and the table of many share: rows as files.
// A row has a hash of its text, never the text. A row of the kind "file" has no text: it says in its note what of a file was left out or assumed.
const COLUMNS = ["name", "hash", "verdict", "probability", "low", "high", "method", "score", "threshold", "false_positive_rate", "n", "tokens",
    "model", "precision", "calibration", "warnings", "error", "note"];
const exported = (row) => Object.fromEntries(COLUMNS.map((name) => [name, name === "warnings" ? (row.warnings ?? []).join(" | ") : row[name] ?? null]));
const asPercent = (value) => (value > 0.99 ? "over 99%" : value < 0.01 ? "under 1%" : `${Math.round(100 * value)}%`);
const asScore = (value) => value.toLocaleString("en", { minimumFractionDigits: 3, maximumFractionDigits: 3 });

function save(name, type, content) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// A table program takes a cell that begins with one of these for a formula.
function csvCell(value) {
    if (value === null) return "";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

const csvOf = (rows) => [COLUMNS, ...rows.map((row) => Object.values(exported(row)))].map((row) => row.map(csvCell).join(",")).join("\r\n") + "\r\n";
const jsonLinesOf = (rows) => rows.map((row) => JSON.stringify(exported(row)) + "\n").join("");
const escapeHtml = (value) => String(value).replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);

function reportRow(row) {
    const facts = row.kind === "file" ? [] : row.error
        ? [["Not scored", row.error]]
        : [
            ["What it means", row.meaning],
            ["Probability of machine text", row.probability === null ? "none" : `${asPercent(row.probability)} (95% interval ${asPercent(row.low)} to ${asPercent(row.high)}), if half of all texts are`],
            ["Score", row.score === null ? "none" : `${asScore(row.score)} (${row.method}; ${row.direction} is more machine-like)`],
            ["Threshold of a machine verdict", row.threshold === null ? "none" : asScore(row.threshold)],
            ["Human texts wrongly flagged at it", row.false_positive_rate === null ? "not measured" : `${(1000 * row.false_positive_rate).toFixed(1)} of 1,000, measured on ${row.n.toLocaleString("en")}`],
            ["Scored tokens", `${row.tokens.toLocaleString("en")}${row.truncated ? ", only the beginning of the text" : ""}`],
            ...(row.warnings.length ? [["Warnings", row.warnings.join("; ")]] : []),
            ["Model", `${row.model}, ${row.precision}`],
            ["Calibration", row.calibration ?? "none"],
        ];
    const note = row.note ? [["About the file", row.note]] : [];
    const items = [...facts, ...note, ...(row.hash ? [["SHA-256 of the text", row.hash]] : [])].map(([name, value]) => `<dt>${escapeHtml(name)}</dt><dd>${escapeHtml(value)}</dd>`);
    return `<section><h2>${escapeHtml(row.name)}${row.kind === "file" ? "" : `: ${escapeHtml(row.verdict ?? "not scored")}`}</h2><dl>${items.join("")}</dl></section>`;
}

function reportOf(rows) {
    const caveat = document.querySelector(".caveat")?.textContent ?? "";
    const style = "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}dl{display:grid;grid-template-columns:14rem 1fr;gap:.2rem 1rem}dt{color:#555}dd{margin:0;overflow-wrap:anywhere}h2{border-top:1px solid #ccc;padding-top:1rem}";
    return `<!doctype html><html lang="en"><meta charset="utf-8"><title>Litmus report</title><style>${style}</style><h1>Litmus report</h1>`
        + `<p>Made ${new Date().toISOString().slice(0, 16).replace("T", " ")} UTC. The texts are not in this file; a hash tells whether a text is the one that was scored.</p>`
        + `<p><strong>${escapeHtml(caveat)}</strong></p>${rows.map(reportRow).join("")}</html>\n`;
}

// Texts as the lines of a batch, and the answers of a batch of scores as a table. Knows no page and no server.
const TEXT_COLUMNS = ["text", "content", "essay", "answer", "body"]; // as for the files of the score tab
const NAME_COLUMNS = ["name", "id", "custom_id", "file", "title"];
const SEPARATORS = { ",": "comma", ";": "semicolon", "\t": "tab" }; // of cells; where the decimal mark is a comma, table programs write semicolons
const DECLARED = /^"?sep=([^"\r\n])"?(?=[\r\n]|$)/i; // a first line that tells Excel the separator
const MAX_NAME = 64;
const NO_UTF8 = "This file is not in UTF-8, so its letters cannot be told. Save it as UTF-8, or read it on the Score tab.";
const NO_TEXT = "This is no text file: it has characters that no text has. Save the texts as .txt or .csv in UTF-8.";
const CONTROLS = /[\x00-\x08\x0e-\x1f]/; // as in app/plaintext.py

// The text of a file's bytes: UTF-16 where they begin with its byte order mark, otherwise UTF-8. Throws an Error whose message is for the visitor.
function decoded(bytes) {
    const [first, second] = bytes;
    const encoding = first === 0xff && second === 0xfe ? "utf-16le" : first === 0xfe && second === 0xff ? "utf-16be" : "utf-8";
    let text;
    try {
        text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
    } catch (error) {
        if (error instanceof TypeError) throw new Error(NO_UTF8);
        throw error;
    }
    if (CONTROLS.test(text.replace(/\x1a+$/, ""))) throw new Error(NO_TEXT); // it ends a file of DOS
    return text;
}

const BREAK = /\r\n|\r|\n/; // as of Windows, of an old Mac, and of all others

// The rows of a CSV file, each with the number of the line that it begins in. A cell in quotes may hold separators, line breaks and doubled quotes.
function* csvRows(text, separator) {
    let row = [], cell = "", quoted = false, line = 1, begins = 1;
    const isRow = () => row.push(cell) > 1 || row[0].trim();
    for (let at = 0; at < text.length; at += 1) {
        const letter = text[at];
        const breaks = letter === "\n" || (letter === "\r" && text[at + 1] !== "\n");
        if (breaks) line += 1;
        if (quoted && letter === '"' && text[at + 1] === '"') cell += text[(at += 1)];
        else if (letter === '"' && (quoted || !cell)) quoted = !quoted;
        else if (quoted) cell += letter;
        else if (letter === separator) {
            row.push(cell);
            cell = "";
        } else if (breaks) {
            if (isRow()) yield { cells: row, line: begins };
            [row, cell, begins] = [[], "", line];
        } else if (letter !== "\r") cell += letter;
    }
    if (quoted) throw new Error(`Line ${begins.toLocaleString("en")}: a quotation mark opens a cell and none closes it.`);
    if (isRow()) yield { cells: row, line: begins };
}

// The number of cells without the empty ones at the end, which table programs add.
const widthOf = (cells) => cells.findLastIndex((cell) => cell.trim()) + 1;

// The separator is what divides the first line into most cells, or what `sep=;` above it says. Under a single name a whole row is one text.
function textsOfCsv(text) {
    const counts = Object.keys(SEPARATORS).map((separator) => [separator, csvRows(text, separator).next().value?.cells.length ?? 0]);
    const declared = DECLARED.exec(text)?.[1];
    const separator = declared ?? counts.reduce((most, each) => (each[1] > most[1] ? each : most))[0];
    const [head, ...rows] = [...csvRows(text, separator)].slice(declared ? 1 : 0);
    const width = widthOf(head?.cells ?? []);
    const names = (head?.cells ?? []).slice(0, width).map((name) => name.trim().toLowerCase());
    const find = (wanted) => names.findIndex((name) => wanted.includes(name));
    const column = width === 1 ? 0 : find(TEXT_COLUMNS);
    if (column < 0) throw new Error(`Line 1: none of the columns is called ${TEXT_COLUMNS.join(", ")}. Rename the one that holds the texts.`);
    const nameColumn = find(NAME_COLUMNS);
    return rows.map(({ cells, line }) => {
        const found = widthOf(cells);
        if (width === 1) return { text: cells.slice(0, found).join(separator), line, name: "" };
        if (found > width) {
            throw new Error(`Line ${line.toLocaleString("en")}: it has ${found} cells, the first line has ${width}. Put a text that has a ${SEPARATORS[separator] ?? separator} in quotation marks.`);
        }
        return { text: cells[column] ?? "", line, name: nameColumn < 0 ? "" : (cells[nameColumn] ?? "").trim() };
    });
}

const textsOfLines = (text) => text.split(BREAK).map((line, index) => ({ text: line, line: index + 1, name: "" }));

// [{text, line, name}] of a .csv or .txt file, without blank ones. Throws an Error whose message is for the visitor.
function textsOf(fileName, content) {
    const text = content.replace(/^\ufeff/, "");
    const found = (/\.csv$/i.test(fileName) ? textsOfCsv(text) : textsOfLines(text)).filter((row) => row.text.trim());
    if (!found.length) throw new Error("This file holds no text.");
    return found;
}

// Names that are given, short and not taken stay; any other text has the number of its line as its name.
function requestLines(texts) {
    const taken = new Set();
    return texts.map(({ text, line, name }) => {
        const id = name && name.length <= MAX_NAME && !taken.has(name) ? name : `line ${line}`;
        taken.add(id);
        return `${JSON.stringify({ custom_id: id, method: "POST", url: "/v1/score", body: { text } })}\n`;
    });
}

// The url of the first line of a .jsonl file, if it has one.
function endpointOf(content) {
    try {
        return JSON.parse(content.trimStart().split("\n")[0]).url ?? "";
    } catch {
        return "";
    }
}

// A row for each text of the answers of /v1/score.
function scoreRows(jsonl) {
    return jsonl.split("\n").filter(Boolean).flatMap((line) => {
        const { custom_id: name, response } = JSON.parse(line);
        const { model = null, quantize, dtype, calibration, data = [] } = response?.body ?? {};
        return data.map((score) => ({
            name,
            verdict: score.verdict ?? null,
            probability: score.p_machine?.value ?? null,
            low: score.p_machine?.interval[0] ?? null,
            high: score.p_machine?.interval[1] ?? null,
            method: score.method ?? null,
            score: score.scores?.[score.method] ?? null,
            threshold: score.threshold ?? null,
            false_positive_rate: score.false_positive_rate?.measured ?? null,
            n: score.false_positive_rate?.n ?? null,
            tokens: score.scored_tokens ?? null,
            model,
            precision: quantize === "none" ? dtype : `${quantize}, computing in ${dtype}`,
            calibration: calibration?.source ?? null,
            warnings: (score.warnings ?? []).map((warning) => warning.message),
            error: score.object === "error" ? score.message : null,
        }));
    });
}

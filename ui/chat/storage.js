// Keeps the conversations in this browser's localStorage, each under a key of its own. Knows no page and no server.
// An entry is {title, updated, conversation, thumbs}: the thumbs by the hash of their answer's text, where there are any; the conversation is the JSON that conversation.py writes.
window.litmus ??= {};
litmus.storage = (() => {
    const PREFIX = "litmus-chat-";
    const OPEN = "litmus-open"; // in sessionStorage: which conversation this tab shows
    const FORMAT = "litmus-conversations";
    const TITLE_LENGTH = 60;
    const ELSEWHERE = "Another tab has gone on with this conversation, too. Both are kept: open it in the list of conversations to see the other's branch.";
    let held = null; // the conversation as this tab had it last

    const parse = (text) => {
        try {
            return JSON.parse(text);
        } catch {
            return null;
        }
    };
    const get = (id) => {
        const entry = entryOf(parse(localStorage.getItem(PREFIX + id)));
        return entry?.conversation.id === id ? entry : null;
    };
    const remove = (id) => localStorage.removeItem(PREFIX + id);

    // Newest first. What is no entry of ours is left alone.
    function all() {
        const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
        const entries = keys.map((key) => get(key.slice(PREFIX.length))).filter(Boolean);
        return entries.sort((first, second) => second.updated - first.updated);
    }

    // False if the browser has no room left.
    function put(entry) {
        try {
            localStorage.setItem(PREFIX + entry.conversation.id, JSON.stringify(entry));
            return true;
        } catch {
            return false;
        }
    }

    function titleOf(conversation) {
        const line = (conversation.turns?.[0]?.text ?? "").trim().split("\n")[0];
        return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH).trimEnd()}…` : line || "Conversation";
    }

    // The title stays as it is, because the visitor may have changed it; an unchanged conversation keeps its place in the list. Returns a sentence
    // for the visitor, blank if there is nothing to say.
    function keep(conversation) {
        const known = get(conversation.id);
        const before = held?.id === conversation.id ? held.turns : [];
        const whole = known ? joined(conversation, known.conversation, before) : conversation;
        held = conversation;
        if (known && JSON.stringify(known.conversation) === JSON.stringify(whole)) return "";
        const isKept = put({ ...known, title: known?.title ?? titleOf(conversation), updated: Date.now(), conversation: whole });
        return !isKept ? litmus.storage.FULL : whole === conversation ? "" : ELSEWHERE;
    }

    // Puts back what was deleted. Another tab may have gone on with it since: its turns stay, and those that it no longer has become branches.
    // False if the browser has no room left.
    function putBack(entry) {
        const known = get(entry.conversation.id);
        if (!known) return put(entry);
        const title = known.title === titleOf(known.conversation) ? entry.title : known.title;
        return put({ ...known, title, thumbs: { ...entry.thumbs, ...known.thumbs }, conversation: joined(known.conversation, entry.conversation) });
    }

    // Another tab may have gone on with the same conversation. Its turns become branches: those that are not among `held`, the turns that this tab
    // had last, with what they follow. A turn that this tab has held and no longer has was given up here.
    function joined(mine, theirs, held = []) {
        const numbers = new Map(); // by what a turn says and follows
        const numbered = (turns) => {
            const found = [];
            for (const { parent, role, text, facts } of turns) {
                const key = JSON.stringify([found[parent], role, text, facts?.seed]);
                if (!numbers.has(key)) numbers.set(key, numbers.size);
                found.push(numbers.get(key));
            }
            return found;
        };
        const places = new Map(numbered(mine.turns).map((number, index) => [number, index]));
        const before = new Set(numbered(held));
        const turns = [...mine.turns], others = numbered(theirs.turns);
        const place = (index) => {
            const { parent, ...turn } = theirs.turns[index], number = others[index];
            if (!places.has(number)) {
                const follows = Number.isInteger(parent) ? { parent: place(parent) } : {};
                places.set(number, turns.push({ ...turn, ...follows }) - 1);
            }
            return places.get(number);
        };
        others.forEach((number, index) => before.has(number) || place(index));
        return turns.length > mine.turns.length ? { ...mine, turns } : mine;
    }

    function rename(id, title) {
        const entry = get(id);
        if (entry && title.trim()) put({ ...entry, title: title.trim().slice(0, 200) });
    }

    // The turns of the branch that is shown, first one first.
    function shown(conversation) {
        const turns = [];
        for (let index = conversation.leaf ?? null; index !== null; index = conversation.turns[index].parent ?? null) {
            turns.unshift(conversation.turns[index]);
        }
        return turns;
    }

    const asText = (entries) => JSON.stringify({ format: FORMAT, version: 1, conversations: entries }, null, 1);

    function asMarkdown(entry) {
        const parts = shown(entry.conversation).map((turn) => {
            const facts = turn.facts ?? {};
            const seed = facts.seed === undefined ? "" : `seed ${facts.seed}`;
            const by = [facts.model, facts.precision, seed].filter(Boolean).join(", ");
            return `## ${turn.role === "user" ? "You" : "Answer"}${by ? ` (${by})` : ""}\n\n${turn.text}\n`;
        });
        return `# ${entry.title}\n\n${parts.join("\n")}`;
    }

    // What conversation.py takes, field by field.
    const isText = (value) => typeof value === "string" && !/\p{Surrogate}/u.test(value); // half of a pair is no text for the server
    const isNumber = (value) => typeof value === "number";
    const isWhole = (value) => Number.isInteger(value) && /^-?\d+$/.test(value); // from 1e21 on it would be written as a float
    const isOneOf = (...values) => (value) => values.includes(value);
    const orNull = (is) => (value) => value === null || is(value);
    const hasOnly = (fields) => (value) => typeof value === "object" && value !== null && !Array.isArray(value)
        && Object.entries(value).every(([name, each]) => Object.hasOwn(fields, name) && fields[name](each));
    const isFacts = hasOnly({
        model: isText, precision: isText, seed: orNull(isWhole), ttft_ms: orNull(isNumber), tokens_per_s: orNull(isNumber), prompt_tokens: orNull(isWhole),
        completion_tokens: orNull(isWhole), finish: isOneOf("stop", "length", "full", "stopped", "failed"), problem: isText,
    });
    const isTurn = hasOnly({ role: isOneOf("user", "assistant"), text: isText, parent: orNull(isWhole), thought: isText, facts: orNull(isFacts) });
    const isConversation = hasOnly({ id: (value) => isText(value) && /^[A-Za-z0-9-]{1,64}$/.test(value), turns: Array.isArray, leaf: orNull(isWhole) });

    // A turn follows one of the other side that stands before it; the first ones are questions.
    function isReadable(conversation) {
        if (!isConversation(conversation) || !conversation.id || !conversation.turns?.every(isTurn)) return false;
        const { turns, leaf = null } = conversation;
        const follows = ({ role, text, parent = null }, index) => {
            const before = parent === null ? "assistant" : parent >= 0 && parent < index ? turns[parent].role : null;
            return text !== undefined && before !== null && role === (before === "user" ? "assistant" : "user");
        };
        return turns.every(follows) && (leaf === null || turns[leaf] !== undefined);
    }

    // An entry with a conversation that can be opened, or null. A title that says nothing is made anew.
    function entryOf(value) {
        if (!isReadable(value?.conversation)) return null;
        const { title, conversation } = value;
        return { ...value, title: isText(title) && title.trim() ? title : titleOf(conversation) };
    }

    // Returns how many were added, and how many could not be read. A conversation that is here already gets another id, so that nothing is overwritten.
    function importText(text) {
        const file = parse(text);
        if (file?.format !== FORMAT || !Array.isArray(file.conversations)) {
            throw new Error("This file holds no conversations of this page. Choose a JSON file that it exported.");
        }
        let added = 0, unreadable = 0;
        for (const value of file.conversations) {
            const entry = entryOf(value);
            if (!entry) {
                unreadable += 1;
                continue;
            }
            const { title, updated, conversation } = entry;
            const id = localStorage.getItem(PREFIX + conversation.id) === null ? conversation.id : litmus.newId();
            if (!put({ title, updated: Number(updated) || Date.now(), conversation: { ...conversation, id } })) throw new Error(litmus.storage.FULL);
            added += 1;
        }
        return { added, unreadable };
    }

    return {
        FULL: "This browser's storage is full, so the conversation is lost when you leave. Export conversations that you need, and delete some.",
        all, get, put, putBack, remove, keep, rename, asText, asMarkdown, importText,
        opened: () => sessionStorage.getItem(OPEN),
        setOpened: (id) => (id ? sessionStorage.setItem(OPEN, id) : sessionStorage.removeItem(OPEN)),
    };
})();

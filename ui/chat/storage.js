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
    const get = (id) => parse(localStorage.getItem(PREFIX + id));
    const remove = (id) => localStorage.removeItem(PREFIX + id);

    // Newest first. What is no entry of ours is left alone.
    function all() {
        const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
        const entries = keys.map((key) => parse(localStorage.getItem(key))).filter((entry) => entry?.conversation?.id);
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
        const whole = known ? joined(conversation, known.conversation) : conversation;
        held = conversation;
        if (known && JSON.stringify(known.conversation) === JSON.stringify(whole)) return "";
        const isKept = put({ ...known, title: known?.title ?? titleOf(conversation), updated: Date.now(), conversation: whole });
        return !isKept ? litmus.storage.FULL : whole === conversation ? "" : ELSEWHERE;
    }

    // Another tab may have gone on with the same conversation. Its turns become branches: those that this tab has never held, with what they follow.
    // A turn that this tab has held and no longer has was given up here.
    function joined(mine, theirs) {
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
        const before = new Set(held?.id === mine.id ? numbered(held.turns) : []);
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

    // A turn follows one of the other side that stands before it, as conversation.py wants it; the first ones are questions.
    function isReadable(conversation) {
        if (!Array.isArray(conversation?.turns) || !/^[A-Za-z0-9-]{1,64}$/.test(conversation.id)) return false;
        const { turns, leaf = null } = conversation;
        const isTurn = ({ role, text, parent = null }, index) => {
            const before = parent === null ? "assistant" : Number.isInteger(parent) && parent >= 0 && parent < index ? turns[parent].role : null;
            return typeof text === "string" && before !== null && role === (before === "user" ? "assistant" : "user");
        };
        return turns.every((turn, index) => turn && isTurn(turn, index)) && (leaf === null || (Number.isInteger(leaf) && turns[leaf] !== undefined));
    }

    // Returns how many were added, and how many could not be read. A conversation that is here already gets another id, so that nothing is overwritten.
    function importText(text) {
        const file = parse(text);
        if (file?.format !== FORMAT || !Array.isArray(file.conversations)) {
            throw new Error("This file holds no conversations of this page. Choose a JSON file that it exported.");
        }
        let added = 0, unreadable = 0;
        for (const entry of file.conversations) {
            const { title, updated, conversation } = entry ?? {};
            if (!isReadable(conversation)) {
                unreadable += 1;
                continue;
            }
            const id = get(conversation.id) ? litmus.newId() : conversation.id;
            const read = { title: String(title ?? titleOf(conversation)), updated: Number(updated) || Date.now(), conversation: { ...conversation, id } };
            if (!put(read)) throw new Error(litmus.storage.FULL);
            added += 1;
        }
        return { added, unreadable };
    }

    return {
        FULL: "This browser's storage is full, so the conversation is lost when you leave. Export conversations that you need, and delete some.",
        all, get, put, remove, keep, rename, asText, asMarkdown, importText,
        opened: () => sessionStorage.getItem(OPEN),
        setOpened: (id) => (id ? sessionStorage.setItem(OPEN, id) : sessionStorage.removeItem(OPEN)),
    };
})();

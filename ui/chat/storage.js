// Keeps the conversations in this browser's localStorage, each under a key of its own. Knows no page and no server.
// An entry is {title, updated, conversation, thumbs}: the thumbs by the hash of their answer's text, where there are any; the conversation is the JSON that conversation.py writes.
window.litmus ??= {};
litmus.storage = (() => {
    const PREFIX = "litmus-chat-";
    const OPEN = "litmus-open"; // in sessionStorage: which conversation this tab shows
    const FORMAT = "litmus-conversations";
    const TITLE_LENGTH = 60;

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

    // The title stays as it is, because the visitor may have changed it; an unchanged conversation keeps its place in the list.
    function keep(conversation) {
        const known = get(conversation.id);
        if (known && JSON.stringify(known.conversation) === JSON.stringify(conversation)) return true;
        return put({ ...known, title: known?.title ?? titleOf(conversation), updated: Date.now(), conversation });
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

    // Returns how many were added. A conversation that is here already gets another id, so that nothing is overwritten.
    function importText(text) {
        const file = parse(text);
        if (file?.format !== FORMAT || !Array.isArray(file.conversations)) {
            throw new Error("This file holds no conversations of this page. Choose a JSON file that it exported.");
        }
        let added = 0;
        for (const { title, updated, conversation } of file.conversations) {
            if (!Array.isArray(conversation?.turns) || !/^[A-Za-z0-9-]{1,64}$/.test(conversation.id)) continue;
            const id = get(conversation.id) ? newId() : conversation.id;
            const entry = { title: String(title ?? titleOf(conversation)), updated: Number(updated) || Date.now(), conversation: { ...conversation, id } };
            if (!put(entry)) throw new Error(litmus.storage.FULL);
            added += 1;
        }
        return added;
    }

    function newId() {
        return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    }

    return {
        FULL: "This browser's storage is full, so the conversation is lost when you leave. Export conversations that you need, and delete some.",
        all, get, put, remove, keep, rename, asText, asMarkdown, importText,
        opened: () => sessionStorage.getItem(OPEN),
        setOpened: (id) => (id ? sessionStorage.setItem(OPEN, id) : sessionStorage.removeItem(OPEN)),
    };
})();

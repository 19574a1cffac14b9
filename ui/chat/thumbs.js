// Thumbs under the answers: what was chosen is sent to the page's own route at once, kept beside the conversation, and marked. Pressing it again
// takes it back; the other one replaces it: the last line of an id counts. The form below adds a reason and, if ticked, the text.
window.litmus ??= {};
litmus.thumbs = (() => {
    const NAMES = { good: "Good answer", bad: "Bad answer" };
    const SAID = { good: "Noted: a good answer.", bad: "Noted: a bad answer.", withdrawn: "Taken back." };
    const chosen = new Map(); // of conversation and hash, the choice and the id of its line
    let root = null, open = null; // what the form is about

    const hashOf = (button) => button.closest(".thumbs")?.className.match(/\bhash-([0-9a-f]{64})\b/)?.[1];

    // Of a conversation that the browser could not keep, the choices last as long as the page.
    function choiceOf(conversationId, hash) {
        const key = `${conversationId} ${hash}`;
        if (!chosen.has(key)) chosen.set(key, litmus.storage.get(conversationId)?.thumbs?.[hash] ?? null);
        return chosen.get(key);
    }

    function remember(conversationId, hash, choice) {
        chosen.set(`${conversationId} ${hash}`, choice);
        const entry = litmus.storage.get(conversationId);
        if (entry) litmus.storage.put({ ...entry, thumbs: { ...entry.thumbs, [hash]: choice } });
    }

    const send = (fields) => litmus.call("flags", { body: JSON.stringify({ about: "chat", ...fields }) });

    function say(sentence, isProblem = false) {
        const word = root.querySelector(".word");
        root.querySelector("form").hidden = false;
        word.textContent = sentence;
        word.classList.toggle("problem", isProblem);
        for (const part of root.querySelectorAll("label, [type=submit]")) part.hidden = isProblem || open === null;
    }

    async function press(conversation, index, label, button) {
        const hash = hashOf(button), before = choiceOf(conversation.id, hash), turn = conversation.turns[index];
        const now = before?.label === label ? "withdrawn" : label;
        const fields = { label: now, hash, model: turn.facts?.model ?? "", id: before?.id ?? litmus.newId() };
        try {
            await send(fields);
        } catch (error) {
            open = null;
            return say(error.message, true);
        }
        remember(conversation.id, hash, { label: now, id: fields.id });
        open = now === "withdrawn" ? null : { fields, text: turn.text };
        root.querySelector("form").reset();
        say(SAID[now]);
        draw(conversation.id);
    }

    async function add(form) {
        const answers = new FormData(form), kept = answers.get("keep") ? { text: open.text } : {};
        try {
            await send({ ...open.fields, reason: answers.get("reason"), ...kept });
        } catch (error) {
            return say(error.message, true);
        }
        open = null;
        say(answers.get("keep") ? "Thank you. This and the text were kept." : "Thank you. This was kept, without the text.");
        root.querySelector(".close").focus();
    }

    // Gradio draws the notes anew, so the marks are set each time.
    function draw(conversationId) {
        for (const button of document.querySelectorAll(".thumbs button.do")) {
            const [, label] = button.className.match(/\bdo-(good|bad)-/) ?? [];
            const isChosen = String(choiceOf(conversationId, hashOf(button))?.label === label);
            if (button.getAttribute("aria-pressed") === isChosen) continue;
            button.setAttribute("aria-pressed", isChosen);
            button.setAttribute("aria-label", NAMES[label]);
            button.title = isChosen === "true" ? "Take it back" : NAMES[label];
        }
    }

    function close() {
        open = null;
        root.querySelector("form").hidden = true;
    }

    function mount(element) {
        root = element;
        root.addEventListener("submit", (event) => {
            event.preventDefault();
            add(event.target);
        });
        root.querySelector(".close").onclick = close;
    }

    return { mount, press, draw, close: () => root && close() };
})();

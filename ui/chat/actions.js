// What the page does by itself: the buttons in the notes, keys, the window's title, and what screen readers hear.
// A step that changes the conversation is one click on the hidden button #act, with what to do in `litmus.action`.
window.litmus ??= {};
(() => {
    const { storage } = litmus;
    const POLL_MS = 50;
    const MAX_STEP_MS = 10_000; // a server that does not answer at all
    const PHONE_WIDTH = 768; // as in Gradio's style of a Sidebar
    const WORDS = { waiting: "Waiting for the answer", loading: "The server is loading its model", paused: "The answer stops for a while, and goes on by itself", reading: "Reading the prompt", thinking: "Thinking", answering: "Answering", idle: "Done" };
    const TITLES = { waiting: "waiting…", loading: "loading…", paused: "paused…", reading: "reading…", thinking: "thinking…", answering: "answering…" };
    const QUESTION = "#message textarea";
    const CUT_OFF = "The connection was lost.";
    const INTO_THE_BOX = ["edit", "write", "undo", "cancel"]; // steps after which somebody types
    let conversation = null;
    let focused = null; // the control that has the focus, unless somebody clicked elsewhere since

    const find = (selector) => document.querySelector(selector);
    const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
    litmus.busy = () => find("#stop") !== null;

    // A step begins when the one before it has ended: Gradio would drop its click.
    let steps = Promise.resolve();
    litmus.act = (name, value = null) => {
        litmus.shelf.hush();
        return (steps = steps.then(() => step(name, value)));
    };
    litmus.acted = () => {};

    async function step(name, value) {
        if (litmus.busy()) {
            find("#stop").click();
            while (litmus.busy()) await pause(POLL_MS);
        }
        const ended = new Promise((done) => (litmus.acted = done));
        litmus.action = JSON.stringify([name, value]);
        find("#act").click();
        await Promise.race([ended, pause(MAX_STEP_MS)]);
        if (INTO_THE_BOX.includes(name)) find(QUESTION).focus();
        // Not by Gradio: at each event it copies all components within those that an event may change, and the tabs hold the whole page.
        if (name === "score") find("#score-tab-button").click();
    }

    const canSend = (running, text, notice) => !running && !notice && text.trim() !== "";

    // Shows at once that a question is on its way to the server.
    litmus.sending = ([running, text, notice, line], sending) => (canSend(running, text, notice) ? sending : line);

    // Empties the box at once: what is typed before the server has answered stays there. A text that cannot be sent now stays, too.
    litmus.take = (inputs) => {
        const [running, , text, , notice] = inputs;
        if (canSend(running, text, notice)) {
            litmus.shelf.hush();
            litmus.taken(text);
            litmus.fill(find(QUESTION), "");
        }
        return inputs;
    };

    // Without its connection the page gets no more of an answer. What is there becomes a turn, which the page has when it is loaded anew.
    litmus.lost = (isUnsent) => (litmus.busy() || isUnsent) && find("#lost").click();
    litmus.cutOff = ([kept, draft, running]) => {
        if (!running) return ended("Your question was not sent.", kept);
        const [text, thought, facts] = draft.length ? draft : [""];
        const whole = JSON.parse(kept);
        if (text) {
            const said = JSON.parse(facts);
            const known = said.finish === "stopped" ? { ...said, finish: "failed", problem: CUT_OFF } : said;
            if (running === "continue") extend(whole.turns[whole.leaf], text, known);
            else whole.leaf = whole.turns.push({ role: "assistant", text, parent: whole.leaf, thought, facts: known }) - 1;
        }
        litmus.keep(JSON.stringify(whole)); // Gradio tells of no change that comes from here
        return ended("This answer has ended.", JSON.stringify(whole));
    };

    // What Gradio shows and holds then: the line, the conversation, the draft, what is running, Send and Stop.
    function ended(sentence, kept) {
        const line = `<p id="live" data-state="problem" role="alert">${CUT_OFF} ${sentence}</p>`;
        const [shown, hidden] = [true, false].map((visible) => ({ visible, __type__: "update" }));
        return [line, kept, [], "", shown, hidden];
    }

    // As Conversation.extend does.
    function extend(turn, text, facts) {
        const { prompt_tokens: prompt, seed } = turn.facts ?? {};
        const tokens = facts.prompt_tokens + facts.completion_tokens - prompt;
        turn.text += text;
        const counts = Number.isInteger(tokens) ? { prompt_tokens: prompt, completion_tokens: tokens } : {};
        turn.facts = { ...facts, seed: seed ?? facts.seed, ...counts };
    }

    // Gradio asks for the inputs of a step here; the first one is what to do.
    litmus.inputs = (inputs) => [litmus.action, ...inputs.slice(1)];
    litmus.firstInputs = (inputs) => {
        const entry = storage.get(storage.opened());
        return [JSON.stringify(entry ? ["open", JSON.stringify(entry.conversation)] : ["new", null]), ...inputs.slice(1)];
    };

    litmus.open = (id) => {
        litmus.act("open", JSON.stringify(storage.get(id).conversation));
        litmus.uncover();
    };

    // On a phone the list of conversations covers the one that was chosen.
    litmus.uncover = () => innerWidth <= PHONE_WIDTH && find("#left.open .toggle-button")?.click();

    // Called with the open conversation whenever it has changed.
    litmus.keep = (text) => {
        const shown = conversation?.id;
        conversation = text ? JSON.parse(text) : null;
        if (conversation?.id !== shown) litmus.thumbs.close();
        storage.setOpened(conversation?.id);
        const sentence = conversation && storage.keep(conversation);
        if (sentence) litmus.shelf.say(sentence);
        litmus.shelf.draw();
    };

    const CLIENT_ACTIONS = {
        copy: (index, button) => litmus.copy(conversation.turns[index].text, button),
        good: (index, button) => litmus.thumbs.press(conversation, index, "good", button),
        bad: (index, button) => litmus.thumbs.press(conversation, index, "bad", button),
        write: (index, button) => litmus.act("write", button.textContent),
    };

    document.addEventListener("click", (event) => {
        const button = event.target.closest?.("button.do");
        const [, name, index] = button?.className.match(/\bdo-([a-z]+)-(\d+)/) ?? [];
        if (name) CLIENT_ACTIONS[name] ? CLIENT_ACTIONS[name](Number(index), button) : litmus.act(name, Number(index));
    });

    document.addEventListener("keydown", (event) => {
        if (event.key !== "Escape" || event.isComposing) return;
        if (litmus.busy()) find("#stop").click();
        else if (find("#editing .do")) litmus.act("cancel");
    });

    document.addEventListener("pointerdown", () => (focused = null), true);
    document.addEventListener("focusin", (event) => (focused = event.target));

    // Steps take buttons away, the one that was pressed among them; the focus would be nowhere. On a phone the box would open its keyboard.
    function keepFocus() {
        if (!focused || focused.isConnected || document.activeElement !== document.body) return;
        focused = null;
        if (!matchMedia("(pointer: coarse)").matches) find(QUESTION)?.focus();
    }

    function follow(line) {
        const state = line?.dataset.state ?? "idle";
        find("#conversation [role=log]")?.setAttribute("aria-busy", String(state in TITLES));
        const model = line?.dataset.model || find("header.litmus")?.dataset.model || "";
        const title = [TITLES[state], model, "Litmus"].filter(Boolean).join(" · ");
        if (document.title !== title) document.title = title;
        const said = find("#said");
        if (said && said.dataset.state !== state) {
            if (said.dataset.state) said.textContent = WORDS[state] ?? "";
            said.dataset.state = state;
        }
    }

    // Gradio labels each part of a message with its Markdown, buttons included, and a Sidebar's button with no name.
    function label() {
        for (const part of document.querySelectorAll("#conversation [data-testid][aria-label]")) part.removeAttribute("aria-label");
        for (const row of document.querySelectorAll("#conversation .message-row:not([role])")) {
            row.setAttribute("role", "group");
            row.setAttribute("aria-label", row.classList.contains("user-row") ? "You" : "Answer");
        }
        for (const wide of document.querySelectorAll(".md :is(pre, table):not([tabindex])")) {
            if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0; // so that the arrow keys scroll it
        }
        for (const [id, name] of [["left", "Conversations"], ["right", "Settings"]]) {
            const toggle = find(`#${id} .toggle-button`);
            if (!toggle) continue;
            const isOpen = String(find(`#${id}`).classList.contains("open"));
            if (toggle.getAttribute("aria-label") !== name) toggle.setAttribute("aria-label", name);
            if (toggle.getAttribute("aria-expanded") !== isOpen) toggle.setAttribute("aria-expanded", isOpen);
        }
    }

    function watch() {
        let scheduled = false;
        new MutationObserver(() => {
            if (scheduled) return;
            scheduled = true;
            requestAnimationFrame(() => {
                scheduled = false;
                label();
                keepFocus();
                litmus.thumbs.draw(conversation?.id);
                follow(find("#live"));
                for (const list of document.querySelectorAll(":is(#conversation, .answer) .md :is(ul, ol):not([dir])")) list.dir = "auto"; // where its marks stand
            });
        }).observe(document.body, { subtree: true, childList: true, attributes: true, attributeFilter: ["class", "data-state", "aria-label"] });
    }

    function link() {
        const manifest = find("link[rel=manifest]") ?? document.head.appendChild(Object.assign(document.createElement("link"), { rel: "manifest" }));
        manifest.href = "manifest.json";
    }

    watch();
    link();
})();

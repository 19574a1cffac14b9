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
    const UNSENT = "Your question was not sent.";
    const WAITS = "The page waits for the server; what you wrote will stand in the box.";
    const LATER = "Your question is sent as soon as the page is ready.";
    const MAX_BYTES = 1_000_000; // of a file that is dropped on the chat
    const STILL_S = 2; // seconds without news, after which the line counts them
    const BEGINS = [[QUESTION, "#send"], ["#score-text textarea", "#score-button"], ["#compare-prompt textarea", "#compare-begin"]];
    const PLACES = { // by part of the page, what takes the focus of a control that is gone: the first that can
        "#score-files": ["#score-files [data-do=cancel]", "#score-files input[type=file]"],
        "#score-tab": ["#score-cancel", "#result .report:not(.old) .verdict", "#score-button"],
        "#compare-tab": ["#compare-stop", "#compare-begin"],
        "#chat": [QUESTION],
    };
    const INTO_THE_BOX = ["edit", "write", "undo", "cancel"]; // steps after which somebody types
    let conversation = null;
    let isUnkept = false; // the browser has no room for it
    let told = ""; // the sentence above the box
    let focused = null; // the control that has the focus, unless somebody clicked elsewhere since
    let part = ""; // of the page, in which it is
    let begun = ""; // the step that was asked for last, until it has ended
    let next = ""; // the step for which an answer is stopped
    let news = { words: "", at_ms: 0 }; // what the line says, and since when

    const find = (selector) => document.querySelector(selector);
    const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
    litmus.busy = () => find("#stop") !== null;

    // A step begins when the one before it has ended: Gradio would drop its click, or write what the earlier one shows over what the later one does.
    // The first step shows the conversation that was open last.
    let underWay = 1; // steps that have not ended
    let isPressed = false; // Send, meanwhile
    let steps = new Promise((done) => (litmus.opened = done)).then(() => sendPressed(""));

    litmus.act = (name, value = null) => {
        const wanted = JSON.stringify([name, value]);
        if (wanted === begun) return steps; // the second click of a double click
        begun = wanted;
        underWay += 1;
        hush();
        return (steps = steps.then(() => step(name, wanted)).finally(() => {
            begun = begun === wanted ? "" : begun;
            sendPressed(name);
        }));
    };

    // A question that is sent while a step is under way waits in the box.
    function hold(event) {
        if (!underWay || !find(QUESTION)?.value.trim()) return;
        event.preventDefault();
        event.stopImmediatePropagation();
        if (!isPressed) pause(STILL_S * 1000).then(() => !isPressed || told || tell(LATER));
        isPressed = true;
    }

    // After a step that put another text into the box, somebody else has to decide.
    function sendPressed(ended) {
        underWay -= 1;
        if (INTO_THE_BOX.includes(ended)) isPressed = false;
        if (underWay || !isPressed) return;
        isPressed = false;
        find("#send")?.click(); // it is not there while an answer is in progress
    }

    litmus.acted = () => {};
    litmus.stopping = (inputs) => [...inputs.slice(0, -1), next];

    async function step(name, wanted) {
        while (litmus.busy() && isSending(find("#live"))) await pause(POLL_MS); // Gradio cannot stop a stream that has not begun
        if (litmus.busy()) {
            next = name;
            find("#stop").click();
            while (litmus.busy()) await pause(POLL_MS);
            next = "";
        }
        const ended = new Promise((done) => (litmus.acted = done));
        litmus.action = wanted;
        find("#act").click();
        await Promise.race([ended, pause(MAX_STEP_MS)]);
        if (INTO_THE_BOX.includes(name)) find(QUESTION).focus();
        // Not by Gradio: at each event it copies all components within those that an event may change, and the tabs hold the whole page.
        if (name === "score") find("#score-tab-button").click();
    }

    const isSending = (line) => line?.dataset.state === "waiting" && !line.dataset.model; // as sending_html has it

    const canSend = (running, text, notice) => !running && !notice && text.trim() !== "";

    // Shows at once that a question is on its way to the server.
    litmus.sending = ([running, text, notice, line], sending) => (canSend(running, text, notice) ? sending : line);

    // Empties the box at once: what is typed before the server has answered stays there. A text that cannot be sent now stays, too. In the place of
    // an edited question comes the draft that the edit found in the box.
    litmus.take = (inputs) => {
        const [running, , text, editing, notice] = inputs;
        if (canSend(running, text, notice)) {
            hush();
            litmus.taken(text);
            steps = Promise.race([new Promise((done) => (litmus.asked = done)), pause(MAX_STEP_MS)]);
            litmus.fill(find(QUESTION), editing ? JSON.parse(editing)[1] : "");
        }
        return inputs;
    };

    // Without its connection the page gets no more of an answer. What is there becomes a turn, which the page has when it is loaded anew.
    litmus.lost = (isUnsent) => {
        if (litmus.busy() || isUnsent) find("#lost").click();
        else if (isPressed) tell(`${CUT_OFF} ${UNSENT}`);
        isPressed = false;
    };
    litmus.cutOff = ([kept, draft, running]) => {
        if (!running) return ended(UNSENT, kept);
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
        const line = `<p id="live" data-state="problem" role="alert">${CUT_OFF} ${sentence} ${WAITS}</p>`;
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
        pause(MAX_STEP_MS).then(litmus.opened);
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
        const sentence = conversation ? storage.keep(conversation) : "";
        isUnkept = sentence === storage.FULL;
        if (sentence || told === storage.FULL) tell(sentence);
        litmus.shelf.draw();
    };

    // After something was deleted there may be room.
    litmus.keepAgain = () => isUnkept && litmus.keep(JSON.stringify(conversation));

    // A sentence above the box, where it is seen although the list of conversations is closed.
    function tell(sentence) {
        told = sentence;
        const line = find("#told");
        if (line && line.textContent !== sentence) line.textContent = sentence; // it is read out whenever it is set
    }

    // At the next step. That the conversation is not kept stays true.
    function hush() {
        litmus.shelf.hush();
        tell(isUnkept ? storage.FULL : "");
    }

    // The text of a file that was dropped on the chat, whatever its name, goes into the box.
    async function intoTheBox(files) {
        const box = find(QUESTION), texts = [], problems = [];
        for (const file of files) {
            const text = file.size > MAX_BYTES ? null : await textOf(file);
            if (text === null) problems.push(`“${file.name}” is ${file.size > MAX_BYTES ? "too long for the box" : "no text in UTF-8"}.`);
            else texts.push(text);
        }
        if (texts.length) litmus.fill(box, [box.value, ...texts].filter(Boolean).join("\n\n"));
        if (problems.length) tell(`${problems.join(" ")} The chat takes files of plain text, such as .txt and .md; the Score tab reads .pdf and .docx, too.`);
        else box.focus();
    }

    async function textOf(file) {
        try {
            const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
            return /[\x00-\x08\x0e-\x1f]/.test(text) ? null : text;
        } catch {
            return null;
        }
    }

    litmus.mountChat = () => litmus.takeFiles(find("#chat"), intoTheBox, (isOver) => find("#chat").classList.toggle("over", isOver));

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

    document.addEventListener("click", (event) => event.target.closest?.("#send") && hold(event), true);

    document.addEventListener("keydown", (event) => {
        if (event.isComposing) return;
        if (event.key === "Enter" && !event.shiftKey && event.target.matches?.(QUESTION)) hold(event);
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) begin(event);
        if (event.key !== "Escape" || !find("#chat").checkVisibility() || isOfAnotherPart(event.target)) return;
        if (litmus.busy()) find("#stop").click();
        else if (find("#editing .do")) litmus.act("cancel");
    }, true); // before a list has closed, which could not be told afterwards

    // Escape is meant for a sidebar, or for a list that is open.
    const isOfAnotherPart = (target) => target.closest?.(".sidebar") || find("[role=listbox]");

    // Ctrl+Enter in a box does what its button does. What Enter and Shift+Enter do is Gradio's.
    function begin(event) {
        const [, name] = BEGINS.find(([box]) => event.target.matches?.(box)) ?? [];
        const button = name && find(name);
        if (!button || button.disabled) return;
        event.preventDefault();
        button.click();
    }

    document.addEventListener("pointerdown", () => (focused = null), true);
    document.addEventListener("focusin", ({ target }) => {
        focused = target;
        part = Object.keys(PLACES).find((each) => target.closest(each)) ?? "";
    });

    const canTakeFocus = (control) => control?.isConnected && control.checkVisibility() && !control.disabled;

    // Steps take buttons away, the one that was pressed among them; the focus would be nowhere. On a phone the box would open its keyboard.
    function keepFocus() {
        const active = document.activeElement; // a control that was just hidden has the focus for a moment more
        if (!focused || canTakeFocus(focused) || ![document.body, focused].includes(active)) return;
        const shown = Object.keys(PLACES).filter((each) => find(each)?.checkVisibility());
        const places = shown.includes(part) ? PLACES[part] : PLACES[shown.at(-1)]?.slice(-1); // of another tab, what is always there
        const place = places?.map(find).find(canTakeFocus);
        if (!place) return;
        focused = null;
        if (place.matches("h2")) place.tabIndex = -1;
        if (!place.matches(QUESTION) || !matchMedia("(pointer: coarse)").matches) place.focus();
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
        for (const wide of document.querySelectorAll(".md :is(pre, table, .katex-display):not([tabindex])")) {
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

    // An answer that stands still is no page that hangs: the line says for how long nothing has come.
    function countSeconds() {
        const now = find("#live .now"), words = now?.textContent;
        if (words !== news.words) news = { words, at_ms: performance.now() };
        const seconds = Math.floor((performance.now() - news.at_ms) / 1000);
        if (now && seconds >= STILL_S) now.dataset.still = `${seconds} s`;
        else if (now) delete now.dataset.still;
    }

    function link() {
        const manifest = find("link[rel=manifest]") ?? document.head.appendChild(Object.assign(document.createElement("link"), { rel: "manifest" }));
        manifest.href = "manifest.json";
    }

    watch();
    link();
    setInterval(countSeconds, 1000);
})();

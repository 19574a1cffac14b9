// What becomes of the page when its server leaves. Knows of the chat only the boxes in which somebody types, and that a question may be edited.
// Gradio's client hears of all its calls on one stream of server-sent events, and opens another only after the message close_stream. A stream that broke
// without it would leave every later call without an answer. So it gets its end here: a message at which calls in progress end, and Gradio says that the
// connection was lost and loads the page anew when a server is there, and then close_stream.
window.litmus ??= {};
(() => {
    const END = [{ msg: "broken_connection", message: "Connection errored out." }, { msg: "close_stream" }];
    const BROKEN = 'data: {"msg":"unexpected_error"'; // Gradio's server had to end the stream; the message is of no call
    const CLOSED = 'data: {"msg":"close_stream"';
    const GONE = [502, 503, 504]; // a proxy whose server left, or a server that is leaving
    const QUESTION = "#message textarea";
    const BOXES = [QUESTION, "#score-text textarea", "#compare-prompt textarea"];
    const TYPED = "litmus-typed"; // in sessionStorage: what stood in the boxes when the server was lost
    const WRITING = "litmus-writing"; // in sessionStorage: which question was edited then, and whether the focus was in its box
    const RESTORE_MS = 300;
    const SETTLED = 5; // looks at a box that has kept its text: Gradio makes a box when its tab is first opened, and may empty it once more
    litmus.silence_ms = 60_000; // longer than four heartbeats of Gradio's server
    litmus.lost = () => {}; // the chat may end what it waits for; told whether a question did not get there
    let silent = false;

    const send = window.fetch;
    window.fetch = async (resource, options) => {
        const isCall = options?.method === "POST" && routeOf(resource);
        if (silent && options?.method === "POST") fail("the stream of events went silent"); // nobody would hear of this call
        const response = await send(resource, options).catch((error) => {
            if (isCall && error.name === "TypeError") litmus.lost(unsent !== ""); // no server answered
            throw error;
        });
        const route = routeOf(response.url);
        if (route && GONE.includes(response.status)) fail("the server is gone");
        if (route === "app_id") keep(); // Gradio asks for it until a server is there, and then loads the page anew
        if (route && response.status === 401) logIn();
        return route === "queue/data" && response.ok ? new Response(withEnd(response.body), response) : response;
    };

    const routeOf = (address) => /\/gradio_api\/(\w+(\/data)?)/.exec(address?.url ?? address)?.[1];

    function fail(reason) {
        litmus.lost(unsent !== "");
        throw new TypeError(reason);
    }

    // A server that was started again knows no login of before.
    function logIn() {
        keep();
        location.reload();
    }

    function withEnd(body) {
        const reader = body.pipeThrough(new TextDecoderStream()).getReader();
        const { readable, writable } = new TransformStream();
        const writer = writable.getWriter();
        pass(reader, writer)
            .catch(() => false) // a stream that broke ends as one that was closed
            .then(async (isClosed) => {
                await writer.write(asText(END.map((message) => `data: ${JSON.stringify(message)}`)));
                if (!isClosed) litmus.lost(unsent !== "");
            })
            .then(() => Promise.all([writer.close(), reader.cancel()]))
            .catch(() => {}); // Gradio had its close_stream, and reads no more
        return readable.pipeThrough(new TextEncoderStream());
    }

    // Whole messages only: Gradio would stumble over a part of one. Returns whether the server closed the stream.
    async function pass(reader, writer) {
        let rest = "", isClosed = false;
        for (;;) {
            const { value, done } = await soon(reader.read());
            if (done) return isClosed;
            const messages = (rest + value).split("\n\n");
            rest = messages.pop();
            if (messages.some((message) => message.startsWith(BROKEN))) return false;
            isClosed ||= messages.some((message) => message.startsWith(CLOSED));
            if (messages.length) await writer.write(asText(messages));
        }
    }

    const asText = (messages) => messages.map((message) => `${message}\n\n`).join("");

    function soon(promise) {
        let timer = null;
        const silence = new Promise((_, fail) => {
            timer = setTimeout(() => {
                silent = true;
                fail(new Error("silence"));
            }, litmus.silence_ms);
        });
        return Promise.race([promise, silence]).finally(() => clearTimeout(timer));
    }

    litmus.fill = (box, text) => {
        box.value = text;
        box.dispatchEvent(new Event("input", { bubbles: true }));
    };

    function stored(key) {
        try {
            return JSON.parse(sessionStorage.getItem(key)) ?? {};
        } catch {
            return {};
        }
    }

    const isKept = ([box, text]) => BOXES.includes(box) && typeof text === "string";
    const typed = Object.fromEntries(Object.entries(stored(TYPED)).filter(isKept)); // text by box
    let writing = stored(WRITING); // {edited, isFocused}, until it is restored
    let edited = null; // index of the question whose Edit was pressed last
    let isRestored = false;
    const looks = {}; // by box, how often its text was found there
    let unsent = ""; // a question that was taken out of the box and that the server does not have yet

    litmus.taken = (text) => {
        unsent = text;
        forget(QUESTION);
    };

    function forget(box) {
        delete typed[box];
        store();
    }

    // A text that is forgotten must not come back from here at the next load, while another still waits for its tab to be opened.
    function store() {
        try {
            if (Object.keys(typed).length) sessionStorage.setItem(TYPED, JSON.stringify(typed));
            else sessionStorage.removeItem(TYPED);
        } catch {
            // no room for it
        }
    }

    function keep() {
        for (const box of BOXES) {
            const value = document.querySelector(box)?.value;
            const text = [box === QUESTION && unsent, value].filter(Boolean).join("\n\n");
            if (text) typed[box] = text;
        }
        store();
        const box = document.querySelector(QUESTION);
        if (isRestored) writing = { edited: document.querySelector("#editing .do") && edited, isFocused: box !== null && document.activeElement === box };
        try {
            sessionStorage.setItem(WRITING, JSON.stringify(writing));
        } catch {
            // no room for it
        }
    }

    // Called when the page has its conversation: until then the box of the question may be emptied.
    litmus.restore = async () => {
        const isEdit = await restoreWriting();
        const restoring = setInterval(() => {
            for (const [selector, text] of Object.entries(typed)) {
                const box = document.querySelector(selector);
                const isThere = isEdit && selector === QUESTION ? box?.value === text : Boolean(box?.value);
                if (!isThere) looks[selector] = 0;
                if (box && !isThere) litmus.fill(box, text);
                else if (box && (looks[selector] = (looks[selector] ?? 0) + 1) >= SETTLED) forget(selector);
            }
            if (!Object.keys(typed).length) clearInterval(restoring);
        }, RESTORE_MS);
    };

    // Returns whether a question is edited again: its own text stands in the box then, until what was typed takes its place.
    async function restoreWriting() {
        const { edited: index, isFocused } = writing;
        writing = {};
        isRestored = true;
        sessionStorage.removeItem(WRITING);
        if (typed[QUESTION] && Number.isInteger(index) && document.querySelector(`button.do-edit-${index}`)) {
            edited = index;
            await litmus.act("edit", index);
            return true;
        }
        if (isFocused === true && document.activeElement === document.body) document.querySelector(QUESTION).focus();
        return false;
    }

    document.addEventListener("click", ({ target }) => {
        const [, index] = target.closest?.("button.do")?.className.match(/\bdo-edit-(\d+)/) ?? [];
        if (index) edited = Number(index);
    });

    // Whoever types decides what stands in the box.
    document.addEventListener("input", (event) => event.isTrusted && BOXES.filter((box) => event.target.matches(box)).forEach(forget));
})();

// What several tabs ask of the browser: to copy a text, to call the page's own routes, a new id.
window.litmus ??= {};
(() => {
    const SAID_MS = 1500;

    // Tells on the button whether it was copied.
    litmus.copy = async (text, button) => {
        button.dataset.label ??= button.textContent;
        const isCopied = await navigator.clipboard?.writeText(text).then(() => true, () => false) || copyByCommand(text);
        button.focus();
        button.textContent = isCopied ? "Copied" : "This browser does not let the page copy";
        setTimeout(() => (button.textContent = button.dataset.label), SAID_MS);
    };

    // Where the page came over plain HTTP from another machine, browsers offer no clipboard.
    function copyByCommand(text) {
        const field = Object.assign(document.createElement("textarea"), { value: text });
        document.body.append(field);
        field.select();
        const isCopied = document.execCommand("copy");
        field.remove();
        return isCopied;
    }

    litmus.route = (name) => `${window.gradio_config?.root ?? "."}/${name}`;

    // A failure is an error whose message is a sentence for the visitor.
    litmus.call = async (route, options) => {
        let response;
        try {
            response = await fetch(litmus.route(route), { method: "POST", ...options });
        } catch (error) {
            if (error.name === "AbortError") throw error;
            throw new Error("The page's server does not answer. Check the connection, then try again.");
        }
        const answer = await response.json().catch(() => ({}));
        if (response.ok) return answer;
        throw new Error(answer.detail ?? answer.error?.message ?? `The server answered with status ${response.status}. Try again later.`);
    };

    // A file that is dropped anywhere in the place goes to `take`; `mark` hears whether one is held over it.
    litmus.takeFiles = (place, take, mark = () => {}) => {
        for (const name of ["dragover", "dragleave", "drop"]) {
            place.addEventListener(name, (event) => {
                if (!hasFiles(event)) return;
                event.preventDefault();
                mark(name === "dragover");
                if (name === "drop") take([...event.dataTransfer.files]);
            });
        }
    };

    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");

    // Elsewhere the browser would leave the page and open the file. A field for files takes it by itself.
    for (const name of ["dragover", "drop"]) {
        document.addEventListener(name, (event) => {
            if (event.defaultPrevented || !hasFiles(event) || event.target.closest?.("input[type=file]")) return;
            event.preventDefault();
            event.dataTransfer.dropEffect = "none";
        });
    }

    litmus.newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
})();

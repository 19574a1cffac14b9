// The list of conversations: open, search, rename, delete with undo, export, import. Texts are set as text, never as HTML.
window.litmus ??= {};
litmus.shelf = (() => {
    const { storage } = litmus;
    const WIDE = 1200; // pixels
    const CLOSED = "litmus-shelf-closed"; // in localStorage
    const COME_MS = 500; // in which Gradio has opened it
    const NO_ROOM = "There is no room for what was deleted. Delete something else first.";
    let root = null;
    let deleted = []; // entries that Undo brings back

    const part = (selector) => root.querySelector(selector);

    function element(name, properties, ...children) {
        const node = Object.assign(document.createElement(name), properties);
        node.append(...children);
        return node;
    }

    function button(label, onclick, properties = {}) {
        return element("button", { type: "button", onclick, ...properties }, label);
    }

    function matches(entry, words) {
        const text = [entry.title, ...entry.conversation.turns.map((turn) => turn.text)].join("\n").toLowerCase();
        return words.every((word) => text.includes(word));
    }

    // A row stays as long as its conversation is listed: with what is typed, open or focused in it. The one that has the focus is neither moved nor
    // taken away, because the next key would go elsewhere.
    function draw() {
        if (!root) return;
        const words = part("input[type=search]").value.toLowerCase().split(/\s+/).filter(Boolean);
        const entries = storage.all().filter((entry) => matches(entry, words));
        const list = part("ul"), known = [...list.children];
        const rows = entries.map((entry) => show(known.find((row) => row.dataset.id === entry.conversation.id) ?? item(entry), entry));
        const focused = known.find((row) => row.contains(document.activeElement));
        if (rows.length !== known.length || rows.some((row, place) => row !== known[place])) arrange(list, rows, focused);
        const nothing = words.length ? "No conversation has these words." : "Conversations are kept in this browser. There are none yet.";
        part(".none").textContent = entries.length ? "" : nothing;
    }

    function arrange(list, rows, focused) {
        for (const row of [...list.children]) if (row !== focused) row.remove();
        const place = rows.indexOf(focused); // -1 for none
        list.prepend(...rows.slice(0, Math.max(place, 0)));
        list.append(...rows.slice(place + 1));
    }

    function item(entry) {
        const { id } = entry.conversation;
        const now = () => storage.get(id) ?? entry; // another tab may have gone on with it, or deleted it
        const open = button("", () => storage.get(id) && litmus.open(id), { className: "open", dir: "auto" });
        const row = element("li", {}, open, menu(now, () => rename(row, now())));
        row.dataset.id = id;
        return row;
    }

    function show(row, { title, conversation }) {
        const open = row.querySelector(".open"); // null while it is renamed
        if (!open) return row;
        if (open.textContent !== title) open.textContent = open.title = title;
        if (conversation.id === storage.opened()) open.setAttribute("aria-current", "true");
        else open.removeAttribute("aria-current");
        row.querySelector("summary").setAttribute("aria-label", `Options of ${title}`);
        return row;
    }

    function menu(now, onrename) {
        const fileName = () => now().title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "conversation";
        return element("details", { className: "menu" }, element("summary", {}, "⋯"), element("div", {},
            button("Rename", onrename),
            button("Export as Markdown", () => download(`${fileName()}.md`, "text/markdown", storage.asMarkdown(now()))),
            button("Export as JSON", () => download(`${fileName()}.json`, "application/json", storage.asText([now()]))),
            button("Delete", () => remove([now()])),
        ));
    }

    // A key that ends it leaves the focus in the row.
    function rename(row, { title, conversation }) {
        const parts = [...row.children];
        const field = element("input", { type: "text", value: title, maxLength: 200, dir: "auto" });
        field.setAttribute("aria-label", "New name");
        const end = (name) => {
            field.onblur = null;
            if (name !== title) storage.rename(conversation.id, name);
            row.replaceChildren(...parts);
        };
        const endByKey = (event, name) => {
            event.preventDefault(); // Enter would open the menu
            end(name);
            row.querySelector("summary").focus();
            draw();
        };
        field.onkeydown = (event) => {
            event.stopPropagation();
            if (event.isComposing) return;
            if (event.key === "Enter") endByKey(event, field.value);
            if (event.key === "Escape") endByKey(event, title);
        };
        field.onblur = () => {
            end(field.value);
            draw();
        };
        closeMenus();
        row.replaceChildren(field);
        field.select();
    }

    function remove(entries) {
        deleted = entries;
        if (part("ul").contains(document.activeElement)) document.activeElement.blur(); // so that its row goes, too
        for (const { conversation } of entries) storage.remove(conversation.id);
        const what = entries.length === 1 ? `“${entries[0].title}” was deleted.` : `${entries.length} conversations were deleted.`;
        say(what, button("Undo", restore));
        if (entries.some(({ conversation }) => conversation.id === storage.opened())) litmus.act("new");
        else litmus.keepAgain();
        draw();
    }

    function restore() {
        const count = deleted.length;
        deleted = deleted.filter((entry) => !storage.putBack(entry));
        if (deleted.length) say(NO_ROOM, button("Undo", restore));
        else say(count === 1 ? "It is back." : "They are back.");
        draw();
    }

    function say(sentence, ...more) {
        part(".said").replaceChildren(sentence, ...more);
    }

    // At the next step of the chat. What can be undone stays.
    function hush() {
        if (root && !part(".said button")) say("");
    }

    // A menu closes where anything else is clicked, and with Escape, which then does nothing else.
    function closeMenus(except = null) {
        const open = [...(root?.querySelectorAll(".menu[open]") ?? [])].filter((menu) => !menu.contains(except));
        for (const menu of open) menu.open = false;
        return open;
    }

    document.addEventListener("click", (event) => event.isTrusted && closeMenus(event.target)); // the page clicks, too
    document.addEventListener("keydown", (event) => {
        const [menu] = event.key === "Escape" && !event.isComposing ? closeMenus() : [];
        if (!menu) return;
        event.stopImmediatePropagation();
        menu.querySelector("summary").focus();
    }, true);

    function download(name, type, text) {
        const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }

    async function importFile(file) {
        try {
            const { added, unreadable } = storage.importText(await file.text());
            const leftOut = unreadable ? ` ${unreadable} could not be read and ${unreadable === 1 ? "was" : "were"} left out.` : "";
            say(`${added === 1 ? "One conversation was added." : `${added} conversations were added.`}${leftOut}`);
        } catch (error) {
            say(error.message);
        }
        draw();
    }

    // On a wide window the list is open, until the visitor closes it. Its room is kept free from the beginning, so that nothing moves when it comes.
    const { classList } = document.documentElement;
    classList.toggle("shelf-comes", innerWidth >= WIDE && localStorage.getItem(CLOSED) === null);

    function openOnWideWindow() {
        const sidebar = root.closest(".sidebar");
        const toggle = sidebar.querySelector(".toggle-button");
        if (classList.contains("shelf-comes") && !sidebar.classList.contains("open")) toggle.click();
        setTimeout(() => classList.remove("shelf-comes"), COME_MS);
        toggle.addEventListener("click", () => {
            if (sidebar.classList.contains("open")) noteClosed();
            else localStorage.removeItem(CLOSED);
        });
    }

    function noteClosed() {
        try {
            localStorage.setItem(CLOSED, "yes");
        } catch {
            // no room for it: it is open again at the next load
        }
    }

    function mount(element) {
        root = element.querySelector(".shelf");
        openOnWideWindow();
        part(".new").onclick = () => {
            litmus.act("new");
            litmus.uncover();
        };
        part("input[type=search]").oninput = draw;
        part(".export").onclick = () => download("conversations.json", "application/json", storage.asText(storage.all()));
        part(".import").onclick = () => part("input[type=file]").click();
        part("input[type=file]").onchange = async ({ target }) => {
            if (target.files[0]) await importFile(target.files[0]);
            target.value = "";
        };
        part(".clear").onclick = () => storage.all().length && remove(storage.all());
        window.addEventListener("storage", draw);
        draw();
    }

    return { mount, draw, say, hush };
})();

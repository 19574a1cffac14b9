// Runs once for each side of the Compare tab, with its NAME: names the side for screen readers, and its button copies the answer as the model
// wrote it. Gradio sets `element` to the root of the side's first part.
const side = element.closest(".side");
side.setAttribute("role", "region");
side.setAttribute("aria-label", NAME);

function copyOld(text) {
    // Pages that were not fetched from this machine or by https have no clipboard.
    const box = document.createElement("textarea");
    box.value = text;
    document.body.append(box);
    box.select();
    const copied = document.execCommand("copy");
    box.remove();
    return copied;
}

async function copy(text) {
    try {
        await navigator.clipboard.writeText(text);
        return true;
    } catch {
        return copyOld(text);
    }
}

side.addEventListener("click", async (event) => {
    const button = event.target instanceof Element ? event.target.closest(".copy") : null;
    if (!button) return;
    const label = button.textContent;
    const copied = await copy(side.querySelector(".source").textContent);
    button.focus();
    button.textContent = copied ? "Copied" : "This browser does not let the page copy";
    setTimeout(() => { button.textContent = label; }, 1500);
});

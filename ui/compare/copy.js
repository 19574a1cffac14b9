// Runs once for each answer of the Compare tab: its button copies the answer's text. Gradio sets `element` to the component's root.
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

element.addEventListener("click", async (event) => {
    const button = event.target instanceof Element ? event.target.closest(".copy") : null;
    if (!button) return;
    const label = button.textContent;
    const copied = await copy(element.querySelector(".answer").textContent);
    button.focus();
    button.textContent = copied ? "Copied" : "This browser does not let the page copy";
    setTimeout(() => { button.textContent = label; }, 1500);
});

// Runs once for each side of the Compare tab, with its NAME: names the side for screen readers, and its button copies the answer as the model
// wrote it. Gradio sets `element` to the root of the side's first part.
const side = element.closest(".side");
side.setAttribute("role", "region");
side.setAttribute("aria-label", NAME);
side.addEventListener("click", ({ target }) => {
    const button = target.closest(".copy");
    if (button) litmus.copy(side.querySelector(".source").textContent, button);
});

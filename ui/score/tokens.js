// Runs once for the result of the score tab: shows a tooltip with one token's numbers on hover, on focus and by the arrow keys.
// Gradio sets `element` to the component's root.
const tokenOf = (event) => (event.target instanceof Element ? event.target.closest(".t") : null);
const percentFormat = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

const shown = (text) => `“${text.replaceAll("\n", "↵")}”`;
const percentOf = (logprob) => `${percentFormat.format(Math.exp(Number(logprob)) * 100)} %`;

function expectedLines(token) {
    const expected = JSON.parse(token.dataset.a ?? "[]");
    if (expected.length === 0) return "";
    return `\nexpected here:${expected.map(([text, logprob], index) => `\n${index + 1}. ${shown(text)} ${percentOf(logprob)}`).join("")}`;
}

function tooltipText(token) {
    const [logprob, rank, entropy] = token.dataset.n.split(" ");
    const text = token.textContent.replaceAll("↵\n", "↵");
    const scoredAs = token.dataset.r === undefined ? "" : `\nscored as ${shown(token.dataset.r)}`;
    const numbers = `\nprobability ${percentOf(logprob)}\nrank ${Number(rank).toLocaleString("en")}\nentropy ${entropy} nats`;
    return `“${text}”${scoredAs}${numbers}${expectedLines(token)}`;
}

function show(token) {
    const tip = element.querySelector(".tip");
    tip.textContent = tooltipText(token);
    tip.hidden = false;
    token.setAttribute("aria-describedby", tip.id);
    const frame = tip.parentElement.getBoundingClientRect();
    const box = token.getClientRects()[0] ?? token.getBoundingClientRect();
    const left = Math.min(box.left - frame.left, frame.width - tip.offsetWidth - 4);
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = `${Math.max(left, 4)}px`;
    tip.style.top = `${(above > 0 ? above : box.bottom + 6) - frame.top}px`;
}

function hide() {
    const tip = element.querySelector(".tip");
    if (tip) tip.hidden = true;
}

// Arrow keys, Home and End move the focus, and with it the one token that Tab stops at.
function moveFocus(event, token) {
    const tokens = [...element.querySelectorAll(".t")];
    const index = tokens.indexOf(token);
    const targets = { ArrowRight: index + 1, ArrowDown: index + 1, ArrowLeft: index - 1, ArrowUp: index - 1, Home: 0, End: tokens.length - 1 };
    const next = tokens[targets[event.key]];
    if (!next) return;
    event.preventDefault();
    token.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
}

// Ignore mousemove without movement: text that scrolls under a resting mouse must not hide the tooltip of the focused token.
element.addEventListener("mousemove", (event) => {
    if (event.movementX === 0 && event.movementY === 0) return;
    if (tokenOf(event)) show(tokenOf(event));
    else hide();
});
element.addEventListener("mouseleave", hide);
element.addEventListener("focusin", (event) => tokenOf(event) && show(tokenOf(event)));
element.addEventListener("focusout", hide);
element.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    else if (tokenOf(event)) moveFocus(event, tokenOf(event));
});

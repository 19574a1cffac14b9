// Runs once for the result of the score tab: shows one token's numbers on hover, focus and arrow keys.
const find = (event) => (event.target instanceof Element ? event.target.closest(".t") : null);
const numbers = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

function words(token) {
    const [logprob, rank, entropy] = token.dataset.n.split(" ");
    const percent = numbers.format(Math.exp(Number(logprob)) * 100);
    const text = token.textContent.replaceAll("↵\n", "↵");
    const read = token.dataset.r === undefined ? "" : `\nscored as “${token.dataset.r.replaceAll("\n", "↵")}”`;
    return `“${text}”${read}\nlog-probability ${logprob} (${percent} %)\nrank ${Number(rank).toLocaleString("en")}\nentropy ${entropy} nats`;
}

function show(token) {
    const tip = element.querySelector(".tip");
    tip.textContent = words(token);
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

function move(event, token) {
    const all = [...element.querySelectorAll(".t")];
    const at = all.indexOf(token);
    const steps = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 };
    const next = all[steps[event.key]];
    if (!next) return;
    event.preventDefault();
    token.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
}

// Only a mouse that moved: text scrolling away under a resting one must not take the tip from the keyboard.
element.addEventListener("mousemove", (event) => {
    if (event.movementX === 0 && event.movementY === 0) return;
    if (find(event)) show(find(event));
    else hide();
});
element.addEventListener("mouseleave", hide);
element.addEventListener("focusin", (event) => find(event) && show(find(event)));
element.addEventListener("focusout", hide);
element.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    else if (find(event)) move(event, find(event));
});

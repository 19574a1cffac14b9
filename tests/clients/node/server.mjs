// The server that these tests ask: one that runs at the URL in CLIENTS_URL. Knows no client library.

export const url = process.env.CLIENTS_URL;
if (!url) throw new Error("CLIENTS_URL names the server to ask, for instance http://127.0.0.1:8000");

export const QUESTION = "Tell me a story about a fox and a crow.";
export const CUT = 700; // tokens of an answer that its client does not leave
export const PLACES = ["wood", "hill", "mill"];
const FREE_MS = 60_000; // far longer than an answer takes that is not cut

const get = async (path) => (await fetch(url + path)).json();

export const model = (await get("/v1/models")).data[0].id;

/** What the model says to QUESTION, asked without any client library. */
export async function answer() {
  const body = { model, messages: [{ role: "user", content: QUESTION }], temperature: 0, max_tokens: 24 };
  const headers = { "Content-Type": "application/json" };
  const response = await fetch(`${url}/v1/chat/completions`, { method: "POST", headers, body: JSON.stringify(body) });
  return (await response.json()).choices[0].message.content;
}

/** Waits until no slot is busy. Then the slot of the request that came last tells whether its answer has all CUT tokens. */
export async function cutTheLastAnswer() {
  const end = Date.now() + FREE_MS;
  let state = await get("/slots");
  while (state.slots.some((slot) => slot.stage !== "idle")) {
    if (Date.now() > end) throw new Error("a slot is still busy");
    await new Promise((resolve) => setTimeout(resolve, 20));
    state = await get("/slots");
  }
  const last = state.decisions.at(-1);
  const left = state.slots.find((slot) => slot.slot === last.slot);
  return left.cached_tokens - last.prompt_tokens < CUT - 1; // the last token of an answer is not in the cache
}

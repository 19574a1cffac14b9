// The official client of OpenAI for node.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { answer, CUT, cutTheLastAnswer, model, PLACES, QUESTION, url } from "./server.mjs";

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const asked = { model, messages: [{ role: "user", content: QUESTION }], temperature: 0, max_tokens: 24 };
const parameters = { type: "object", properties: { place: { enum: PLACES } }, required: ["place"], additionalProperties: false };
const Thief = z.object({ animal: z.enum(["fox", "crow", "wolf"]), age: z.int().min(0).max(99), guilty: z.boolean() });

test("a chat", async () => {
  assert.equal((await client.chat.completions.create(asked)).choices[0].message.content, await answer());
});

test("a stream", async () => {
  const pieces = [];
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) pieces.push(chunk.choices[0].delta.content ?? "");
  assert.ok(pieces.length > 5);
  assert.equal(pieces.join(""), await answer());
});

test("a tool call", async () => {
  const tools = [{ type: "function", function: { name: "weather", parameters } }];
  const { choices } = await client.chat.completions.create({ ...asked, max_tokens: 100, tools, tool_choice: "required" });
  const call = choices[0].message.tool_calls[0].function;
  assert.equal(call.name, "weather");
  assert.ok(PLACES.includes(JSON.parse(call.arguments).place));
});

test("a form", async () => {
  const format = zodResponseFormat(Thief, "thief");
  const { choices } = await client.chat.completions.parse({ ...asked, max_tokens: 100, response_format: format });
  assert.deepEqual(Thief.parse(choices[0].message.parsed), choices[0].message.parsed);
});

test("an error", async () => {
  const refused = (error) => error instanceof OpenAI.BadRequestError && error.message.includes("temperature");
  await assert.rejects(client.chat.completions.create({ ...asked, temperature: 5 }), refused);
});

test("a cancel", async () => {
  const stream = await client.chat.completions.create({ ...asked, stream: true, max_tokens: CUT, ignore_eos: true });
  for await (const _ of stream) break;
  assert.ok(await cutTheLastAnswer());
});

test("a response", async () => {
  const response = await client.responses.create({ model, input: QUESTION, temperature: 0, max_output_tokens: 24 });
  assert.equal(response.output_text, await answer());
});

// Vercel's AI SDK with its provider for OpenAI-compatible servers.

import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, Output, streamText, tool } from "ai";
import { z } from "zod";
import { answer, CUT, cutTheLastAnswer, model, PLACES, QUESTION, url } from "./server.mjs";

const provider = createOpenAICompatible({ name: "litmus", baseURL: `${url}/v1`, supportsStructuredOutputs: true });
const asked = { model: provider(model), prompt: QUESTION, temperature: 0, maxOutputTokens: 24, maxRetries: 0 };
const Thief = z.object({ animal: z.enum(["fox", "crow", "wolf"]), age: z.int().min(0).max(99), guilty: z.boolean() });

test("a chat", async () => {
  assert.equal((await generateText(asked)).text, await answer());
});

test("a stream", async () => {
  const pieces = [];
  for await (const piece of streamText(asked).textStream) pieces.push(piece);
  assert.ok(pieces.length > 5);
  assert.equal(pieces.join(""), await answer());
});

test("a tool call", async () => {
  const weather = tool({ description: "The weather at a place.", inputSchema: z.object({ place: z.enum(PLACES) }) });
  const { toolCalls } = await generateText({ ...asked, maxOutputTokens: 100, tools: { weather }, toolChoice: "required" });
  assert.equal(toolCalls[0].toolName, "weather");
  assert.ok(PLACES.includes(toolCalls[0].input.place));
});

test("a form", async () => {
  const { output } = await generateText({ ...asked, maxOutputTokens: 100, output: Output.object({ schema: Thief }) });
  assert.deepEqual(Thief.parse(output), output);
});

test("an error", async () => {
  const refused = (error) => APICallError.isInstance(error) && error.statusCode === 400 && error.message.includes("temperature");
  await assert.rejects(generateText({ ...asked, temperature: 5 }), refused);
});

test("a cancel", async () => {
  const leaving = new AbortController();
  const providerOptions = { litmus: { ignore_eos: true } };
  const { textStream } = streamText({ ...asked, maxOutputTokens: CUT, providerOptions, abortSignal: leaving.signal });
  for await (const _ of textStream) leaving.abort();
  assert.ok(await cutTheLastAnswer());
});

// The AI SDK of Vercel, through @ai-sdk/openai-compatible and @ai-sdk/openai.

import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embed, embedMany, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

import {
  EMBEDDING_MODEL, KEY, LIMITED_KEY, MODEL, URL, VECTOR_LENGTH, main, promise, thrown, untilInFlight,
} from "./promises.mjs";

const settings = { name: "sage", baseURL: URL, apiKey: KEY, includeUsage: true, supportsStructuredOutputs: true };
const compatible = createOpenAICompatible(settings);
const openai = createOpenAI({ baseURL: URL, apiKey: KEY });
// Three ways to the same model: chat through each package, and the Responses API.
const MODELS = { compatible: compatible.chatModel(MODEL), chat: openai.chat(MODEL), responses: openai.responses(MODEL) };
const City = z.object({ name: z.string(), population: z.number() });

globalThis.AI_SDK_LOG_WARNINGS = false;

for (const [name, model] of Object.entries(MODELS)) {
  named(`generateText_answers_with_text_and_usage_${name}`, async () => {
    const found = await generateText({ model, prompt: "Say hello.", maxOutputTokens: 20, maxRetries: 0 });
    assert.ok(found.text);
    assert.equal(found.finishReason, "length");
    assert.equal(found.usage.outputTokens, 20);
  });

  named(`streamText_comes_in_pieces_with_usage_${name}`, async () => {
    const found = streamText({ model, prompt: "Say hello.", maxOutputTokens: 20, maxRetries: 0 });
    const pieces = [];
    for await (const piece of found.textStream) pieces.push(piece);
    assert.ok(pieces.length > 1);
    assert.equal(pieces.join(""), await found.text);
    assert.equal((await found.usage).outputTokens, 20);
  });

  for (const generate of [generateText, streamText]) {
    named(`${generate.name}_runs_a_tool_and_answers_its_result_${name}`, async () => {
      const cities = [];
      const found = await generate({
        model,
        prompt: "What is the weather in Paris?",
        maxRetries: 0,
        stopWhen: stepCountIs(3),
        tools: {
          get_weather: tool({
            description: "Weather of a city",
            inputSchema: z.object({ city: z.string() }),
            execute: async ({ city }) => {
              cities.push(city);
              return "sunny";
            },
          }),
        },
      });
      assert.ok(await found.text);
      assert.equal(cities.length, 1);
    });
  }

  named(`generateObject_validates_${name}`, async () => {
    const found = await generateObject({ model, schema: City, prompt: "A city", maxRetries: 0 });
    City.parse(found.object);
  });

  named(`streamObject_validates_${name}`, async () => {
    const found = streamObject({ model, schema: City, prompt: "A city", maxRetries: 0 });
    for await (const part of found.partialObjectStream) assert.equal(typeof part, "object");
    City.parse(await found.object);
  });

  named(`errors_carry_their_status_${name}`, async () => {
    const error = await thrown(() => generateText({ model, prompt: "hello", temperature: 9, maxRetries: 0 }));
    assert.ok(APICallError.isInstance(error));
    assert.equal(error.statusCode, 400);
    assert.equal(error.isRetryable, false);
  });

  named(`aborting_a_stream_frees_the_request_${name}`, async () => {
    const leaving = new AbortController();
    const asked = { model, prompt: "Say hello.", maxOutputTokens: 20_000, maxRetries: 0, onError: () => {} };
    const found = streamText({ ...asked, abortSignal: leaving.signal });
    const pieces = found.textStream[Symbol.asyncIterator]();
    await pieces.next();
    await untilInFlight(1);
    leaving.abort();
    await untilInFlight(0);
  });
}

promise(async function unknown_keys_models_and_used_up_quotas_are_refused() {
  const ask = (key, model) =>
    generateText({ model: createOpenAICompatible({ ...settings, apiKey: key }).chatModel(model), prompt: "hello", maxRetries: 0 });
  assert.equal((await thrown(() => ask("sk-nobody", MODEL))).statusCode, 401);
  assert.equal((await thrown(() => ask(KEY, "nope"))).statusCode, 404);
  const refused = await thrown(async () => {
    for (let i = 0; i < 3; i += 1) await ask(LIMITED_KEY, MODEL);
  });
  assert.equal(refused.statusCode, 429);
  assert.equal(refused.isRetryable, true);
});

promise(async function embeddings_have_the_models_length() {
  for (const model of [compatible.embeddingModel(EMBEDDING_MODEL), openai.embedding(EMBEDDING_MODEL)]) {
    const one = await embed({ model, value: "a", maxRetries: 0 });
    assert.equal(one.embedding.length, VECTOR_LENGTH);
    const many = await embedMany({ model, values: ["a", "b"], maxRetries: 0 });
    assert.deepEqual(many.embeddings.map((each) => each.length), [VECTOR_LENGTH, VECTOR_LENGTH]);
  }
});

promise(async function completions_answer_with_text() {
  const found = await generateText({ model: compatible.completionModel(MODEL), prompt: "Once", maxOutputTokens: 8, maxRetries: 0 });
  assert.ok(found.text);
});

function named(name, check) {
  promise(Object.defineProperty(check, "name", { value: name }));
}

await main();

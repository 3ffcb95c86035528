// OpenAI's own Node client.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

import {
  EMBEDDING_MODEL, KEY, LIMITED_KEY, MODEL, URL, VECTOR_LENGTH, main, promise, thrown, untilInFlight,
} from "./promises.mjs";

const client = new OpenAI({ baseURL: URL, apiKey: KEY, maxRetries: 0, timeout: 60_000 });
const HELLO = [{ role: "user", content: "Say hello." }];
const ASK_WEATHER = [{ role: "user", content: "What is the weather in Paris?" }];
const PARAMETERS = {
  type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false,
};
const TOOL = { type: "function", function: { name: "get_weather", parameters: PARAMETERS } };
const City = z.object({ name: z.string(), population: z.number() });

promise(async function aChatAnswersWithTextAndUsage() {
  const answer = await client.chat.completions.create({ model: MODEL, messages: HELLO, max_tokens: 20 });
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.ok(answer.choices[0].message.content);
  assert.equal(answer.usage.completion_tokens, 20);
});

promise(async function aStreamHasTheTextOfTheWholeAnswerAndUsageOnRequest() {
  const asked = { model: MODEL, messages: HELLO, max_tokens: 30, seed: 1, temperature: 0 };
  const whole = await client.chat.completions.create(asked);
  const options = { stream: true, stream_options: { include_usage: true } };
  const stream = await client.chat.completions.create({ ...asked, ...options });
  let text = "";
  let usage = null;
  let pieces = 0;
  for await (const chunk of stream) {
    const content = chunk.choices[0]?.delta?.content;
    if (content) {
      text += content;
      pieces += 1;
    }
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.ok(pieces > 1);
  assert.equal(usage.completion_tokens, 30);
});

promise(async function theStreamHelperGathersContentAndToolCalls() {
  const text = await client.chat.completions.stream({ model: MODEL, messages: HELLO, max_tokens: 10 }).finalContent();
  assert.ok(text);
  const called = client.chat.completions.stream({
    model: MODEL, messages: ASK_WEATHER, tools: [TOOL], tool_choice: "required",
  });
  const message = await called.finalMessage();
  assert.equal(message.tool_calls[0].function.name, "get_weather");
  assert.equal(typeof JSON.parse(message.tool_calls[0].function.arguments).city, "string");
});

promise(async function aToolIsRunAndItsResultIsAnswered() {
  const cities = [];
  const runner = client.chat.completions.runTools({
    model: MODEL,
    messages: ASK_WEATHER,
    tools: [
      {
        type: "function",
        function: {
          name: "get_weather",
          parameters: PARAMETERS,
          parse: JSON.parse,
          function: ({ city }) => {
            cities.push(city);
            return "sunny";
          },
        },
      },
    ],
  });
  assert.ok(await runner.finalContent());
  assert.equal(cities.length, 1);
});

promise(async function aParsedAnswerValidatesAgainstItsSchema() {
  const answer = await client.chat.completions.parse({
    model: MODEL, messages: HELLO, response_format: zodResponseFormat(City, "city"),
  });
  City.parse(answer.choices[0].message.parsed);
});

promise(async function completionsStreamToo() {
  const stream = await client.completions.create({ model: MODEL, prompt: "Once", max_tokens: 6, stream: true });
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0].text;
  assert.ok(text);
});

promise(async function embeddingsHaveTheModelsLength() {
  const packed = await client.embeddings.create({ model: EMBEDDING_MODEL, input: ["a", "b"] });
  assert.deepEqual(packed.data.map((each) => each.embedding.length), [VECTOR_LENGTH, VECTOR_LENGTH]);
  const floats = await client.embeddings.create({ model: EMBEDDING_MODEL, input: "a", encoding_format: "float" });
  assert.ok(Math.abs(floats.data[0].embedding[0] - packed.data[0].embedding[0]) < 1e-6);
});

promise(async function modelsAreListed() {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.ok(names.includes(MODEL) && names.includes(EMBEDDING_MODEL));
});

promise(async function aResponseIsCreatedStreamedAndParsed() {
  const first = await client.responses.create({ model: MODEL, input: "Say hello.", max_output_tokens: 20 });
  assert.ok(first.output_text);
  const stream = client.responses.stream({ model: MODEL, input: "More.", previous_response_id: first.id });
  const types = [];
  for await (const event of stream) types.push(event.type);
  assert.equal(types[0], "response.created");
  assert.equal(types.at(-1), "response.completed");
  assert.ok((await stream.finalResponse()).output_text);
  const parsed = await client.responses.parse({
    model: MODEL, input: "A city", text: { format: zodTextFormat(City, "city") },
  });
  City.parse(parsed.output_parsed);
});

promise(async function errorsHaveTheirClasses() {
  const bad = await thrown(() => client.chat.completions.create({ model: MODEL, messages: HELLO, temperature: 9 }));
  assert.ok(bad instanceof OpenAI.BadRequestError);
  assert.equal(bad.param, "temperature");
  const stranger = new OpenAI({ baseURL: URL, apiKey: "sk-nobody", maxRetries: 0 });
  assert.ok((await thrown(() => stranger.models.list())) instanceof OpenAI.AuthenticationError);
  const missing = await thrown(() => client.chat.completions.create({ model: "nope", messages: HELLO }));
  assert.ok(missing instanceof OpenAI.NotFoundError);
  assert.equal(missing.code, "model_not_found");
  const poor = new OpenAI({ baseURL: URL, apiKey: LIMITED_KEY, maxRetries: 0 });
  const refused = await thrown(async () => {
    for (let i = 0; i < 3; i += 1) {
      await poor.chat.completions.create({ model: MODEL, messages: HELLO, max_tokens: 1 });
    }
  });
  assert.ok(refused instanceof OpenAI.RateLimitError);
  assert.ok(Number(refused.headers.get("retry-after")) > 0);
});

promise(async function abortingAStreamFreesTheRequest() {
  const stream = await client.chat.completions.create({
    model: MODEL, messages: HELLO, max_tokens: 20_000, stream: true,
  });
  for await (const chunk of stream) {
    if (!chunk.choices[0]?.delta?.content) continue;
    await untilInFlight(1);
    break;
  }
  stream.controller.abort();
  await untilInFlight(0);
});

await main();

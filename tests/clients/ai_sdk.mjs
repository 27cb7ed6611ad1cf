// Vercel's AI SDK: images, a stream, tools, structured output; over chat completions and over responses.
import fs from "node:fs";
import assert from "node:assert";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
const require = createRequire(process.env.NODE_HOME + "/");
const load = async (name) => import(pathToFileURL(require.resolve(name)));
const { generateText, streamText, generateObject, tool, stepCountIs, Output } = await load("ai");
const { createOpenAI } = await load("@ai-sdk/openai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { z } = await load("zod");

const name = process.env.QVL_MODEL ?? "mini";
const openai = createOpenAI({ baseURL: process.env.QVL_URL, apiKey: "none" });
const compatible = createOpenAICompatible({ name: "qvl", baseURL: process.env.QVL_URL, supportsStructuredOutputs: true });
const image = fs.readFileSync(process.env.QVL_IMAGE);
const messages = [{ role: "user", content: [{ type: "text", text: "What is the total?" }, { type: "image", image }] }];
const schema = z.object({ paid: z.boolean() });

for (const [kind, model] of [["compatible", compatible(name)], ["chat", openai.chat(name)], ["responses", openai(name)]]) {
  const common = { model, messages, maxOutputTokens: 200, temperature: 0, maxRetries: 0 };
  const { text } = await generateText(common);
  assert.ok(text.includes("14.27"), text);
  console.log(`passed: image, ${kind}`);
  let streamed = "";
  for await (const piece of streamText(common).textStream) streamed += piece;
  assert.equal(streamed, text);
  console.log(`passed: stream, ${kind}`);
  const { object } = await generateObject({ ...common, schema });
  assert.equal(typeof object.paid, "boolean");
  const { output } = await generateText({ ...common, output: Output.object({ schema }) });
  assert.equal(typeof output.paid, "boolean");
  console.log(`passed: structured output, ${kind}`);
  const tools = { book: tool({ description: "Books a receipt.", inputSchema: schema, execute: async ({ paid }) => `booked ${paid}` }) };
  const called = await generateText({ ...common, tools, toolChoice: "required", stopWhen: stepCountIs(2) });
  assert.equal(called.steps[0].toolResults[0].toolName, "book");
  assert.equal(called.steps.length, 2);
  console.log(`passed: tools, ${kind}`);
}

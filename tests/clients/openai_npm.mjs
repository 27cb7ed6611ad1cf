// The openai npm package: images, a stream, tools, parse with zod, responses.
import fs from "node:fs";
import assert from "node:assert";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
const require = createRequire(process.env.NODE_HOME + "/");
const load = async (name) => import(pathToFileURL(require.resolve(name)));
const { default: OpenAI } = await load("openai");
const { zodResponseFormat, zodFunction } = await load("openai/helpers/zod");
const { z } = await load("zod");

const model = process.env.QVL_MODEL ?? "mini";
const client = new OpenAI({ baseURL: process.env.QVL_URL, apiKey: "none", maxRetries: 0 });
const url = "data:image/png;base64," + fs.readFileSync(process.env.QVL_IMAGE).toString("base64");
const messages = [{ role: "user", content: [
  { type: "text", text: "What is the total?" },
  { type: "image_url", image_url: { url } },
] }];
const common = { model, messages, max_tokens: 200, temperature: 0 };

const answer = await client.chat.completions.create(common);
assert.ok(answer.choices[0].message.content.includes("14.27"));
console.log("passed: image");
const stream = client.chat.completions.stream({ ...common, stream_options: { include_usage: true } });
const final = await stream.finalChatCompletion();
assert.equal(final.choices[0].message.content, answer.choices[0].message.content);
assert.equal(final.usage.prompt_tokens, answer.usage.prompt_tokens);
console.log("passed: stream");
const Receipt = z.object({ paid: z.boolean() });
const parsed = await client.chat.completions.parse({ ...common, response_format: zodResponseFormat(Receipt, "receipt") });
assert.equal(typeof parsed.choices[0].message.parsed.paid, "boolean");
const again = [...messages, parsed.choices[0].message, { role: "user", content: "Sure?" }];
assert.ok((await client.chat.completions.create({ ...common, messages: again })).usage.prompt_tokens > answer.usage.prompt_tokens);
console.log("passed: structured output");
const runner = client.chat.completions.runTools({ ...common, tool_choice: "required", parallel_tool_calls: false, tools: [
  { type: "function", function: { name: "book", parameters: z.toJSONSchema(Receipt), parse: JSON.parse,
    function: ({ paid }) => `booked ${paid}` } },
] }, { maxChatCompletions: 2 });
await runner.done();
assert.ok(runner.messages.some((message) => message.role === "tool"));
console.log("passed: tools");
const response = await client.responses.create({ model, max_output_tokens: 200, input: [{ role: "user", content: [
  { type: "input_text", text: "What is the total?" }, { type: "input_image", image_url: url, detail: "auto" },
] }] });
assert.ok(response.output_text.includes("14.27"));
console.log("passed: responses");

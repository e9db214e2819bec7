// Ten calls with OpenAI's JavaScript client; the address of the server is the argument. Prints one JSON object.
const OpenAI = require("openai");

async function main() {
  const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
  const messages = [{ role: "user", content: "Capital of Peru?" }];
  const weather = {
    name: "weather",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  };
  const form = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
  const said = {};

  const whole = await client.chat.completions.create({ model: "router-r1", messages });
  said.chat = whole.choices[0].message.content;
  said.bill = whole.router_r1.cost_usd;

  said.stream = "";
  const stream = await client.chat.completions.create({
    model: "router-r1@0.6", messages, stream: true, stream_options: { include_usage: true },
  });
  for await (const chunk of stream) {
    said.stream += chunk.choices[0]?.delta?.content ?? "";
    said.tokens = chunk.usage?.total_tokens ?? 0;
  }

  const called = await client.chat.completions.create({
    model: "tools", messages, tools: [{ type: "function", function: weather }],
  });
  said.tool = called.choices[0].message.tool_calls[0].function;

  const formed = await client.chat.completions.create({
    model: "form", messages,
    response_format: { type: "json_schema", json_schema: { name: "Capital", schema: form } },
  });
  said.form = JSON.parse(formed.choices[0].message.content);

  said.direct = (await client.chat.completions.create({ model: "small", messages })).choices[0].message.content;
  said.response = (await client.responses.create({ model: "router-r1", input: "Capital of Peru?" })).output_text;

  said.responseStream = "";
  for await (const event of await client.responses.create({ model: "router-r1", input: messages, stream: true })) {
    if (event.type === "response.output_text.delta") said.responseStream += event.delta;
  }

  const calledAgain = await client.responses.create({
    model: "tools", input: "How warm?", tools: [{ type: "function", strict: false, ...weather }],
  });
  said.responseTool = calledAgain.output[0].arguments;

  said.models = [];
  for await (const model of client.models.list()) said.models.push(model.id);

  try {
    await client.chat.completions.create({ model: "nobody", messages });
  } catch (error) {
    said.error = [error.status, error.code];
  }
  console.log(JSON.stringify(said));
}

main();

// What a program does with OpenAI's official client for Node: `node flows.cjs URL`. As `flows.py`, it prints a line
// of JSON for each flow, and knows nothing of what is right.

const OpenAI = require("openai");

const client = new OpenAI({ apiKey: "sk-any", baseURL: process.argv[2], maxRetries: 0 });
const { assistants, threads } = client.beta;
const { messages, runs } = threads;

const CALLBACKS = {
  event: (event) => event.event.replace("thread.", ""),
  run: (run) => ["run", run.id, run.status],
  runStepCreated: (step) => ["run step created", step.id],
  runStepDelta: () => ["run step delta"],
  runStepDone: (step) => ["run step done", step.id, step.status],
  toolCallCreated: (call) => ["tool call created", call.id],
  toolCallDelta: (delta, call) => ["tool call delta", delta.function.arguments, call.function.arguments],
  toolCallDone: (call) => ["tool call done", call.function.name, call.function.arguments],
  messageCreated: (message) => ["message created", message.id],
  messageDelta: (_, message) => ["message delta", message.id],
  messageDone: (message) => ["message done", message.id, message.status],
  textCreated: () => ["text created"],
  textDelta: (delta, text) => ["text delta", delta.value, text.value],
  textDone: (text) => ["text done", text.value],
  end: () => ["end"],
  abort: (error) => ["abort", String(error)],
  error: (error) => ["error", String(error)],
};

function recorded(stream) {
  const order = [];
  for (const [name, tell] of Object.entries(CALLBACKS)) stream.on(name, (...told) => order.push(tell(...told)));
  return order;
}

async function refused(call) {
  try {
    await call();
  } catch (error) {
    return [error.constructor.name, error.status, error.code, error.param, error.type, error.error.message];
  }
  return null;
}

async function all(pages) {
  const items = [];
  for await (const item of pages) items.push(item);
  return items;
}

const textOf = (message) => message.content.map((part) => part.text.value).join("");
const texts = async (thread_id, query) => (await all(messages.list(thread_id, query))).map(textOf).join(" ");
const outputsFor = (run) =>
  run.required_action.submit_tool_outputs.tool_calls.map((call, n) => ({ tool_call_id: call.id, output: `${n} degrees` }));

async function asked(text) {
  const assistant = await assistants.create({ model: "any", instructions: "Be kind." });
  const thread = await threads.create({ messages: [{ role: "user", content: text }] });
  return [thread.id, { assistant_id: assistant.id }];
}

async function outcome(run) {
  run = await runs.retrieve(run.id, { thread_id: run.thread_id });
  const steps = await all(runs.steps.list(run.id, { thread_id: run.thread_id, order: "asc" }));
  const kept = await all(messages.list(run.thread_id, { order: "asc" }));
  return {
    status: run.status,
    error: run.last_error && [run.last_error.code, run.last_error.message],
    incomplete: run.incomplete_details && run.incomplete_details.reason,
    moments: Object.keys(run).filter((name) => name.endsWith("_at") && run[name]).sort(),
    steps: steps.map((step) => [step.type, step.status]),
    messages: kept.map((message) => [message.role, message.status, textOf(message)]),
  };
}

// Stops a run whose stream has come to its first word, and reads on.
async function stopped(text, stop) {
  const stream = runs.stream(...(await asked(text)));
  const order = recorded(stream);
  const said = new Promise((resolve, reject) =>
    stream.on("textDelta", () => stop(stream.currentRun()).then(resolve, reject)));
  const run = await stream.finalRun();
  return { order, said: (await said).status ?? (await said), outcome: await outcome(run) };
}

const FLOWS = {
  async create() {
    const assistant = await assistants.create({ model: "any", name: "Guide" });
    const thread = await threads.create({ metadata: { a: "b" } });
    const message = await messages.create(thread.id, { role: "user", content: "hello" });
    const changed = await messages.update(message.id, { thread_id: thread.id, metadata: { c: "d" } });
    const gone = [
      await messages.delete(message.id, { thread_id: thread.id }),
      await threads.delete(thread.id),
      await assistants.delete(assistant.id),
    ];
    return {
      made: [assistant.name, thread.metadata, textOf(message), changed.metadata],
      gone: gone.map((deleted) => [deleted.object, deleted.deleted]),
      then: await refused(() => threads.retrieve(thread.id)),
    };
  },

  async poll() {
    const run = await runs.createAndPoll(...(await asked("echo hello")));
    return { usage: run.usage, outcome: await outcome(run) };
  },

  async stream() {
    const stream = runs.stream(...(await asked("stream one two three")));
    const order = recorded(stream);
    const run = await stream.finalRun();
    const final = [run.id, run.status, (await stream.finalMessages()).map(textOf)];
    return { order, final: [...final, (await stream.finalRunSteps()).map((step) => [step.id, step.status])] };
  },

  async stream_of_events() {
    const [, { assistant_id }] = await asked("");
    const stream = threads.createAndRunStream({ assistant_id, thread: { messages: [{ role: "user", content: "look" }] } });
    const order = recorded(stream);
    await stream.done();
    return { order };
  },

  async tools() {
    const run = await runs.createAndPoll(...(await asked("tools")), { pollIntervalMs: 10 });
    const of_run = { thread_id: run.thread_id };
    const outputs = outputsFor(run);
    return {
      status: run.status,
      action: run.required_action,
      "one is missing": await refused(() => runs.submitToolOutputs(run.id, { ...of_run, tool_outputs: outputs.slice(0, 1) })),
      outcome: await outcome(
        await runs.submitToolOutputsAndPoll(run.id, { ...of_run, tool_outputs: outputs }, { pollIntervalMs: 10 })),
    };
  },

  async tools_in_a_stream() {
    const stream = runs.stream(...(await asked("tools")));
    const before = recorded(stream);
    const run = await stream.finalRun();
    const next = runs.submitToolOutputsStream(run.id, { thread_id: run.thread_id, tool_outputs: outputsFor(run) });
    const after = recorded(next);
    await next.done();
    return { before, after, outcome: await outcome(run) };
  },

  cancel_in_a_stream: () => stopped("stand one", (run) => runs.cancel(run.id, { thread_id: run.thread_id })),

  async cancel_while_waiting_for_tools() {
    const run = await runs.createAndPoll(...(await asked("tools")), { pollIntervalMs: 10 });
    const of_run = { thread_id: run.thread_id };
    return {
      status: (await runs.cancel(run.id, of_run)).status,
      outcome: await outcome(run),
      again: await refused(() => runs.cancel(run.id, of_run)),
    };
  },

  expiry: () => stopped("stand one", () => client.post("/later")),

  async failure() {
    const seen = {};
    for (const text of ["fail half", "raise secrets", "incomplete half"]) {
      const stream = runs.stream(...(await asked(text)));
      const order = recorded(stream);
      seen[text] = { order, outcome: await outcome(await stream.finalRun()) };
    }
    return seen;
  },

  async pages() {
    const thread = await threads.create();
    for (let number = 0; number < 11; number++) await messages.create(thread.id, { role: "user", content: String(number) });
    const sizes = [];
    for await (const page of (await messages.list(thread.id, { limit: 4 })).iterPages()) sizes.push(page.data.length);
    return {
      up: await texts(thread.id, { order: "asc", limit: 4 }),
      down: await texts(thread.id, { order: "desc", limit: 4 }),
      sizes,
    };
  },

  async race() {
    const [thread_id, body] = await asked("tools");
    const answers = await Promise.allSettled(Array.from({ length: 8 }, () => runs.create(thread_id, body)));
    const reasons = answers.filter((answer) => answer.status === "rejected").map((answer) => answer.reason);
    return {
      winners: answers.filter((answer) => answer.status === "fulfilled").map((answer) => answer.value.id),
      runs: (await all(runs.list(thread_id))).map((run) => run.id),
      losers: await Promise.all(reasons.map((reason) => refused(() => Promise.reject(reason)))),
    };
  },
};

// Each id becomes a kind and a number, in the order in which they come.
function named(json) {
  const names = new Map();
  const counts = {};
  return json.replace(/\b(asst|thread|msg|run|step|call)_[0-9a-f]{32}\b/g, (id, kind) => {
    if (!names.has(id)) names.set(id, `${kind}_${(counts[kind] = (counts[kind] ?? 0) + 1)}`);
    return names.get(id);
  });
}

(async () => {
  console.log(JSON.stringify({ flow: "version", seen: process.version }));
  for (const [flow, follow] of Object.entries(FLOWS)) console.log(named(JSON.stringify({ flow, seen: await follow() })));
})();

// The page of the server. Whatever users and models wrote is put in as text: nothing here becomes HTML.

import { events, get, post, useKey } from "./api.js";
import { approvals, mostText, planText } from "./approval.js";
import { button, byId, head, make, named, percent, priceText, small, sum, usd, whole, written } from "./dom.js";
import { plotOf } from "./plot.js";

const isStill = matchMedia("(prefers-reduced-motion: reduce)");

let pool = []; // the models of the server
let run = null; // what is shown
let following = null; // ends the stream that is read
let opening = null; // the past run that is loaded
let clock = null; // counts the seconds of the run
let plotted = ""; // the figures that are drawn

function say(text) {
  byId("status").textContent = text;
}

function complain(error) {
  const needsKey = error.status === 401;
  byId("error").textContent = needsKey ? "The server does not know this key." : error.message;
  byId("error").hidden = needsKey && !byId("key").value; // that it asks for one is no error
  byId("error").scrollIntoView({ block: "nearest" });
  if (!needsKey) return;
  byId("key-form").hidden = false;
  byId("key").focus();
}

/** Wait for what is loaded; say so if it takes longer than a moment. */
async function loading(id, text, promise) {
  const timer = setTimeout(() => (byId(id).textContent = text), 500);
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
    byId(id).textContent = "";
  }
}

// A run: how it begins, goes on and ends

function show(question, prices) {
  opening = null;
  // A stream is complete when its run has ended, broken off, or waits.
  run = { id: null, question, prices, calls: new Map(), thought: null, answerId: null, routerCost: 0, decisions: [] };
  run.feedback = null;
  run.isComplete = run.hasEnded = run.waits = false;
  for (const id of ["steps", "requests", "answer"]) byId(id).replaceChildren();
  for (const id of ["approval", "answer-part", "feedback", "replay", "run-link", "error"]) byId(id).hidden = true;
  byId("run").hidden = false;
  byId("run-title").textContent = question;
  say("");
  drawBill();
}

const poolPrices = () => Object.fromEntries(pool.map((model) => [model.id, model.router_r1.price]));

async function follow(path, body) {
  following?.abort();
  const mine = (following = new AbortController());
  setBusy(true);
  run.isComplete = false;
  byId("error").hidden = true;
  try {
    for await (const event of events(path, body, mine.signal)) if (following === mine) draw(event);
    if (following === mine && !run.isComplete) throw new Error("The connection broke off before the run was over.");
  } catch (error) {
    if (following !== mine) return;
    if (mine.signal.aborted) say("Stopped. What was spent is recorded.");
    else complain(error);
  }
  if (following !== mine) return;
  following = null;
  setBusy(false);
  if (run.hasEnded) offerMore(); // now that its record is kept
  refresh();
}

function setBusy(isBusy) {
  byId("send").ariaDisabled = String(isBusy); // and not disabled: it would lose the focus
  if (!isBusy && document.activeElement === byId("stop")) byId("run-title").focus();
  byId("stop").hidden = byId("elapsed").hidden = !isBusy;
  clearInterval(clock);
  byId("elapsed").textContent = "";
  const begun = Date.now();
  const tell = () => (byId("elapsed").textContent = `${Math.round((Date.now() - begun) / 1000)} s`);
  if (isBusy) clock = setInterval(tell, 1000);
  byId("answer").setAttribute("aria-busy", String(isBusy));
}

function ask() {
  const question = byId("question").value.trim();
  if (!question || following) return;
  show(question, poolPrices());
  say("The router thinks.");
  const budget = byId("budget").value;
  follow("v1/runs", {
    question,
    ...(byId("decider").value && { model: byId("decider").value }),
    cost_weight: Number(byId("weight").value),
    budget_usd: budget === "" ? null : Number(budget),
    approve: byId("approve").checked,
  });
}

function fork(call, model) {
  const { id, question } = run;
  show(question, poolPrices());
  say(`Fork: ${model} is asked in place of ${call.model}. What came before is repeated at no cost.`);
  byId("run-title").focus();
  follow(`v1/runs/${id}/fork`, { turn: call.turn, index: call.index, model });
}

async function open(id, { isPaced = false } = {}) {
  if (following && !confirm("Stop the run that is shown?")) return;
  following?.abort();
  following = null;
  setBusy(false);
  const loaded = (opening = {});
  const found = await loading("runs-note", "Loading the run.", get(`v1/runs/${encodeURIComponent(id)}`));
  if (opening !== loaded) return; // something else is shown by now
  show(found.question, found.record?.prices ?? {});
  const mine = run;
  mine.feedback = found.feedback;
  for (const event of eventsOf(found)) {
    if (isPaced) await pause(event);
    if (run !== mine) return;
    draw(event);
  }
  const why = found.error ? `: ${found.error}` : "";
  if (found.status !== "ended" && !found.approval) say(`This run is ${found.status}${why}.`);
  if (found.record && !found.approval) offerMore();
  if (!isPaced) byId("run-title").focus();
}

// A record as the events that its run had

function eventsOf({ id, record, status, approval }) {
  const list = [{ type: "router_r1.run", run_id: id }];
  let turn = 0;
  for (const decision of record?.decisions ?? []) {
    if (decision.thought !== null) list.push({ type: "router_r1.think", turn, text: decision.thought });
    if (decision.plan) list.push({ ...decision.plan, type: "router_r1.plan" });
    if (decision.kind !== "ask") continue;
    const calls = record.calls.filter((call) => call.turn === turn);
    list.push(...calls.map((call) => ({ ...call, type: "router_r1.route" })));
    list.push(...calls.map((call) => ({ ...call, type: "router_r1.info" })));
    turn += 1;
  }
  if (status === "ended") list.push({ type: "router_r1.done", answer: record.answer, routing: record.report });
  if (approval) list.push({ type: "router_r1.approval", request: approval });
  return list;
}

function pause(event) {
  const seconds = { "router_r1.run": 0, "router_r1.info": Math.min(event.latency_s, 2) }[event.type] ?? 0.5;
  return new Promise((resume) => setTimeout(resume, isStill.matches ? 0 : 1000 * seconds));
}

// Drawing

const drawing = {
  "router_r1.run": ({ run_id }) => {
    run.id = run_id;
    run.waits = false;
    byId("run-link").hidden = false;
    byId("run-link").href = `#${run_id}`;
    history.replaceState(null, "", `#${run_id}`);
  },
  "router_r1.think_delta": ({ text }) => {
    run.thought ??= addThought("");
    run.thought.append(run.thought.textContent ? text : text.trimStart());
  },
  "router_r1.think": ({ text }) => {
    const thought = thoughtOf(text);
    if (run.thought) run.thought.textContent = thought;
    else if (thought) addThought(thought);
    run.thought = null;
  },
  "router_r1.plan": ({ steps, worst_case_usd }) => {
    const plan = head(named("Plan"), small(mostText(worst_case_usd)));
    byId("steps").append(make("li", { className: "step" }, plan, written(planText(steps))));
    say(`The plan has ${steps.length === 1 ? "one step" : `${steps.length} steps`}.`);
  },
  "router_r1.route": (event) => {
    run.calls.set(`${event.turn}.${event.index}`, addCall(event));
    say(`${event.model} is asked.`);
  },
  "router_r1.info": (event) => {
    const call = Object.assign(run.calls.get(`${event.turn}.${event.index}`), event);
    drawReply(call);
    drawBill();
    say(call.status === "ok" ? `${call.answered_by} replied.` : `The call of ${call.model} failed.`);
  },
  "router_r1.answer_delta": ({ message_id, text }) => {
    if (run.answerId !== message_id) byId("answer").replaceChildren(); // another answer takes its place
    run.answerId = message_id;
    byId("answer-part").hidden = false;
    byId("answer").append(text);
  },
  "router_r1.done": ({ answer, routing }) => {
    byId("answer-part").hidden = false;
    byId("answer").textContent = answer || "No answer.";
    run.routerCost = routing.router_cost_usd;
    run.isComplete = true;
    run.hasEnded = true;
    drawBill();
    const why = routing.stop_reason.replaceAll("_", " ");
    say(why === "answered" ? "The router answered." : `The run ended: ${why}.`);
  },
  "router_r1.approval": ({ request: waiting }) => {
    run.isComplete = true;
    askApproval(waiting);
  },
  "router_r1.error": ({ error }) => {
    run.isComplete = true;
    complain(error);
  },
};

function draw(event) {
  drawing[event.type]?.(event);
}

function thoughtOf(text) {
  const found = [...text.matchAll(/<think>([^]*?)(?:<\/think>|$)/g)].map((match) => match[1].trim());
  return found.length || /<(search|answer)>/.test(text) ? found.join("\n") : text.trim();
}

function addThought(text) {
  const thought = written(text, "text quiet");
  byId("steps").append(make("li", { className: "step" }, thought));
  return thought;
}

function addCall({ turn, index, model, query, review }) {
  const facts = small("waits for the reply");
  const price = small(run.prices[model] ? priceText(run.prices[model]) : "");
  const item = make("li", { className: "step call" }, head(named(model), price, facts), written(query, "text query"));
  const before = `Edited by a person. The router wrote: ${review?.model}: ${review?.query}`;
  if (review?.decision === "edit") item.append(written(before, "text quiet"));
  byId("steps").append(item);
  return { turn, index, model, query, facts, item };
}

function drawReply({ item, facts, model, answered_by, status, reason, response, usage, cost_usd, latency_s }) {
  const isOk = status === "ok";
  const tokens = `${whole.format(usage.prompt_tokens)} + ${whole.format(usage.completion_tokens)} tokens`;
  const who = answered_by && answered_by !== model ? `${answered_by} replied in its place, ` : "";
  const wasAsked = isOk || status === "error";
  facts.textContent = wasAsked ? `${who}${latency_s.toFixed(2)} s, ${tokens}, ${usd(cost_usd)}` : "not asked, no cost";
  item.classList.toggle("failed", !isOk);
  const reply = written(isOk ? response : (reason ?? status), "text reply");
  item.append(reply);
  if (reply.scrollHeight > reply.clientHeight) reply.tabIndex = 0; // scrolls by keyboard
}

function offerMore() {
  byId("replay").hidden = false;
  if (run.hasEnded) showFeedback();
  for (const call of run.calls.values()) if (["ok", "error"].includes(call.status)) addFork(call);
}

function addFork(call) {
  const others = pool.filter((model) => model.id !== call.model);
  if (!others.length) return;
  const select = make("select", { ariaLabel: `Model to ask in place of ${call.model}` });
  select.append(...others.map((model) => make("option", { value: model.id, text: model.id })));
  const start = button("Fork here", () => fork(call, select.value));
  call.item.append(make("div", { className: "fork" }, small("Ask instead"), select, start));
}

// Feedback

function showFeedback() {
  const score = run.feedback?.score;
  byId("rate-good").ariaPressed = String(score === 1);
  byId("rate-bad").ariaPressed = String(score === 0);
  byId("score").textContent = run.feedback ? `Score ${score}, from 0 for bad to 1 for good` : "Not rated yet";
  byId("comment").value = run.feedback?.comment ?? "";
  byId("feedback").hidden = false;
}

async function rate(score) {
  const mine = run;
  byId("error").hidden = true;
  mine.feedback = await post("v1/feedback", { run_id: mine.id, score, comment: byId("comment").value || null });
  if (run !== mine) return;
  showFeedback();
  say("The rating is kept.");
}

// The bill

function drawBill() {
  const calls = [...run.calls.values()].filter((call) => call.usage);
  byId("bill").hidden = !calls.length && !run.isComplete;
  const spent = run.routerCost + sum(calls.map((call) => call.cost_usd));
  const tokens = (kind) => sum(calls.map((call) => call.usage[kind]));
  const [prompt, completion] = [tokens("prompt_tokens"), tokens("completion_tokens")];
  const cost = (price) => (prompt * price.prompt + completion * price.completion) / 1e6;
  const costs = Object.entries(run.prices).map(([name, price]) => ({ name, usd: cost(price) }));
  const most = costs.reduce((one, other) => (other.usd > one.usd ? other : one), { name: "", usd: 0 });
  byId("spent").textContent = usd(spent) + (run.routerCost ? `, ${usd(run.routerCost)} of it for the router` : "");
  byId("alone-name").textContent = most.name ? `${most.name} alone` : "The most expensive model alone";
  byId("alone").textContent = usd(most.usd);
  byId("spent-bar").value = spent / Math.max(spent, most.usd, Number.MIN_VALUE);
  byId("alone-bar").value = most.usd / Math.max(spent, most.usd, Number.MIN_VALUE);
  byId("bill-help").textContent =
    `Second line: the ${whole.format(prompt)} prompt and ${whole.format(completion)} completion tokens of the routed calls at the list ` +
    "price of the model for which they cost most, without the router's tokens, cache discounts and price tiers. " +
    "That model might have used more or fewer tokens.";
}

// Approval

function askApproval({ action_requests: waiting, error }) {
  run.waits = true;
  const drafts = error ? run.decisions : []; // what could not be used is shown again
  byId("requests").replaceChildren(...approvals(waiting, pool, drafts, sendDecisions));
  byId("approval-help").hidden = waiting.length === 1;
  byId("approval").hidden = false;
  byId("approval-title").focus();
  const what = waiting[0].name === "run_plan" ? "the plan" : waiting.length === 1 ? "a call" : `${waiting.length} calls`;
  say(error ?? `Waiting for your decision on ${what}.`);
}

async function sendDecisions(decisions) {
  const mine = run;
  run.decisions = decisions;
  byId("approval").hidden = true;
  byId("run-title").focus();
  await follow(`v1/runs/${run.id}/decisions`, { decisions });
  if (run === mine && run.waits) byId("approval").hidden = false; // they did not reach the server: send them again
}

// Past runs and the pool

async function listRuns(before) {
  const search = byId("search").value.trim();
  const query = new URLSearchParams({ limit: 20, ...(search && { search }), ...(before && { before }) });
  const { data } = await loading("runs-note", "Loading.", get(`v1/runs?${query}`));
  if (search !== byId("search").value.trim()) return; // the next list is under way
  const items = data.map(runItem);
  if (before) byId("runs").append(...items);
  else byId("runs").replaceChildren(...items);
  if (!byId("runs").childElementCount) byId("runs-note").textContent = search ? "No run found." : "No run yet.";
  byId("older").hidden = data.length < 20;
  byId("older").onclick = () => attempt(() => listRuns(data.at(-1).created_at));
}

function runItem({ id, question, status, cost_usd, created_at }) {
  const when = new Date(1000 * created_at).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  const onclick = () => attempt(() => open(id));
  const facts = small(`${status}, ${usd(cost_usd)}, ${when}`);
  return make("li", {}, make("button", { type: "button", onclick }, named(question), facts));
}

async function listPool() {
  const { data } = await loading("pool-note", "Loading.", get("v1/models"));
  pool = data.filter((model) => model.router_r1);
  listDeciders(data.filter(({ id, router_r1 }) => !router_r1 && !id.includes("@")).map(({ id }) => id));
  const all = sum(pool.map(callsOf));
  byId("pool").replaceChildren(...pool.map((model) => poolItem(model, all)));
  if (!pool.length) byId("pool-note").textContent = "No model of the pool can be asked for by name.";
  drawPlot();
}

function listDeciders(names) {
  const select = byId("decider");
  byId("decider-part").hidden = names.length < 2;
  if (names.join() === [...select.options].map(({ value }) => value).join()) return; // what is chosen stays
  select.replaceChildren(...names.map((name) => make("option", { value: name, text: name })));
}

function drawPlot() {
  const figures = JSON.stringify(pool.map(({ id, router_r1: { profile } }) => [id, profile]));
  if (figures === plotted) return; // its table stays open
  plotted = figures;
  const plot = plotOf(pool);
  byId("plot").hidden = !plot;
  byId("plot").replaceChildren(...(plot ? [plot] : []));
}

const callsOf = ({ router_r1: { calls } }) => sum(Object.values(calls));

function poolItem(model, all) {
  const { description, price, latency_s, skills, is_resting, calls } = model.router_r1;
  const count = callsOf(model);
  const failed = count - (calls.ok ?? 0);
  const share = all ? count / all : 0;
  const known = Object.entries(skills).map(([skill, value]) => `${skill} ${percent(value)}`);
  const health = is_resting ? "resting: it keeps failing" : failed ? `${failed} of ${count} calls failed` : "healthy";
  const latency = latency_s === null ? [] : [`${latency_s} s`];
  const facts = [`${usd(price.prompt)} in, ${usd(price.completion)} out`, ...latency, ...known];
  const bar = make("progress", { max: 1, value: share, ariaLabel: `Share of calls of ${model.id}` });
  return make(
    "li",
    {},
    head(named(model.id), small(health, is_resting || failed ? "bad" : "good")),
    make("div", { className: "quiet", text: description, dir: "auto" }),
    make("div", { text: facts.join(" · ") }),
    make("div", {}, bar, " ", small(`${percent(share)} of ${all} calls`)),
  );
}

// What a user does

async function attempt(action) {
  try {
    await action();
  } catch (error) {
    complain(error);
  }
}

const refresh = () => attempt(() => Promise.all([listPool(), listRuns()]));

function openFromAddress() {
  const id = location.hash.slice(1);
  if (/^run-\w+$/.test(id) && id !== run?.id) attempt(() => open(id));
}

function onSubmit(id, action) {
  byId(id).addEventListener("submit", (event) => {
    event.preventDefault();
    action();
  });
}

onSubmit("ask", ask);
onSubmit("approval", () => {}); // its buttons decide
onSubmit("key-form", () => {
  useKey(byId("key").value.trim());
  byId("key-form").hidden = byId("error").hidden = true;
  refresh();
});
byId("question").addEventListener("keydown", ({ key, ctrlKey, metaKey }) => {
  if (key === "Enter" && (ctrlKey || metaKey)) byId("ask").requestSubmit();
});
byId("weight").addEventListener("input", () => (byId("weight-shown").textContent = byId("weight").value));
byId("stop").addEventListener("click", () => following?.abort());
byId("replay").addEventListener("click", () => attempt(() => open(run.id, { isPaced: true })));
byId("rate-good").addEventListener("click", () => attempt(() => rate(1)));
byId("rate-bad").addEventListener("click", () => attempt(() => rate(0)));
byId("search").addEventListener("input", () => attempt(() => listRuns()));
window.addEventListener("hashchange", openFromAddress);
refresh().then(openFromAddress);

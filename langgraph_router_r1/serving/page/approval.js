// The calls of a turn, or a plan, that wait until a person has approved, edited or denied each of them.

import { button, make, named, priceText, small, usd, written } from "./dom.js";

/** What the server calls the approval of a plan. */
const PLAN = "run_plan";

/**
 * Return an element for each waiting call, or for the plan.
 *
 * `drafts` are decisions that could not be used, to be shown again. `send` is given a decision for each call, in the
 * form of LangChain's `HumanInTheLoopMiddleware`, once there is one for each.
 */
export function approvals(waiting, pool, drafts, send) {
  const decisions = waiting.map(() => null); // functions: what stands in the fields when all are sent counts
  return waiting.map((action, place) =>
    approvalOf(action, pool, drafts[place], (decision) => {
      decisions[place] = decision;
      if (decisions.every(Boolean)) send(decisions.map((decide) => decide()));
    }),
  );
}

/** Return a plan as text, a line a step; each step has a model, and a query or the text that it has in an event. */
export const planText = (steps) =>
  steps.map(({ model, query, text }, place) => `${place + 1}. ${query ?? text} (${model})`).join("\n");

export const mostText = (usdOrNull) => (usdOrNull === null ? "its cost has no upper bound" : `at most ${usd(usdOrNull)}`);

function approvalOf({ name, args, worst_case_usd }, pool, draft, decide) {
  const isPlan = name === PLAN;
  const ariaLabel = isPlan ? "Reason to deny the plan" : `Reason to deny the call of ${args.model}`;
  const reason = make("input", { placeholder: "Reason, for the router", ariaLabel });
  const edit = isPlan ? planEditOf(args, pool) : callEditOf(args, pool);
  const approve = button("Approve", () => press(approve, () => ({ type: "approve" })));
  const deny = button("Deny", () => press(deny, () => ({ type: "reject", message: reason.value })));
  const save = button(isPlan ? "Follow the edited plan" : "Make the edited call", () => edit.isValid() && press(save, edit.decision));
  const open = button("Edit", () => show(true));
  const cancel = button("Cancel", () => show(false));

  const press = (pressed, decision) => {
    for (const each of [approve, deny, save]) each.ariaPressed = String(each === pressed);
    decide(decision);
  };
  const choices = [
    written(isPlan ? planText(args.steps) : args.query),
    make("div", { className: "buttons" }, approve, open),
    make("div", { className: "deny" }, reason, deny),
  ];
  const editing = [...edit.fields, make("div", { className: "buttons" }, save, cancel)];
  const show = (isEditing) => {
    press(null, null);
    for (const each of choices) each.hidden = isEditing;
    for (const each of editing) each.hidden = !isEditing;
    (isEditing ? edit.first : open).focus();
  };
  const onkeydown = ({ key, ctrlKey, metaKey }) => {
    if (save.checkVisibility() && key === "Escape") show(false);
    if (save.checkVisibility() && key === "Enter" && (ctrlKey || metaKey)) save.click();
  };

  show(draft?.type === "edit");
  if (draft?.type === "edit") edit.fill(draft.edited_action.args);
  if (draft?.type === "reject") reason.value = draft.message;
  const legend = make("legend", {}, named(`${isPlan ? "Plan" : args.model}, ${mostText(worst_case_usd)}`));
  return make("fieldset", { onkeydown }, legend, ...choices, ...editing);
}

/** Return the fields in which a call is edited, and the decision that they mean. */
function callEditOf(args, pool) {
  const fields = fieldsOf(args, pool);
  return {
    ...fields,
    fields: [...fields.fields, small("A call that could exceed the budget is not made.")],
    isValid: () => fields.isValid("Write what the model is to be asked."),
    decision: () => {
      const changed = Object.entries(fields.values()).filter(([field, value]) => value !== args[field]);
      if (!changed.length) return { type: "approve" };
      return { type: "edit", edited_action: { name: "ask_model", args: Object.fromEntries(changed) } };
    },
  };
}

/** Return the fields in which a plan is edited, two for each step, and the decision that they mean. */
function planEditOf(args, pool) {
  const steps = args.steps.map((step, place) => fieldsOf(step, pool, ` of step ${place + 1}`));
  const values = () => steps.map((step) => step.values()).filter(({ query }) => query);
  return {
    fields: [
      ...steps.flatMap(({ fields }) => fields),
      small("#1 stands for the result of step 1. A step without a query is left out."),
    ],
    first: steps[0].first,
    fill: (edited) => steps.forEach((step, place) => step.fill(edited.steps[place] ?? { query: "" })),
    isValid: () => values().length > 0 || steps[0].isValid("Write what is to be asked in at least one step."),
    decision: () => {
      const edited = values();
      const isSame = ({ model, query }, place) => model === args.steps[place].model && query === args.steps[place].query;
      if (edited.length === steps.length && edited.every(isSame)) return { type: "approve" };
      return { type: "edit", edited_action: { name: PLAN, args: { steps: edited } } };
    },
  };
}

/** Return the fields for a model and what it is asked. */
function fieldsOf(args, pool, ofWhat = "") {
  const names = pool.map((model) => model.id);
  if (!names.includes(args.model)) names.unshift(args.model); // the router may ask it, though the key may not
  const model = make("select", {}, ...names.map((name) => make("option", { value: name, text: name })));
  const query = make("textarea", { rows: 3, dir: "auto" });
  const price = small("");
  const showPrice = () => {
    const chosen = pool.find(({ id }) => id === model.value);
    price.textContent = chosen ? priceText(chosen.router_r1.price) : "";
  };
  const fill = (edited) => {
    model.value = edited.model ?? args.model;
    query.value = edited.query ?? args.query;
    showPrice();
  };
  model.addEventListener("change", showPrice);
  query.addEventListener("input", () => query.setCustomValidity(""));
  fill(args);
  const fields = [
    make("label", {}, `Model${ofWhat}`, model),
    price,
    make("label", {}, `Query${ofWhat}`, query),
  ];
  return {
    fields,
    fill,
    first: model,
    values: () => ({ model: model.value, query: query.value.trim() }),
    isValid: (problem) => {
      query.setCustomValidity(query.value.trim() ? "" : problem);
      return query.reportValidity();
    },
  };
}

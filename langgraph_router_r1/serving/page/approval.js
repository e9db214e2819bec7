// The calls of a turn that wait until a person has approved, edited or denied each of them.

import { button, make, named, priceText, small, usd, written } from "./dom.js";

/**
 * Return an element for each waiting call.
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

function approvalOf({ args, worst_case_usd }, pool, draft, decide) {
  const most = worst_case_usd === null ? "its cost has no upper bound" : `at most ${usd(worst_case_usd)}`;
  const ariaLabel = `Reason to deny the call of ${args.model}`;
  const reason = make("input", { placeholder: "Reason, for the router", ariaLabel });
  const edit = editOf(args, pool);
  const approve = button("Approve", () => press(approve, () => ({ type: "approve" })));
  const deny = button("Deny", () => press(deny, () => ({ type: "reject", message: reason.value })));
  const save = button("Make the edited call", () => edit.isValid() && press(save, edit.decision));
  const open = button("Edit", () => show(true));
  const cancel = button("Cancel", () => show(false));

  const press = (pressed, decision) => {
    for (const each of [approve, deny, save]) each.ariaPressed = String(each === pressed);
    decide(decision);
  };
  const choices = [
    written(args.query),
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
  const legend = make("legend", {}, named(`${args.model}, ${most}`));
  return make("fieldset", { onkeydown }, legend, ...choices, ...editing);
}

/** Return the fields in which a call is edited: its model and what it is asked. */
function editOf(args, pool) {
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
    make("label", {}, "Model", model),
    price,
    make("label", {}, "Query", query),
    small("A call that could exceed the budget is not made."),
  ];
  return {
    fields,
    fill,
    first: model,
    isValid: () => {
      query.setCustomValidity(query.value.trim() ? "" : "Write what the model is to be asked.");
      return query.reportValidity();
    },
    decision: () => {
      const edited = Object.entries({ model: model.value, query: query.value.trim() });
      const changed = edited.filter(([field, value]) => value !== args[field]);
      if (!changed.length) return { type: "approve" };
      return { type: "edit", edited_action: { name: "ask_model", args: Object.fromEntries(changed) } };
    },
  };
}

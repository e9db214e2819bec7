// How elements, names, texts and numbers are shown. Nothing here becomes HTML: every text is put in as text.

export const byId = (id) => document.getElementById(id);

const dollars = new Intl.NumberFormat("en", { style: "currency", currency: "USD", maximumSignificantDigits: 3 });
export const whole = new Intl.NumberFormat("en");
export const usd = (value) => dollars.format(value);
export const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
export const priceText = (price) => `${usd(price.prompt)} in, ${usd(price.completion)} out per million tokens`;
export const sum = (values) => values.reduce((total, value) => total + value, 0);

export function make(tag, { text, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

export const written = (text, className = "text") => make("p", { text, className, dir: "auto" });
export const named = (text) => make("span", { text, className: "name", dir: "auto" });
export const small = (text, className = "quiet") => make("small", { text, className });
export const head = (...children) => make("div", { className: "head" }, ...children);
export const button = (text, onclick) => make("button", { type: "button", text, onclick });

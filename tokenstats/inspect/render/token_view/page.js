// Token views in a file: each place holds its row and the decisions on it as JSON, and nothing is fetched.
import { element } from "./dom.js";
import { TokenView } from "./view.js";

for (const place of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".token-view-place"))) {
  const { row, decisions } = JSON.parse(/** @type {Element} */ (place.querySelector("script")).textContent ?? "");
  const box = element("div");
  const view = new TokenView(box);
  const buttons = decisions.map((/** @type {any} */ one, /** @type {number} */ i) =>
    element("button", { type: "button", "aria-pressed": String(i === 0), text: one.name, onclick: () => choose(i) }),
  );
  const choose = (/** @type {number} */ chosen) => {
    view.decide(decisions[chosen]);
    buttons.forEach((/** @type {HTMLElement} */ button, /** @type {number} */ i) => button.setAttribute("aria-pressed", String(i === chosen)));
  };
  const choices = element("div", { class: "choices-of-mask", role: "group", "aria-label": "decisions of" }, buttons);
  place.replaceChildren(...(buttons.length > 1 ? [choices] : []), box);
  view.show(row, decisions[0]);
}

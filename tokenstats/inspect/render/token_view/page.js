// Token views in a file: each place holds its row and decisions as JSON, and nothing is fetched.
import { TokenView } from "./view.js";

for (const place of document.querySelectorAll(".token-view-place")) {
  const sent = JSON.parse(/** @type {Element} */ (place.querySelector("script[type='application/json']")).textContent ?? "");
  new TokenView(/** @type {HTMLElement} */ (place)).show(sent.row, sent.decisions, sent.settings);
}

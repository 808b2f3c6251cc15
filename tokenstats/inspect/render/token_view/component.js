// The token view in the app. The row and the decisions come in two messages, so that a moved threshold does not send the row again.
import { Joint } from "./joint.js";
import { heldDecisions, Settings, Steering } from "./steering.js";
import { TokenView } from "./view.js";

/** @typedef {{row?: any, rowKey?: string, data?: any, draw?: () => void, view?: TokenView, pressed?: string}} Slot */

/** @type {Record<string, Slot>} what has arrived for each token view on the page */
const slots = ((/** @type {any} */ (globalThis)).tokenstatsSlots ??= {});
/** @type {WeakMap<object, {view: TokenView, shown: string, said: Record<string, any>}>} what each place shows, and what it told the server */
const views = new WeakMap();
/** @type {WeakMap<object, Steering>} */
const steerings = new WeakMap();
/** @type {WeakMap<object, Joint>} */
const joints = new WeakMap();

/** @param {{data: any, parentElement: any, setStateValue: (name: string, value: any) => void}} component */
export default function ({ data, parentElement, setStateValue }) {
  const slot = (slots[data.slot] ??= {});
  if (data.steering) {
    steer(slot, data, parentElement, setStateValue); // the tokens stay as they were held until their own message comes
    return;
  }
  if (data.joint) {
    showJoint(slot, data.joint, parentElement, setStateValue);
    return;
  }
  if (data.row) Object.assign(slot, { row: data.row, rowKey: data.rowKey });
  else {
    slot.data = data;
    slot.draw = () => draw(slot, parentElement, setStateValue);
  }
  slot.draw?.();
}

/** @param {Slot} slot @param {any} parent @param {(name: string, value: any) => void} say */
function draw(slot, parent, say) {
  if (!slot.row || slot.rowKey !== slot.data?.rowKey) return; // the other message has yet to come
  let held = views.get(parent);
  if (!held) {
    const place = parent.querySelector(".token-view-place");
    /** @type {Record<string, any>} */
    const said = {};
    const tell = (/** @type {string} */ name, /** @type {any} */ value) => say(name, (said[name] = value));
    const view = new TokenView(place, { pin: (token) => tell("pinned", [slot.row.number, token]), colour: (key) => tell("colour", key) });
    held = { view, shown: "", said };
    views.set(parent, held);
  }
  held.view.root.classList.toggle("dark", isDark(held.view.root));
  held.view.root.classList.toggle("dimmed", Boolean(slot.data.settings.dimmed));
  if (held.shown === slot.rowKey) {
    // settings that were sent before the reader's last click had arrived are not the newest
    if (Object.entries(held.said).every(([name, value]) => String(value) === String(slot.data.heard[name]))) held.view.follow(slot.data.settings);
    held.view.decide(slot.data.decisions);
  } else held.view.show(slot.row, slot.data.decisions, slot.data.settings);
  held.shown = slot.rowKey ?? "";
  slot.view = held.view;
}

/** Histograms above the token view. @param {Slot} slot @param {any} data @param {any} parent @param {(name: string, value: any) => void} say */
function steer(slot, data, parent, say) {
  const place = placeOfHistograms(parent);
  const names = data.steering.columns.map((/** @type {any} */ column) => column.name);
  let steering = steerings.get(parent);
  if (!steering) steerings.set(parent, (steering = new Steering(place, { held: () => {}, released: () => {}, bin: () => {} })));
  steering.hands = {
    held: (chosen) => {
      const row = slot.view?.row;
      const levels = slot.data?.settings.levels;
      if (!row || !levels || slot.rowKey !== slot.data.rowKey) return; // this row is not in memory: it follows on release
      slot.view?.decide(heldDecisions(slot.data.decisions, levels, row.targets, names, chosen, data.both));
    },
    released: (chosen) => say("released", { chosen: [...chosen], at: Date.now() }), // told again, it counts again
    bin: (column, bin) => sayPressed(slot, say, "bin", [column, bin]),
  };
  steering.show(new Settings(data.steering), data.chosen, data.both);
}

/** Entropy against KL. @param {Slot} slot @param {any} sent @param {any} parent @param {(name: string, value: any) => void} say */
function showJoint(slot, sent, parent, say) {
  const place = placeOfHistograms(parent);
  let joint = joints.get(parent);
  if (!joint) joints.set(parent, (joint = new Joint(place, () => {})));
  joint.press = (entropy, kl) => sayPressed(slot, say, "cell", [entropy, kl]);
  joint.show(sent);
}

/** A bin or a cell whose tokens are to be listed; pressed again, its list goes. @param {Slot} slot @param {(name: string, value: any) => void} say @param {string} what @param {any[]} pressed */
function sayPressed(slot, say, what, pressed) {
  slot.pressed = slot.pressed === String(pressed) ? "" : String(pressed);
  say(what, slot.pressed ? pressed : null);
}

/** @param {any} parent @returns {HTMLElement} */
function placeOfHistograms(parent) {
  const place = parent.querySelector(".token-view-place");
  place.className = "token-view-place token-view steering";
  place.classList.toggle("dark", isDark(place));
  return place;
}

/** Is the page around it dark? @param {Element} element */
export function isDark(element) {
  const probe = document.createElement("i");
  probe.style.color = getComputedStyle(element).getPropertyValue("--st-background-color") || "white";
  document.body.append(probe);
  const [red, green, blue] = (getComputedStyle(probe).color.match(/[\d.]+/g) ?? ["255", "255", "255"]).map(Number);
  probe.remove();
  return 0.299 * red + 0.587 * green + 0.114 * blue < 128;
}

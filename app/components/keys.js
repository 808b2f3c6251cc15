// Keys that no widget has: "/" searches, "?" lists the keys. And the browser's Back undoes what was changed by a widget.

const SEARCH = 'input[aria-label^="Where is it dropped"]';

/** @typedef {{said: (name: string) => void, help: () => void}} Page what the keys of this page reach: renewed when it is drawn */

/** @param {{parentElement: any, setTriggerValue: (name: string, value: any) => void}} component */
export default function ({ parentElement, setTriggerValue }) {
  const dialog = /** @type {HTMLDialogElement} */ (parentElement.querySelector("dialog"));
  const open = () => (dialog.open ? dialog.close() : dialog.showModal());
  parentElement.querySelector(".open").onclick = open;
  parentElement.querySelector(".close").onclick = () => dialog.close();
  const first = !(/** @type {any} */ (globalThis)).tokenstatsPage;
  /** @type {any} */ (globalThis).tokenstatsPage = { said: (/** @type {string} */ name) => setTriggerValue(name, true), help: open };
  if (first) {
    document.addEventListener("keydown", onKey);
    backUndoes();
  }
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  const target = /** @type {HTMLElement} */ (event.composedPath()[0]);
  const isTyping = target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName);
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  /** @type {Page} */
  const page = /** @type {any} */ (globalThis).tokenstatsPage;
  if (event.key === "?") page.help();
  else if (event.key === "/") {
    event.preventDefault();
    if (!document.querySelector(SEARCH)) page.said("search");
    focusSearch(performance.now() + 20_000);
  }
}

/** As soon as the field is there. @param {number} until */
function focusSearch(until) {
  const field = /** @type {HTMLInputElement|null} */ (document.querySelector(SEARCH));
  if (field) field.focus();
  else if (performance.now() < until) setTimeout(() => focusSearch(until), 50);
}

/** Streamlit writes a widget's new value over the address of the page. What its reader did becomes an entry of the history. */
function backUndoes() {
  let isReaders = false;
  for (const name of ["pointerdown", "keydown", "change"]) addEventListener(name, () => (isReaders = true), true);
  addEventListener("popstate", () => (isReaders = false), true);
  const [push, replace] = [history.pushState.bind(history), history.replaceState.bind(history)];
  const write = (/** @type {any} */ state, /** @type {string} */ title, /** @type {string|URL|null|undefined} */ address) => {
    const isNew = address && parameters(new URL(address, location.href).search) !== parameters(location.search);
    if (isReaders && isNew) push(state, title, address);
    else replace(state, title, address);
    if (isNew) isReaders = false; // what follows by itself belongs to the same entry
  };
  history.replaceState = write;
  history.pushState = write; // the server's own entries too: one that says the same in another order is none
}

/** What an address says, whatever the order. @param {string} search */
function parameters(search) {
  const said = new URLSearchParams(search);
  said.sort();
  return said.toString();
}

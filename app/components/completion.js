// Words of the rule language below the field of an expression while it is written: Tab takes the first, a click any, Esc none.

const MOST = 8;

/** @type {WeakMap<HTMLTextAreaElement, {words: string[], box: HTMLElement}>} the fields that complete, as they were drawn last */
const fields = new WeakMap();

/** @param {{data: {label: string, words: string[]}, parentElement: any}} component */
export default function ({ data, parentElement }) {
  attach(data, parentElement.querySelector(".suggestions"), performance.now() + 5000);
}

/** The field is Streamlit's, and may be drawn a moment later. @param {{label: string, words: string[]}} data @param {HTMLElement} box @param {number} until */
function attach(data, box, until) {
  const field = /** @type {HTMLTextAreaElement|null} */ (document.querySelector(`textarea[aria-label="${data.label}"]`));
  if (!field) {
    if (performance.now() < until) setTimeout(() => attach(data, box, until), 50);
    return;
  }
  const isNew = !fields.has(field);
  fields.set(field, { words: data.words, box });
  if (!isNew) return;
  for (const name of ["input", "click"]) field.addEventListener(name, () => suggest(field));
  field.addEventListener("blur", () => fields.get(field)?.box.replaceChildren());
  field.addEventListener("keydown", (event) => onKey(field, event));
}

/** The beginning of a word before the caret. @param {HTMLTextAreaElement} field */
function begun(field) {
  return field.value.slice(0, field.selectionStart).match(/[A-Za-z_][\w.]*$/)?.[0] ?? "";
}

/** @param {HTMLTextAreaElement} field */
function suggest(field) {
  const { words, box } = /** @type {{words: string[], box: HTMLElement}} */ (fields.get(field));
  const beginning = begun(field);
  const fitting = beginning ? words.filter((word) => word.startsWith(beginning) && word !== beginning) : [];
  box.replaceChildren(...fitting.slice(0, MOST).map((word) => suggestion(field, word)));
}

/** @param {HTMLTextAreaElement} field @param {string} word */
function suggestion(field, word) {
  const button = document.createElement("button");
  button.type = "button";
  button.tabIndex = -1; // Tab belongs to the field
  button.textContent = word;
  button.addEventListener("pointerdown", (event) => event.preventDefault()); // the field keeps the focus
  button.addEventListener("click", () => take(field, word));
  return button;
}

/** @param {HTMLTextAreaElement} field @param {string} word */
function take(field, word) {
  const end = field.selectionStart;
  field.setRangeText(word, end - begun(field).length, end, "end");
  field.dispatchEvent(new Event("input", { bubbles: true }));
}

/** @param {HTMLTextAreaElement} field @param {KeyboardEvent} event */
function onKey(field, event) {
  const box = fields.get(field)?.box;
  const first = box?.querySelector("button")?.textContent;
  if (!box || !first) return;
  if (event.key === "Escape") box.replaceChildren();
  else if (event.key === "Tab" && !event.shiftKey) {
    event.preventDefault();
    take(field, first);
  }
}

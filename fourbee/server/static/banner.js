/** The embedded model's banner: what it can do, one click each, and how to get a real model. */

import { copyButton } from "./copying.js";
import { byId, element } from "./elements.js";
import { state } from "./state.js";
import { store, stored } from "./storage.js";
import { EXAMPLES, gigabytes, language, number, word } from "./words.js";

const REAL_MODEL = "Qwen/Qwen3-4B-Instruct-2507";
let realModel = REAL_MODEL;

/** Proposes the usual real model, or the largest that fits where that one does not. */
export function proposeRealModel() {
  const fits = state.model?.fourbee?.fits ?? [];
  const preferred = fits.find((item) => item.id === REAL_MODEL);
  const largest = fits.filter((item) => item.fits).sort((a, b) => b.bytes - a.bytes)[0];
  realModel = preferred && !preferred.fits && largest ? largest.id : REAL_MODEL;
}

export function showBanner() {
  const about = state.model?.fourbee;
  byId("banner").hidden = !about?.embedded;
  if (!about?.embedded) return;
  const parameters = number(about.parameters, { notation: "compact", compactDisplay: "long", maximumSignificantDigits: 2 });
  byId("banner-title").textContent = state.model.id;
  byId("banner-kind").textContent = word("banner_kind");
  byId("banner-what").textContent = word("banner_what", { parameters });
  byId("examples").replaceChildren(...EXAMPLES[language].map(([title, message], index) => {
    const button = element("button", { type: "button", value: index }, element("b", { textContent: title }), element("span", { textContent: message }));
    return element("li", {}, button);
  }));
  showFits(about);
  showCommands();
}

function showFits({ fits = [], memory_bytes: memory }) {
  const rows = fits.map((item) => {
    const choice = element("input", { type: "radio", name: "real-model", value: item.id, disabled: !item.fits, checked: item.id === realModel });
    choice.addEventListener("change", () => { realModel = item.id; showCommands(); });
    const size = item.fits ? gigabytes(item.bytes) : `${gigabytes(item.bytes)} · ${word("too_large")}`;
    return element("label", {}, choice, element("span", { className: "name", textContent: item.id }), element("span", { className: "size", textContent: size }));
  });
  const legend = !memory || !fits.length ? "fits_plain" : fits.some((item) => item.fits) ? "fits_legend" : "fits_none";
  byId("fits-legend").textContent = word(legend, { memory: gigabytes(memory ?? 0) });
  byId("fits").replaceChildren(byId("fits-legend"), ...rows);
}

function showCommands() {
  const commands = [`fourbee pull ${realModel}`, `fourbee serve --model ${realModel}`];
  byId("commands").replaceChildren(...commands.map((command) =>
    element("div", { className: "command" }, element("code", { textContent: command }), copyButton(() => command, word("copy_command", { command })))));
}

/** Opens the banner for a new conversation, unless the reader has closed it before. */
export function openBanner() {
  byId("banner").open = stored("localStorage", "banner") !== "closed";
}

export function closeBanner() {
  byId("banner").open = false;
}

/** Calls `ask(message, offersTools)` when an example is clicked. */
export function wireBanner(ask) {
  byId("examples").addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (!button) return;
    const [, message, offersTools] = EXAMPLES[language][button.value];
    ask(message, offersTools);
  });
  byId("banner").firstElementChild.addEventListener("click", () => {
    store("localStorage", "banner", byId("banner").open ? "closed" : "open"); // as it will be after this click
  });
}

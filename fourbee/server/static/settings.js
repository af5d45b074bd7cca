/** The sampling settings; an empty field means the server's default. */

import { byId } from "./elements.js";
import { state } from "./state.js";
import { number, word } from "./words.js";

const FIELDS = ["temperature", "top_p", "max_tokens"];

/** The filled fields, as the API names them. */
export function chosenSettings() {
  const filled = FIELDS.filter((name) => byId(name).value !== "");
  return Object.fromEntries(filled.map((name) => [name, Number(byId(name).value)]));
}

/** Points at the first impossible value. True when there is one. */
export function refuseSettings() {
  const wrong = FIELDS.map(byId).find((input) => !input.checkValidity());
  if (!wrong) return false;
  openSettings(true);
  wrong.reportValidity();
  return true;
}

/** The model's defaults, in grey. */
export function showDefaults() {
  const defaults = state.model?.fourbee?.defaults ?? {};
  const context = state.model?.fourbee?.max_context;
  byId("temperature").placeholder = defaults.temperature ?? "";
  byId("top_p").placeholder = defaults.top_p ?? "";
  byId("max_tokens").placeholder = defaults.max_tokens ?? (context ? `≤ ${number(context)}` : "");
}

export function showSettingsButton() {
  const changed = FIELDS.filter((name) => byId(name).value !== "").length;
  byId("settings-button").textContent = changed ? `${word("settings")} · ${changed}` : word("settings");
}

function openSettings(open) {
  byId("settings").hidden = !open;
  byId("settings-button").setAttribute("aria-expanded", String(open));
}

export function wireSettings() {
  byId("settings-button").addEventListener("click", () => openSettings(byId("settings").hidden));
  byId("settings").addEventListener("input", ({ target }) => {
    target.setAttribute("aria-invalid", String(!target.checkValidity()));
    showSettingsButton();
  });
}

/** The composer: where a message is written and sent, and the keys that do so. */

import { byId } from "./elements.js";
import { retry, send, stop } from "./replies.js";
import { refuseSettings } from "./settings.js";
import { state } from "./state.js";

function sendPrompt() {
  const prompt = byId("prompt");
  if (refuseSettings() || state.run || !prompt.value.trim()) return;
  const content = prompt.value.trim();
  prompt.value = "";
  fitPrompt();
  send(content);
}

/** The input grows with its text up to the limit in page.css. */
function fitPrompt() {
  const prompt = byId("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

/** Not on a phone, where it would raise the keyboard. */
export function focusPrompt() {
  if (matchMedia("(pointer: fine)").matches) byId("prompt").focus();
}

function onPromptKey(event) {
  // 229: the key press belongs to an input method (Safari ends the composition before Enter).
  const composing = event.isComposing || event.keyCode === 229;
  if (event.key !== "Enter" || event.shiftKey || composing) return;
  event.preventDefault();
  sendPrompt();
}

export function wireComposer() {
  byId("prompt").addEventListener("keydown", onPromptKey);
  byId("prompt").addEventListener("input", fitPrompt);
  byId("composer").addEventListener("submit", (event) => { event.preventDefault(); sendPrompt(); });
  byId("stop").addEventListener("click", () => { stop(); focusPrompt(); });
  byId("retry").addEventListener("click", () => { focusPrompt(); retry(); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing && event.keyCode !== 229) stop();
  });
}

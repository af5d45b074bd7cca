/** The copy button, and copying itself. */

import { element } from "./elements.js";
import { announce } from "./status.js";
import { word } from "./words.js";

async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Plain http on another machine's address has no clipboard interface; the old way still works.
  const area = element("textarea", { value: text, className: "unseen", readOnly: true });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error("copy refused");
}

export function copyButton(textOf, label) {
  const button = element("button", { type: "button", textContent: word("copy"), label });
  button.addEventListener("click", async () => {
    const outcome = await copyText(textOf()).then(() => "copied", () => "copy_failed");
    button.textContent = word(outcome);
    announce(word(outcome));
    setTimeout(() => { button.textContent = word("copy"); }, 1600);
    button.focus();
  });
  return button;
}

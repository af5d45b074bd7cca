/** The status line: what is wrong with the server, or else, unseen, a word for screen readers. */

import { byId } from "./elements.js";

let standing = "";

/** Shows the server's state until the next call; an empty text when all is well. */
export function showStatus(text) {
  standing = text;
  const status = byId("status");
  status.classList.remove("unseen");
  status.textContent = text;
}

export function announce(text) {
  const status = byId("status");
  if (status.textContent) return; // the state of the server is more important
  status.classList.add("unseen");
  status.textContent = text;
  setTimeout(() => showStatus(standing), 1500);
}

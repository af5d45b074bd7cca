/** The conversation on screen, and its copy in the tab's storage. */

import { byId } from "./elements.js";
import { isMessage, viewOf } from "./messages.js";
import { follow } from "./scroller.js";
import { liveMessage, state } from "./state.js";
import { store, stored } from "./storage.js";
import { word } from "./words.js";

const views = new WeakMap(); // message -> { node, show }

/** Adds messages that are not on screen yet and removes nodes of messages that are gone. */
export function showConversation({ rebuild = false } = {}) {
  const conversation = byId("conversation");
  if (rebuild) state.messages.forEach((message) => views.delete(message));
  const nodes = state.messages.map((message) => {
    if (!views.has(message)) views.set(message, viewOf(message));
    const view = views.get(message);
    view.show();
    return view.node;
  });
  for (const node of [...conversation.children]) if (!nodes.includes(node)) node.remove();
  nodes.forEach((node) => { if (node.parentNode !== conversation) conversation.append(node); });
  conversation.setAttribute("aria-busy", String(Boolean(state.run)));
  byId("stop").hidden = !state.run;
  byId("send").hidden = Boolean(state.run);
  byId("failure").hidden = !state.failure;
  byId("failure-text").textContent = state.failure?.text ?? "";
  showWelcome();
  follow();
}

let frame = 0;
export function showLiveSoon() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    const message = liveMessage();
    if (message) views.get(message)?.show();
    follow();
  });
}

export function showWelcome() {
  const welcome = byId("welcome");
  welcome.hidden = !state.model || Boolean(state.model.fourbee?.embedded) || state.messages.length > 0;
  welcome.textContent = state.model ? word("welcome", { model: state.model.id }) : "";
}

let savedAt = 0;
export function save({ atMostOncePerSecond = false } = {}) {
  if (atMostOncePerSecond && performance.now() - savedAt < 1000) return;
  savedAt = performance.now();
  // A message still being written is stored as incomplete: that is what it is after a reload.
  const live = liveMessage();
  const messages = state.messages.map((message) => (message === live ? { ...message, ended: "incomplete" } : message));
  byId("kept").textContent = word(store("sessionStorage", "messages", messages) ? "kept" : "not_kept");
}

/** The messages this tab kept, without what cannot be shown. */
export function keptMessages() {
  const messages = stored("sessionStorage", "messages");
  return Array.isArray(messages) ? messages.filter(isMessage) : [];
}

/**
 * fourbee's first web page: one chat, in one tab, against the server that served it.
 * This module starts it and joins the others: languages, themes, the key, and the buttons on top.
 */

import { openBanner, wireBanner } from "./banner.js";
import { focusPrompt, wireComposer } from "./composer.js";
import { connect, showConnection, showModel } from "./connection.js";
import { keptMessages, save, showConversation } from "./conversation.js";
import { byId } from "./elements.js";
import { newChat, retry, send, unanswered } from "./replies.js";
import { wireScroller } from "./scroller.js";
import { showSettingsButton, wireSettings } from "./settings.js";
import { state } from "./state.js";
import { store, stored } from "./storage.js";
import { LANGUAGE_TAGS, WORDS, language, useLanguage, word } from "./words.js";

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  const button = byId("theme");
  if (button) button.textContent = word(theme === "dark" ? "to_light" : "to_dark");
}

const otherLanguage = () => (language === "en" ? "zh" : "en");

function setLanguage(name) {
  useLanguage(name);
  document.documentElement.lang = LANGUAGE_TAGS[name];
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = word(node.dataset.text);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", word(node.dataset.label));
  for (const node of document.querySelectorAll("[data-hint]")) node.title = word(node.dataset.hint);
  for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = word(node.dataset.placeholder);
  byId("language").textContent = word("other_language");
  byId("language").lang = LANGUAGE_TAGS[otherLanguage()];
  setTheme(document.documentElement.dataset.theme);
  showSettingsButton();
  showConnection();
  showModel();
  save();
  if (state.failure?.kind === "unanswered") state.failure = unanswered();
  showConversation({ rebuild: true });
}

async function useKey() {
  state.key = byId("key").value.trim();
  byId("key").value = "";
  state.connection = "connecting";
  await connect();
  if (state.connection !== "ready") return;
  store("sessionStorage", "key", state.key);
  focusPrompt();
  if (state.failure?.kind === "key") retry();
}

function wirePage() {
  byId("new-chat").addEventListener("click", () => newChat().then(focusPrompt));
  byId("language").addEventListener("click", () => {
    const chosen = otherLanguage();
    store("localStorage", "language", chosen);
    setLanguage(chosen);
  });
  byId("theme").addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    store("localStorage", "theme", theme);
    setTheme(theme);
  });
  byId("model-choice").addEventListener("change", ({ target }) => {
    state.model = state.models.find((model) => model.id === target.value);
    showModel();
  });
  byId("key-form").addEventListener("submit", (event) => { event.preventDefault(); useKey(); });
  addEventListener("pagehide", () => save());
}

function start() {
  const prefersChinese = (navigator.language ?? "").toLowerCase().startsWith("zh");
  const chosen = stored("localStorage", "language");
  state.key = stored("sessionStorage", "key") ?? "";
  state.messages = keptMessages();
  state.failure = unanswered();
  if (!state.messages.length) openBanner();
  wireComposer();
  wireSettings();
  wireBanner((message, offersTools) => send(message, { offersTools, newTopic: true }));
  wireScroller();
  wirePage();
  setLanguage(chosen in WORDS ? chosen : prefersChinese ? "zh" : "en");
  focusPrompt();
  connect();
}

const systemDark = matchMedia("(prefers-color-scheme: dark)");
const themeNow = () => stored("localStorage", "theme") ?? (systemDark.matches ? "dark" : "light");
setTheme(themeNow());
systemDark.addEventListener("change", () => setTheme(themeNow()));
start(); // a module runs after the document is parsed

/** How one message looks: a view { node, show } for each role. */

import { copyButton } from "./copying.js";
import { element } from "./elements.js";
import { setText, showMarkup } from "./markup.js";
import { liveMessage, state } from "./state.js";
import { number, word } from "./words.js";

function userView(message) {
  const node = element("article", { className: "message user", label: word("you") },
    element("div", { className: "text", dir: "auto", textContent: message.content }));
  return { node, show() {} };
}

function topicView() {
  return { node: element("p", { className: "topic soft" }, element("span", { textContent: word("new_topic") })), show() {} };
}

function toolBox(title, name, text) {
  return element("div", { className: "tool" },
    element("span", { className: "soft", textContent: `${title} ` }),
    element("span", { className: "name", textContent: name }),
    element("pre", { textContent: text }));
}

function toolView(message) {
  const box = toolBox(word("tool_result"), "", message.content);
  return { node: element("article", { className: "message tool-result" }, box), show() {} };
}

function prettyArguments(text) {
  try {
    const value = JSON.parse(text);
    return Object.entries(value).map(([name, item]) => `${name}: ${typeof item === "string" ? item : JSON.stringify(item)}`).join("\n");
  } catch {
    return text; // still streaming, or not JSON: shown as it is
  }
}

function statsLine(message) {
  const { usage, rate, firstToken } = message.stats ?? {};
  const tokens = usage?.completion_tokens;
  const context = state.model?.fourbee?.max_context;
  const digits = { maximumFractionDigits: 1 };
  return [
    message.ended && word(message.ended),
    message.finish === "length" && word("cut"),
    tokens === 1 ? word("token") : tokens && word("tokens", { count: number(tokens) }),
    rate && word("rate", { rate: number(rate, rate < 100 ? digits : { maximumFractionDigits: 0 }) }),
    firstToken && word("first", { seconds: number(firstToken, { maximumFractionDigits: firstToken < 10 ? 2 : 1 }) }),
    usage?.total_tokens && context && word("context", { used: number(usage.total_tokens), all: number(context) }),
  ].filter(Boolean).join(" · ");
}

function answerView(message) {
  const reasoningText = document.createTextNode("");
  const reasoning = element("details", { className: "reasoning", hidden: true },
    element("summary", { textContent: word("reasoning") }), element("p", { dir: "auto" }, reasoningText));
  const body = element("div", { className: "body" });
  const calls = element("div", { className: "calls" });
  const stats = element("span", { className: "soft" });
  const copy = copyButton(() => message.content);
  const foot = element("div", { className: "foot" }, copy, stats);
  const node = element("article", { className: "message answer", label: word("assistant") }, reasoning, body, calls, foot);

  function show() {
    const live = message === liveMessage();
    const silent = !message.content && !message.tool_calls && !message.reasoning;
    node.classList.toggle("waiting", live);
    reasoning.hidden = !message.reasoning;
    setText(reasoningText, message.reasoning ?? "");
    const text = silent && message.finish === "stop" ? word("empty") : message.content;
    showMarkup(body, text);
    calls.replaceChildren(...(message.tool_calls ?? []).map((call) =>
      toolBox(word("tool_call"), call.function.name, prettyArguments(call.function.arguments))));
    foot.hidden = live || (!message.content && Boolean(message.tool_calls) && !message.ended);
    copy.hidden = !message.content;
    stats.textContent = statsLine(message);
  }
  return { node, show };
}

const VIEW_MAKERS = { user: userView, assistant: answerView, tool: toolView, topic: topicView };

/** Whether something found in storage can be shown. */
export function isMessage(value) {
  if (!Object.hasOwn(VIEW_MAKERS, value?.role)) return false;
  return value.role === "topic" || typeof value.content === "string";
}

export function viewOf(message) {
  return VIEW_MAKERS[message.role](message);
}

/**
 * fourbee's first web page: one chat, in one tab, against the server that served it.
 *
 * Order of this file: words, small helpers, the server (requests and its event stream), the
 * calculator tool, text made into DOM, the conversation on screen, answering, the connection and
 * the model, and last the wiring.
 *
 * Rules kept throughout:
 *  - Text from the model, the user or the server only ever becomes a text node; there is no
 *    innerHTML (the CSP's require-trusted-types-for would stop it).
 *  - While an answer streams, text is appended to existing text nodes, so that a selection made
 *    by the reader survives and a long answer stays cheap.
 *  - `state.messages` is the truth: OpenAI messages plus a few fields of ours (stats, ended,
 *    offersTools); the screen can be rebuilt from it at any time, and `wireMessages` strips it.
 */

// ---------------------------------------------------------------- words

const WORDS = {
  en: {
    page_controls: "Page", model: "Model", conversation: "Conversation",
    new_chat: "New chat", new_chat_hint: "Starts over; this conversation is discarded",
    other_language: "中文", to_dark: "Dark", to_light: "Light",
    banner_kind: "Embedded model",
    banner_what: "A model of about {parameters} parameters, trained by this project so that everything works offline, right after installing. It is made for the few things below; asked anything else, it should say that it cannot answer.",
    examples_title: "What it can do",
    real_title: "Use a real model",
    fits_legend: "This machine has {memory} of memory. Choose a model, run both commands, reload.",
    fits_none: "This machine has {memory} of memory; none of the known models fits in it.",
    fits_plain: "Run these two commands, then reload this page.",
    too_large: "does not fit",
    welcome: "{model} is ready.",
    temperature: "Temperature", top_p: "Top-p", max_tokens: "Max tokens",
    settings: "Settings", settings_note: "An empty field means the server’s default, shown in grey.",
    prompt_label: "Message", prompt_placeholder: "Write a message…",
    keys: "Enter sends · Shift+Enter starts a new line", send: "Send", stop: "Stop",
    kept: "Kept in this tab only; closing the tab deletes it.",
    not_kept: "This conversation is too long to be kept: a reload will lose it.",
    to_latest: "↓ Latest", retry: "Retry", copy: "Copy", copied: "Copied", copy_failed: "Could not copy",
    copy_command: "Copy command: {command}",
    you: "You", assistant: "Answer", reasoning: "Reasoning",
    tool_call: "Tool call", tool_result: "Result, computed by this page",
    tokens: "{count} tokens", token: "1 token", rate: "{rate} tokens/s", first: "first token {seconds} s", context: "{used} of {all} context",
    stopped: "stopped", incomplete: "incomplete", cut: "cut off at the token limit", empty: "The model returned an empty answer.",
    answer_done: "Answer complete.",
    new_topic: "New topic: nothing above is sent",
    connecting: "Connecting…", loading: "Loading the model…", unreachable: "The server cannot be reached. Trying again…",
    key_label: "This server asks for an API key. It is kept in this tab only.", key_refused: "The server refused this key. Please check it.", key_use: "Use key",
    error_unreachable: "The server could not be reached.",
    error_broken: "The connection broke before the answer was complete.",
    error_key: "The server asks for an API key.",
    error_unreadable: "The server sent something this page cannot read.",
    error_status: "The server answered with error {status}.",
    error_unanswered: "This message has no answer yet.",
  },
  zh: {
    page_controls: "页面", model: "模型", conversation: "对话",
    new_chat: "新对话", new_chat_hint: "重新开始，当前对话将被丢弃",
    other_language: "English", to_dark: "深色", to_light: "浅色",
    banner_kind: "内置模型",
    banner_what: "约 {parameters}参数的小模型，由本项目自己训练，安装后无需联网即可使用全部功能。它专为下面这几类事而做；其他问题，它应当直说自己答不了。",
    examples_title: "它能做什么",
    real_title: "换用真正的模型",
    fits_legend: "本机内存 {memory}。选一个模型，运行下面两条命令，然后刷新本页。",
    fits_none: "本机内存 {memory}，已知的模型都放不下。",
    fits_plain: "运行下面两条命令，然后刷新本页。",
    too_large: "放不下",
    welcome: "{model} 已就绪。",
    temperature: "温度", top_p: "Top-p", max_tokens: "最大 token 数",
    settings: "设置", settings_note: "留空表示使用服务器的默认值（灰色显示）。",
    prompt_label: "消息", prompt_placeholder: "输入消息…",
    keys: "Enter 发送 · Shift+Enter 换行", send: "发送", stop: "停止",
    kept: "仅保存在此标签页：刷新后仍在，关闭标签页即删除。",
    not_kept: "对话太长，无法保存：刷新后会丢失。",
    to_latest: "↓ 最新", retry: "重试", copy: "复制", copied: "已复制", copy_failed: "复制失败",
    copy_command: "复制命令：{command}",
    you: "你", assistant: "回答", reasoning: "思考过程",
    tool_call: "工具调用", tool_result: "结果（由本页面计算）",
    tokens: "{count} 个 token", token: "1 个 token", rate: "{rate} token/秒", first: "首个 token {seconds} 秒", context: "上下文 {used} / {all}",
    stopped: "已停止", incomplete: "不完整", cut: "达到 token 上限，回答被截断", empty: "模型返回了空回答。",
    answer_done: "回答完成。",
    new_topic: "新话题：以上内容不会发送给模型",
    connecting: "正在连接…", loading: "正在加载模型…", unreachable: "无法连接服务器，正在重试…",
    key_label: "此服务器需要 API 密钥。密钥仅保存在此标签页。", key_refused: "服务器拒绝了此密钥，请检查。", key_use: "使用密钥",
    error_unreachable: "无法连接服务器。",
    error_broken: "回答尚未完成，连接已中断。",
    error_key: "此服务器需要 API 密钥。",
    error_unreadable: "服务器返回了无法识别的内容。",
    error_status: "服务器返回错误 {status}。",
    error_unanswered: "这条消息还没有得到回答。",
  },
};

/** What the embedded model is good at, as one click each: [title, message, does it offer tools]. */
const EXAMPLES = {
  en: [
    ["Greet", "Hello! Who are you?"],
    ["Explain fourbee", "What is fourbee?"],
    ["Add, step by step", "What is 347 + 285? Show each step."],
    ["Read a passage", "The Tamsin Bridge was built in 1927. It is 84 metres long and crosses the river Orrel.\n\nHow long is the Tamsin Bridge?"],
    ["Call a tool", "Use the calculator: what is (128 + 72) * 45?", true],
    ["Admit a limit", "Who painted the Mona Lisa?"],
  ],
  zh: [
    ["打招呼", "你好！你是谁？"],
    ["介绍 fourbee", "fourbee 是什么？"],
    ["逐步相加", "347+285 等于多少？请一步一步算。"],
    ["阅读短文", "文峰桥建于1927年，全长84米，横跨清溪河。\n\n文峰桥全长多少米？"],
    ["调用工具", "请用计算器计算：(128 + 72) * 45 等于多少？", true],
    ["承认不知道", "《蒙娜丽莎》是谁画的？"],
  ],
};

const REAL_MODEL = "Qwen/Qwen3-4B-Instruct-2507";
const LANGUAGE_TAGS = { en: "en", zh: "zh-CN" };

// ---------------------------------------------------------------- state and small helpers

const state = {
  language: "en",
  messages: [],
  models: [],
  model: null, // the chosen entry of GET /v1/models
  realModel: REAL_MODEL,
  connection: "connecting", // connecting | ready | loading | unreachable | locked
  key: "",
  keyRefused: false,
  run: null, // { controller, done } while an answer is being made
  failure: null, // { text, kind } shown as the line with the retry button
};

const byId = (id) => document.getElementById(id);

function word(name, values = {}) {
  return WORDS[state.language][name].replace(/\{(\w+)\}/g, (_, field) => values[field]);
}

function number(value, options) {
  return new Intl.NumberFormat(LANGUAGE_TAGS[state.language], options).format(value);
}

function gigabytes(bytes) {
  return `${number(bytes / 1e9, { maximumFractionDigits: bytes < 10e9 ? 1 : 0 })} GB`;
}

/** A new element: properties are assigned, children appended as text or nodes. */
function element(tag, properties = {}, ...children) {
  const { label, ...rest } = properties;
  const node = Object.assign(document.createElement(tag), rest);
  if (label) node.setAttribute("aria-label", label);
  node.append(...children);
  return node;
}

/** Storage may be forbidden or full; the page works without it. Returns whether it was stored. */
function store(storage, name, value) {
  try {
    window[storage].setItem(`fourbee.${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

function stored(storage, name) {
  try {
    return JSON.parse(window[storage].getItem(`fourbee.${name}`));
  } catch {
    return null;
  }
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

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

function copyButton(textOf, label) {
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

// ---------------------------------------------------------------- the server

/** A failure with one clear line for the reader; `kind` says what the page should do about it. */
class Failure extends Error {
  constructor(text, kind = "server") {
    super(text);
    this.kind = kind;
  }
}

/** For a network call's catch: an abort passes through, anything else becomes a Failure. */
const orUnreachable = (name) => (error) => {
  throw error.name === "AbortError" ? error : new Failure(word(name), "unreachable");
};

function request(path, options = {}) {
  const headers = { ...options.headers };
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  return fetch(path, { cache: "no-store", ...options, headers }).catch(orUnreachable("error_unreachable"));
}

async function failureOf(response) {
  if (response.status === 401) return new Failure(word("error_key"), "key");
  const body = await response.json().catch(() => null);
  const detail = body?.error?.message ?? (typeof body?.detail === "string" ? body.detail : null);
  const kind = response.status === 503 ? "unavailable" : "server";
  return new Failure(detail || word("error_status", { status: response.status }), kind);
}

/** The `data` of every server-sent event in a response body, wherever the chunks are cut. */
async function* eventData(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let unread = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(orUnreachable("error_broken"));
      unread += done ? `${decoder.decode()}\n\n` : decoder.decode(value, { stream: true });
      const lines = unread.split("\n");
      unread = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        } else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsedEvent(data) {
  let event = null;
  try {
    event = JSON.parse(data);
  } catch { /* said below */ }
  if (typeof event !== "object" || event === null) throw new Failure(word("error_unreadable"));
  if (event.error) throw new Failure(event.error.message || String(event.error));
  return event;
}

function addToolCalls(message, deltas) {
  message.tool_calls ??= [];
  for (const delta of deltas) {
    const index = delta.index ?? 0;
    if (!Number.isInteger(index) || index < 0 || index > message.tool_calls.length) throw new Failure(word("error_unreadable"));
    const call = (message.tool_calls[index] ??= { id: `call_${index}`, type: "function", function: { name: "", arguments: "" } });
    if (delta.id) call.id = delta.id;
    call.function.name += delta.function?.name ?? "";
    call.function.arguments += delta.function?.arguments ?? "";
  }
}

/** Adds one streamed event to the message. True when it carried a piece of the answer. */
function addEvent(message, event) {
  if (event.usage) message.stats.usage = event.usage;
  const choice = event.choices?.[0];
  if (!choice) return false;
  if (choice.finish_reason) message.finish = choice.finish_reason;
  const delta = choice.delta ?? {};
  if (delta.content) message.content += delta.content;
  if (delta.reasoning_content) message.reasoning = (message.reasoning ?? "") + delta.reasoning_content;
  if (delta.tool_calls?.length) addToolCalls(message, delta.tool_calls);
  return Boolean(delta.content || delta.reasoning_content || delta.tool_calls?.length);
}

/** Streams one completion into `message`, calling `changed` after every piece. */
async function streamAnswer(body, message, signal, changed) {
  const started = performance.now();
  const response = await request("v1/chat/completions", {
    method: "POST", body: JSON.stringify(body), signal, headers: { "Content-Type": "application/json" },
  });
  if (!response.ok) throw await failureOf(response);
  let first = null;
  let last = started;
  for await (const data of eventData(response.body)) {
    if (data.trim() === "[DONE]") break;
    if (addEvent(message, parsedEvent(data))) {
      last = performance.now();
      first ??= last;
      message.stats.firstToken = (first - started) / 1000;
      changed();
    }
  }
  if (!message.finish) throw new Failure(word("error_broken"));
  // Between the first and the last token; a burst too short to measure counts the whole wait.
  const tokens = message.stats.usage?.completion_tokens;
  const span = (last - (first ?? started)) / 1000;
  if (tokens) message.stats.rate = tokens > 1 && span > 0.02 ? (tokens - 1) / span : tokens / Math.max((last - started) / 1000, 0.001);
}

// ---------------------------------------------------------------- the calculator tool

const CALCULATOR = {
  type: "function",
  function: {
    name: "calculator",
    description: "Evaluate an arithmetic expression.",
    parameters: {
      type: "object",
      properties: { expression: { type: "string", description: "The expression, for example (2 + 3) * 4" } },
      required: ["expression"],
    },
  },
};

/** The value of an expression of digits, + - * / ( ) and the decimal point. Throws on anything else. */
export function calculate(expression) {
  if (expression.length > 200) throw new Error("the expression is too long");
  const tokens = expression.match(/\d+\.?\d*|\.\d+|[-+*/()]|\S/g) ?? [];
  let at = 0;
  const next = (...wanted) => (wanted.includes(tokens[at]) ? tokens[at++] : null);

  function atom() {
    if (next("-")) return -atom();
    if (next("+")) return atom();
    if (next("(")) {
      const value = sum();
      if (!next(")")) throw new Error("a closing parenthesis is missing");
      return value;
    }
    const token = tokens[at++];
    if (!/^[\d.]+$/.test(token ?? "")) throw new Error(token ? `unexpected ${token}` : "the expression is incomplete");
    return Number(token);
  }
  function product() {
    let value = atom();
    for (let sign; (sign = next("*", "/")); ) {
      const right = atom();
      if (sign === "/" && right === 0) throw new Error("division by zero");
      value = sign === "*" ? value * right : value / right;
    }
    return value;
  }
  function sum() {
    let value = product();
    for (let sign; (sign = next("+", "-")); ) value += sign === "+" ? product() : -product();
    return value;
  }

  const value = sum();
  if (at < tokens.length) throw new Error(`unexpected ${tokens[at]}`);
  if (!(Math.abs(value) <= Number.MAX_SAFE_INTEGER)) throw new Error("the result is too large");
  return Number.isInteger(value) ? value : Number(value.toPrecision(12));
}

/** The tool message that answers one call; an error is told to the model in words. */
function toolResult(call) {
  let content;
  try {
    if (call.function.name !== "calculator") throw new Error(`there is no tool named ${call.function.name}`);
    content = String(calculate(String(JSON.parse(call.function.arguments).expression)));
  } catch (error) {
    content = `error: ${error.message}`;
  }
  return { role: "tool", tool_call_id: call.id, name: call.function.name, content };
}

// ---------------------------------------------------------------- text made into DOM

/** Sets a text node's data, appending where it can, so that a selection inside it survives. */
function setText(node, text) {
  if (node.data === text) return;
  if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else node.data = text;
}

/** Makes `parent`'s children show `pieces`, keeping every node whose kind is unchanged. */
function reconcile(parent, pieces, makers) {
  pieces.forEach((piece, index) => {
    let node = parent.childNodes[index];
    if (!node || node.kind !== piece.kind) {
      const fresh = makers[piece.kind](piece);
      fresh.kind = piece.kind;
      if (node) node.replaceWith(fresh);
      else parent.append(fresh);
      node = fresh;
    }
    if (node.shown !== piece.text) {
      node.shown = piece.text;
      node.show(piece);
    }
  });
  while (parent.childNodes.length > pieces.length) parent.lastChild.remove();
}

function leaf(tag) {
  return () => {
    const text = document.createTextNode("");
    const node = tag ? element(tag, {}, text) : text;
    node.show = (piece) => setText(text, piece.text);
    return node;
  };
}

const INLINE_MAKERS = { plain: leaf(null), code: leaf("code"), strong: leaf("strong") };

function inlinePieces(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).filter(Boolean).map((part) => {
    if (/^`[^`\n]+`$/.test(part)) return { kind: "code", text: part.slice(1, -1) };
    if (/^\*\*[^*\n]+\*\*$/.test(part)) return { kind: "strong", text: part.slice(2, -2) };
    return { kind: "plain", text: part };
  });
}

function prose(tag) {
  return () => {
    const node = element(tag, { dir: "auto" });
    node.show = (piece) => reconcile(node, inlinePieces(piece.text), INLINE_MAKERS);
    return node;
  };
}

function codeBlock(block) {
  const text = document.createTextNode("");
  const language = element("span", { className: "soft", textContent: block.language });
  const node = element("div", { className: "code" },
    element("div", {}, language, copyButton(() => text.data)),
    element("pre", { tabIndex: 0, dir: "ltr" }, element("code", {}, text)));
  node.show = (piece) => {
    language.textContent = piece.language;
    setText(text, piece.text);
  };
  return node;
}

const BLOCK_MAKERS = { paragraph: prose("p"), heading: prose("h3"), code: codeBlock };

/** Splits an answer into paragraphs, headings and fenced code; a fence may still be open. */
function blocksOf(text) {
  const blocks = [];
  let fence = null; // { mark, lines, language } while inside one
  let paragraph = [];
  const endParagraph = () => {
    if (paragraph.length) blocks.push({ kind: "paragraph", text: paragraph.join("\n") });
    paragraph = [];
  };
  const endFence = () => {
    blocks.push({ kind: "code", language: fence.language, text: fence.lines.join("\n") });
    fence = null;
  };
  for (const line of text.split("\n")) {
    if (fence) {
      if (line.trim().startsWith(fence.mark) && /^(`+|~+)$/.test(line.trim())) endFence();
      else fence.lines.push(line);
      continue;
    }
    const opening = /^\s*(`{3,}|~{3,})\s*([^`]*)$/.exec(line);
    const heading = /^#{1,6}\s+(.+)$/.exec(line);
    if (opening || heading || line.trim() === "") endParagraph();
    if (opening) fence = { mark: opening[1], language: opening[2].trim(), lines: [] };
    else if (heading) blocks.push({ kind: "heading", text: heading[1] });
    else if (line.trim() !== "") paragraph.push(line);
  }
  if (fence) endFence();
  endParagraph();
  return blocks;
}

// ---------------------------------------------------------------- the conversation on screen

const views = new WeakMap(); // message -> { node, show }
const scroll = { following: true, top: 0 };

function announce(text) {
  const status = byId("status");
  if (status.textContent) return; // the state of the server is more important
  status.classList.add("unseen");
  status.textContent = text;
  setTimeout(showConnection, 1500);
}

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
    reconcile(body, blocksOf(text), BLOCK_MAKERS);
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
function isMessage(value) {
  if (!Object.hasOwn(VIEW_MAKERS, value?.role)) return false;
  return value.role === "topic" || typeof value.content === "string";
}

/** The answer being written now, if any. */
function liveMessage() {
  const last = state.messages.at(-1);
  return state.run && last?.role === "assistant" ? last : null;
}

/** Adds messages that are not on screen yet and removes nodes of messages that are gone. */
function showConversation({ rebuild = false } = {}) {
  const conversation = byId("conversation");
  if (rebuild) state.messages.forEach((message) => views.delete(message));
  const nodes = state.messages.map((message) => {
    if (!views.has(message)) views.set(message, VIEW_MAKERS[message.role](message));
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
function showLiveSoon() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    const message = liveMessage();
    if (message) views.get(message)?.show();
    follow();
  });
}

function follow() {
  if (!scroll.following) return;
  const scroller = byId("scroller");
  if (state.messages.length) scroller.scrollTop = scroller.scrollHeight;
}

/** Following ends only when the reader moves up, and begins again at the bottom. */
function onScroll() {
  const { scrollTop, scrollHeight, clientHeight } = byId("scroller");
  const atBottom = scrollHeight - scrollTop - clientHeight < 24;
  if (atBottom) scroll.following = true;
  else if (scrollTop < scroll.top - 1) scroll.following = false;
  scroll.top = scrollTop;
  byId("to-latest").hidden = scroll.following || !state.messages.length;
}

let savedAt = 0;
function save({ atMostOncePerSecond = false } = {}) {
  if (atMostOncePerSecond && performance.now() - savedAt < 1000) return;
  savedAt = performance.now();
  // A message still being written is stored as incomplete: that is what it is after a reload.
  const live = liveMessage();
  const messages = state.messages.map((message) => (message === live ? { ...message, ended: "incomplete" } : message));
  byId("kept").textContent = word(store("sessionStorage", "messages", messages) ? "kept" : "not_kept");
}

// ---------------------------------------------------------------- answering

/** The messages as the server wants them: the current topic, without our own fields and empty turns. */
function wireMessages() {
  const topic = state.messages.slice(state.messages.findLastIndex((message) => message.role === "topic") + 1);
  return topic.flatMap((message, index) => {
    if (message.role === "user") return [{ role: "user", content: message.content }];
    if (message.role === "tool") return [{ role: "tool", tool_call_id: message.tool_call_id, content: message.content }];
    if (topic[index + 1]?.role === "tool") return [{ role: "assistant", content: message.content || null, tool_calls: message.tool_calls }];
    return message.content ? [{ role: "assistant", content: message.content }] : [];
  });
}

const offersTools = () => Boolean(state.messages.findLast((message) => message.role === "user")?.offersTools);

function requestBody() {
  const body = { model: state.model?.id, messages: wireMessages(), stream: true, stream_options: { include_usage: true } };
  for (const name of ["temperature", "top_p", "max_tokens"]) {
    if (byId(name).value !== "") body[name] = Number(byId(name).value);
  }
  if (offersTools()) body.tools = [CALCULATOR];
  return body;
}

/** One answer, streamed into a new message. A server that is still loading is waited for, once. */
async function answerOnce(signal) {
  const body = requestBody();
  const message = { role: "assistant", content: "", stats: {}, model: body.model };
  state.messages.push(message);
  showConversation();
  const changed = () => { showLiveSoon(); save({ atMostOncePerSecond: true }); };
  try {
    await streamAnswer(body, message, signal, changed).catch(async (failure) => {
      if (failure.kind !== "unavailable") throw failure;
      await Promise.race([connect(), new Promise((resolve) => signal.addEventListener("abort", resolve))]);
      signal.throwIfAborted();
      await streamAnswer({ ...body, model: state.model?.id ?? body.model }, message, signal, changed);
    });
  } catch (error) {
    message.ended = signal.aborted ? "stopped" : "incomplete";
    if (!message.content && !message.reasoning && !message.tool_calls && !signal.aborted) state.messages.pop();
    throw error;
  }
  return message;
}

/** The whole reply to the last user message: answers, and tool calls in between. */
async function answerFully(signal) {
  for (let round = 0; round < 4; round += 1) {
    const { tool_calls: calls } = await answerOnce(signal);
    if (!calls?.length || !offersTools()) return;
    state.messages.push(...calls.map(toolResult));
  }
}

/** Runs a reply to its end, whatever the end is, and returns what went wrong, if anything did. */
async function outcomeOf(signal) {
  try {
    await answerFully(signal);
    return null;
  } catch (error) {
    if (signal.aborted) return null;
    if (!(error instanceof Failure)) console.error(error);
    return { text: error.message, kind: error.kind };
  }
}

function reply() {
  const run = { controller: new AbortController() };
  state.run = run;
  state.failure = null;
  scroll.following = true;
  run.done = outcomeOf(run.controller.signal).then((failure) => {
    state.run = null;
    state.failure = failure ?? unanswered();
    save();
    showConversation(); // scrolls only if the reader is still at the bottom
    if (failure?.kind === "unreachable") connect();
    else if (failure?.kind === "key") lock();
    else if (!failure) announce(word(run.controller.signal.aborted ? "stopped" : "answer_done"));
  });
}

/** A conversation that ends without an answer (after a reload, say) offers to get one. */
function unanswered() {
  const open = ["user", "tool"].includes(state.messages.at(-1)?.role);
  return open ? { text: word("error_unanswered"), kind: "unanswered" } : null;
}

function send(content, { offersTools: tools = false, newTopic = false } = {}) {
  if (state.run) return;
  if (newTopic && state.messages.length) state.messages.push({ role: "topic" });
  state.messages.push({ role: "user", content, offersTools: tools });
  byId("banner").open = false;
  save();
  reply();
}

function retry() {
  if (state.run) return;
  if (state.messages.at(-1)?.role === "assistant") state.messages.pop();
  reply();
}

async function stop() {
  if (!state.run) return;
  state.run.controller.abort();
  await state.run.done;
}

async function newChat() {
  await stop();
  state.messages = [];
  state.failure = null;
  scroll.following = true;
  byId("banner").open = stored("localStorage", "banner") !== "closed";
  save();
  showConversation();
  byId("scroller").scrollTop = 0;
  focusPrompt();
}

function sendPrompt() {
  const prompt = byId("prompt");
  const wrong = ["temperature", "top_p", "max_tokens"].map(byId).find((input) => !input.checkValidity());
  if (wrong) {
    openSettings(true);
    wrong.reportValidity();
    return;
  }
  if (state.run || !prompt.value.trim()) return;
  const content = prompt.value.trim();
  prompt.value = "";
  fitPrompt();
  send(content);
}

// ---------------------------------------------------------------- connection and model

async function probe() {
  try {
    const health = await request("health");
    if (health.status === 503) return "loading";
    const models = await request("v1/models");
    if (models.status === 401) return "locked";
    if (models.status === 503) return "loading";
    if (!models.ok) return "unreachable";
    state.models = (await models.json()).data ?? [];
    return "ready";
  } catch {
    return "unreachable";
  }
}

let connecting = null;
/** Asks the server until it is ready or wants a key; several callers share one loop. */
function connect() {
  connecting ??= (async () => {
    for (let wait = 500; ; wait = Math.min(wait * 1.5, 5000)) {
      state.connection = await probe();
      showConnection();
      if (state.connection === "ready") return useModels();
      if (state.connection === "locked") return lock();
      await pause(wait);
    }
  })().finally(() => { connecting = null; });
  return connecting;
}

function useModels() {
  const wanted = state.model?.id;
  state.model = state.models.find((model) => model.id === wanted) ?? state.models[0] ?? null;
  const fits = state.model?.fourbee?.fits ?? [];
  const preferred = fits.find((item) => item.id === REAL_MODEL);
  const largest = fits.filter((item) => item.fits).sort((a, b) => b.bytes - a.bytes)[0];
  state.realModel = preferred && !preferred.fits && largest ? largest.id : REAL_MODEL;
  state.keyRefused = false;
  showModel();
  showConversation({ rebuild: true });
}

function lock() {
  state.connection = "locked";
  state.keyRefused = Boolean(state.key);
  showConnection();
  byId("key").focus();
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

function showConnection() {
  const status = byId("status");
  const text = { connecting: "connecting", loading: "loading", unreachable: "unreachable" }[state.connection];
  status.classList.remove("unseen");
  status.textContent = text ? word(text) : "";
  byId("key-form").hidden = state.connection !== "locked";
  byId("key-label").textContent = word(state.keyRefused ? "key_refused" : "key_label");
}

function showModel() {
  const { model } = state;
  const several = state.models.length > 1;
  byId("model-name").textContent = model?.id ?? "";
  byId("model-name").title = model?.id ?? "";
  byId("model-name").hidden = several;
  byId("model-choice").hidden = !several;
  byId("model-choice").replaceChildren(...state.models.map(({ id }) => element("option", { value: id, textContent: id, selected: id === model?.id })));
  const defaults = model?.fourbee?.defaults ?? {};
  const context = model?.fourbee?.max_context;
  byId("temperature").placeholder = defaults.temperature ?? "";
  byId("top_p").placeholder = defaults.top_p ?? "";
  byId("max_tokens").placeholder = defaults.max_tokens ?? (context ? `≤ ${number(context)}` : "");
  showBanner();
  showWelcome();
}

function showBanner() {
  const about = state.model?.fourbee;
  byId("banner").hidden = !about?.embedded;
  if (!about?.embedded) return;
  const parameters = number(about.parameters, { notation: "compact", compactDisplay: "long", maximumSignificantDigits: 2 });
  byId("banner-title").textContent = state.model.id;
  byId("banner-kind").textContent = word("banner_kind");
  byId("banner-what").textContent = word("banner_what", { parameters });
  byId("examples").replaceChildren(...EXAMPLES[state.language].map(([title, message, tools]) => {
    const button = element("button", { type: "button" }, element("b", { textContent: title }), element("span", { textContent: message }));
    button.addEventListener("click", () => send(message, { offersTools: tools, newTopic: true }));
    return element("li", {}, button);
  }));
  showFits(about);
  showCommands();
}

function showFits({ fits = [], memory_bytes: memory }) {
  const rows = fits.map((item) => {
    const choice = element("input", { type: "radio", name: "real-model", value: item.id, disabled: !item.fits, checked: item.id === state.realModel });
    choice.addEventListener("change", () => { state.realModel = item.id; showCommands(); });
    const size = item.fits ? gigabytes(item.bytes) : `${gigabytes(item.bytes)} · ${word("too_large")}`;
    return element("label", {}, choice, element("span", { className: "name", textContent: item.id }), element("span", { className: "size", textContent: size }));
  });
  const legend = !memory || !fits.length ? "fits_plain" : fits.some((item) => item.fits) ? "fits_legend" : "fits_none";
  byId("fits-legend").textContent = word(legend, { memory: gigabytes(memory ?? 0) });
  byId("fits").replaceChildren(byId("fits-legend"), ...rows);
}

function showCommands() {
  const commands = [`fourbee pull ${state.realModel}`, `fourbee serve --model ${state.realModel}`];
  byId("commands").replaceChildren(...commands.map((command) =>
    element("div", { className: "command" }, element("code", { textContent: command }), copyButton(() => command, word("copy_command", { command })))));
}

function showWelcome() {
  const welcome = byId("welcome");
  welcome.hidden = !state.model || Boolean(state.model.fourbee?.embedded) || state.messages.length > 0;
  welcome.textContent = state.model ? word("welcome", { model: state.model.id }) : "";
}

// ---------------------------------------------------------------- wiring

function showSettingsButton() {
  const changed = ["temperature", "top_p", "max_tokens"].filter((name) => byId(name).value !== "").length;
  byId("settings-button").textContent = changed ? `${word("settings")} · ${changed}` : word("settings");
}

function openSettings(open) {
  byId("settings").hidden = !open;
  byId("settings-button").setAttribute("aria-expanded", String(open));
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  const button = document.getElementById("theme");
  if (button) button.textContent = word(theme === "dark" ? "to_light" : "to_dark");
}

function setLanguage(language) {
  state.language = language;
  document.documentElement.lang = LANGUAGE_TAGS[language];
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = word(node.dataset.text);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", word(node.dataset.label));
  for (const node of document.querySelectorAll("[data-hint]")) node.title = word(node.dataset.hint);
  for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = word(node.dataset.placeholder);
  const other = language === "en" ? "zh" : "en";
  byId("language").textContent = word("other_language");
  byId("language").lang = LANGUAGE_TAGS[other];
  setTheme(document.documentElement.dataset.theme);
  showSettingsButton();
  showConnection();
  showModel();
  save();
  if (state.failure?.kind === "unanswered") state.failure = unanswered();
  showConversation({ rebuild: true });
}

/** The input grows with its text up to the limit in page.css. */
function fitPrompt() {
  const prompt = byId("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

/** Not on a phone, where it would raise the keyboard. */
function focusPrompt() {
  if (matchMedia("(pointer: fine)").matches) byId("prompt").focus();
}

function onPromptKey(event) {
  // 229: the key press belongs to an input method (Safari ends the composition before Enter).
  const composing = event.isComposing || event.keyCode === 229;
  if (event.key !== "Enter" || event.shiftKey || composing) return;
  event.preventDefault();
  sendPrompt();
}

function wireComposer() {
  byId("prompt").addEventListener("keydown", onPromptKey);
  byId("prompt").addEventListener("input", fitPrompt);
  byId("composer").addEventListener("submit", (event) => { event.preventDefault(); sendPrompt(); });
  byId("stop").addEventListener("click", () => { stop(); focusPrompt(); });
  byId("retry").addEventListener("click", () => { focusPrompt(); retry(); });
  byId("key-form").addEventListener("submit", (event) => { event.preventDefault(); useKey(); });
  byId("settings-button").addEventListener("click", () => openSettings(byId("settings").hidden));
  byId("settings").addEventListener("input", ({ target }) => {
    target.setAttribute("aria-invalid", String(!target.checkValidity()));
    showSettingsButton();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing && event.keyCode !== 229) stop();
  });
}

function wirePage() {
  byId("new-chat").addEventListener("click", newChat);
  byId("language").addEventListener("click", () => {
    const language = state.language === "en" ? "zh" : "en";
    store("localStorage", "language", language);
    setLanguage(language);
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
  byId("banner").firstElementChild.addEventListener("click", () => {
    store("localStorage", "banner", byId("banner").open ? "closed" : "open"); // as it will be after this click
  });
  byId("to-latest").addEventListener("click", () => { scroll.following = true; follow(); });
  byId("scroller").addEventListener("scroll", onScroll, { passive: true });
  new ResizeObserver(follow).observe(byId("scroller"));
  addEventListener("pagehide", () => save());
}

function start() {
  const prefersChinese = (navigator.language ?? "").toLowerCase().startsWith("zh");
  const language = stored("localStorage", "language");
  const messages = stored("sessionStorage", "messages");
  state.key = stored("sessionStorage", "key") ?? "";
  state.messages = Array.isArray(messages) ? messages.filter(isMessage) : [];
  state.failure = unanswered();
  byId("banner").open = !state.messages.length && stored("localStorage", "banner") !== "closed";
  wireComposer();
  wirePage();
  setLanguage(language in WORDS ? language : prefersChinese ? "zh" : "en");
  focusPrompt();
  connect();
}

const systemDark = matchMedia("(prefers-color-scheme: dark)");
const themeNow = () => stored("localStorage", "theme") ?? (systemDark.matches ? "dark" : "light");
setTheme(themeNow());
systemDark.addEventListener("change", () => setTheme(themeNow()));
start(); // a module runs after the document is parsed

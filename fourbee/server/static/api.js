/** The server: requests, its event stream, and one streamed answer. Nothing here touches the screen. */

import { state } from "./state.js";
import { word } from "./words.js";

/** A failure with one clear line for the reader; `kind` says what the page should do about it. */
export class Failure extends Error {
  constructor(text, kind = "server") {
    super(text);
    this.kind = kind;
  }
}

/** For a network call's catch: an abort passes through, anything else becomes a Failure. */
const orUnreachable = (name) => (error) => {
  throw error.name === "AbortError" ? error : new Failure(word(name), "unreachable");
};

export function request(path, options = {}) {
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
export async function streamAnswer(body, message, signal, changed) {
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

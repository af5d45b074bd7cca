/**
 * What the page knows: plain data, without a word about how it looks.
 *
 * `state.messages` is the truth: OpenAI messages plus a few fields of ours (stats, ended,
 * offersTools) and "topic" marks. The screen can be rebuilt from it at any time, and
 * `wireMessages` strips it for the server.
 */

export const state = {
  messages: [],
  models: [],
  model: null, // the chosen entry of GET /v1/models
  connection: "connecting", // connecting | ready | loading | unreachable | locked
  key: "",
  keyRefused: false,
  run: null, // { controller, done } while an answer is being made
  failure: null, // { text, kind } shown as the line with the retry button
};

/** The answer being written now, if any. */
export function liveMessage() {
  const last = state.messages.at(-1);
  return state.run && last?.role === "assistant" ? last : null;
}

/** The messages as the server wants them: the current topic, without our own fields and empty turns. */
export function wireMessages() {
  const topic = state.messages.slice(state.messages.findLastIndex((message) => message.role === "topic") + 1);
  return topic.flatMap((message, index) => {
    if (message.role === "user") return [{ role: "user", content: message.content }];
    if (message.role === "tool") return [{ role: "tool", tool_call_id: message.tool_call_id, content: message.content }];
    if (topic[index + 1]?.role === "tool") return [{ role: "assistant", content: message.content || null, tool_calls: message.tool_calls }];
    return message.content ? [{ role: "assistant", content: message.content }] : [];
  });
}

export const offersTools = () => Boolean(state.messages.findLast((message) => message.role === "user")?.offersTools);

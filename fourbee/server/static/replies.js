/** Replies: a message sent, its answer streamed, tool calls in between, stopping and trying again. */

import { Failure, streamAnswer } from "./api.js";
import { closeBanner, openBanner } from "./banner.js";
import { CALCULATOR, toolResult } from "./calculator.js";
import { connect, lock } from "./connection.js";
import { save, showConversation, showLiveSoon } from "./conversation.js";
import { followAgain, scrollToTop } from "./scroller.js";
import { chosenSettings } from "./settings.js";
import { offersTools, state, wireMessages } from "./state.js";
import { announce } from "./status.js";
import { contextId, store } from "./storage.js";
import { word } from "./words.js";

function requestBody() {
  const body = {
    model: state.model?.id, messages: wireMessages(), stream: true, stream_options: { include_usage: true },
    context_id: contextId(), ...chosenSettings(),
  };
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
  followAgain();
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
export function unanswered() {
  const open = ["user", "tool"].includes(state.messages.at(-1)?.role);
  return open ? { text: word("error_unanswered"), kind: "unanswered" } : null;
}

export function send(content, { offersTools: tools = false, newTopic = false } = {}) {
  if (state.run) return;
  if (newTopic && state.messages.length) state.messages.push({ role: "topic" });
  state.messages.push({ role: "user", content, offersTools: tools });
  closeBanner();
  save();
  reply();
}

export function retry() {
  if (state.run) return;
  if (state.messages.at(-1)?.role === "assistant") state.messages.pop();
  reply();
}

export async function stop() {
  if (!state.run) return;
  state.run.controller.abort();
  await state.run.done;
}

export async function newChat() {
  await stop();
  state.messages = [];
  store("sessionStorage", "context", null);
  state.failure = null;
  followAgain();
  openBanner();
  save();
  showConversation();
  scrollToTop();
}

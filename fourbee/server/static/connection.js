/** The connection to the server, from the first attempt to the model that answers. */

import { request } from "./api.js";
import { proposeRealModel, showBanner } from "./banner.js";
import { showConversation, showWelcome } from "./conversation.js";
import { byId, element } from "./elements.js";
import { showDefaults } from "./settings.js";
import { state } from "./state.js";
import { showStatus } from "./status.js";
import { word } from "./words.js";

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

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
export function connect() {
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
  proposeRealModel();
  state.keyRefused = false;
  showModel();
  showConversation({ rebuild: true });
}

export function lock() {
  state.connection = "locked";
  state.keyRefused = Boolean(state.key);
  showConnection();
  byId("key").focus();
}

export function showConnection() {
  const text = { connecting: "connecting", loading: "loading", unreachable: "unreachable" }[state.connection];
  showStatus(text ? word(text) : "");
  byId("key-form").hidden = state.connection !== "locked";
  byId("key-label").textContent = word(state.keyRefused ? "key_refused" : "key_label");
}

export function showModel() {
  const { model } = state;
  const several = state.models.length > 1;
  byId("model-name").textContent = model?.id ?? "";
  byId("model-name").title = model?.id ?? "";
  byId("model-name").hidden = several;
  byId("model-choice").hidden = !several;
  byId("model-choice").replaceChildren(...state.models.map(({ id }) => element("option", { value: id, textContent: id, selected: id === model?.id })));
  showDefaults();
  showBanner();
  showWelcome();
}

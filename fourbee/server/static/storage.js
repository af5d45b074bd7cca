/** The browser's storage under fourbee's names: `localStorage` for choices, `sessionStorage` for the tab. */

/** Storage may be forbidden or full; the page works without it. Returns whether it was stored. */
export function store(storage, name, value) {
  try {
    window[storage].setItem(`fourbee.${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** The conversation's name for the server, which keeps what it has read of it. Not a secret: keys are. */
export function contextId() {
  const known = stored("sessionStorage", "context");
  if (typeof known === "string" && known) return known;
  const made = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  store("sessionStorage", "context", made);
  return made;
}

export function stored(storage, name) {
  try {
    return JSON.parse(window[storage].getItem(`fourbee.${name}`));
  } catch {
    return null;
  }
}

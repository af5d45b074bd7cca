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

export function stored(storage, name) {
  try {
    return JSON.parse(window[storage].getItem(`fourbee.${name}`));
  } catch {
    return null;
  }
}

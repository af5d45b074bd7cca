/**
 * Elements of the page, found and made. Text from the model, the reader or the server only ever
 * becomes a text node; nothing uses innerHTML (the CSP's require-trusted-types-for would stop it).
 */

export const byId = (id) => document.getElementById(id);

/** A new element: properties are assigned, children appended as text or nodes. */
export function element(tag, properties = {}, ...children) {
  const { label, ...rest } = properties;
  const node = Object.assign(document.createElement(tag), rest);
  if (label) node.setAttribute("aria-label", label);
  node.append(...children);
  return node;
}

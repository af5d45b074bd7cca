/**
 * A model's text as elements: paragraphs, headings, code, bold; anything else stays text.
 *
 * While an answer streams, text is appended to the text nodes that are there, so that a selection
 * made by the reader survives and a long answer stays cheap.
 */

import { copyButton } from "./copying.js";
import { element } from "./elements.js";

/** Sets a text node's data, appending where it can, so that a selection inside it survives. */
export function setText(node, text) {
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

/** Makes `parent` show a model's text; called again as the text grows. */
export function showMarkup(parent, text) {
  reconcile(parent, blocksOf(text), BLOCK_MAKERS);
}

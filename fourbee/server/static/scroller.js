/** The scrolling part of the page, which follows a growing answer while the reader is at its end. */

import { byId } from "./elements.js";
import { state } from "./state.js";

const scroll = { following: true, top: 0 };

export function follow() {
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

/** From now on the end is followed, wherever the reader is. */
export function followAgain() {
  scroll.following = true;
}

export function scrollToTop() {
  byId("scroller").scrollTop = 0;
}

export function wireScroller() {
  byId("to-latest").addEventListener("click", () => { followAgain(); follow(); });
  byId("scroller").addEventListener("scroll", onScroll, { passive: true });
  new ResizeObserver(follow).observe(byId("scroller"));
}

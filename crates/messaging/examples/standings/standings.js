// Keeps an open page current. Without this script everything is there as well, as of when it was loaded.
"use strict";
(() => {
  const state = document.getElementById("state");
  const news = document.getElementById("news");
  let source = null;
  let timer = 0;
  let pending = new Map();

  const find = (part, profile) => part.querySelector(`[data-profile="${CSS.escape(profile)}"]`);

  // Reloads the page's content, and announces the updates of members on it.
  async function refresh() {
    timer = 0;
    const updates = pending;
    pending = new Map();
    const shown = document.getElementById("content");
    let fresh;
    try {
      const answer = await fetch(location.href);
      // A member may be gone. In any other trouble, what is shown stays.
      if (!answer.ok && answer.status !== 404) return later(updates);
      fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("content");
    } catch {
      return later(updates);
    }
    if (!fresh) return later(updates);
    const said = [];
    for (const [profile, words] of updates) {
      const row = find(fresh, profile);
      const name = (row ?? find(shown, profile))?.querySelector(".nym");
      if (name) said.push(`${name.textContent} ${words}`);
      row?.classList.add("changed");
    }
    if (said.length) news.textContent = said.slice(-3).join(", ");
    if (fresh.isEqualNode(shown)) return;
    const focused = document.activeElement?.id;
    shown.replaceWith(document.adoptNode(fresh));
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  }

  // Keeps what was not announced for another look.
  function later(updates) {
    pending = new Map([...updates, ...pending]);
    timer ||= setTimeout(refresh, 5000);
  }

  // Many changes at once are one look, and not all pages look at the same moment.
  function soon() {
    timer ||= setTimeout(refresh, 200 + Math.random() * 600);
  }

  function follow() {
    source?.close();
    source = new EventSource("/live");
    source.onopen = () => {
      state.textContent = "Live";
      state.className = "live";
      soon();
    };
    source.onmessage = (event) => {
      const { profile, words } = JSON.parse(event.data);
      if (profile) pending.set(profile, words);
      soon();
    };
    source.onerror = () => {
      state.textContent = "Not live";
      state.className = "";
      if (source.readyState === EventSource.CLOSED) setTimeout(() => document.hidden || follow(), 30000);
    };
  }

  // A browser opens only few connections to one server: a page that nobody sees needs none.
  document.addEventListener("visibilitychange", () => (document.hidden ? source?.close() : follow()));
  if (!document.hidden) follow();
})();

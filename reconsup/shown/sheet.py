"""How the status page looks, and how it keeps itself up to date. Two texts, allowed by their hashes (CSP). PURE.

The script asks for the page's inside every few seconds, less often while nobody answers, not at all while nobody can
see it, and puts in what has changed, so that a selection stays. As soon as an answer is missing, or is older than a few
seconds, the page says so, is dimmed, and the tab's title says it too: old figures must never look like new ones.
"""

STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #fff; --ink: #1c2128; --soft: #57606a; --line: #dfe3e8;
  --good: #1f6b43; --good-ground: #e2f3e9; --warn: #8a4b00; --warn-ground: #fdf0d9; --bad: #b3261e;
  --bad-ground: #fde7e5; --info: #1f5a96; --info-ground: #e3effb; --bar: #7c93ad; }
@media (prefers-color-scheme: dark) { :root { --ground: #101418; --card: #181d23; --ink: #e3e8ee; --soft: #9aa5b1;
  --line: #2a323b; --good: #7fd3a3; --good-ground: #16301f; --warn: #f0bc6a; --warn-ground: #34260d; --bad: #ff9d94;
  --bad-ground: #3a1815; --info: #8fc1f5; --info-ground: #14283d; --bar: #5b7087; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); overflow-wrap: anywhere;
  font: 15px/1.5 -apple-system, BlinkMacSystemFont, "Segoe UI", Roboto, "Noto Sans", Helvetica, Arial, sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%; }
main { max-width: 75rem; margin: 0 auto; padding: 0 1.25rem 2rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 1.4rem 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: .95rem; margin: 0; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.15rem .6rem;
  margin: 1rem 0; overflow-x: auto; position: relative; }
a { color: var(--info); }
a:focus-visible { outline: 2px solid var(--info); outline-offset: 2px; }
.facts { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: 0; color: var(--soft); align-items: center; }
.pill { display: inline-block; padding: 0 .55em; border-radius: 1em; border: 1px solid var(--line);
  font-size: .87em; line-height: 1.6; white-space: nowrap; color: var(--ink); }
.pill.good { color: var(--good); background: var(--good-ground); border-color: transparent; }
.pill.warn { color: var(--warn); background: var(--warn-ground); border-color: transparent; }
.pill.bad { color: var(--bad); background: var(--bad-ground); border-color: transparent; }
.pill.info { color: var(--info); background: var(--info-ground); border-color: transparent; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); } .dim { color: var(--soft); }
.bold { font-weight: 600; } .bad { font-weight: 600; } .dim { font-weight: 400; }
.note, .empty { color: var(--soft); font-size: .87rem; margin: .1rem 0 .4rem; } .note.warn { color: var(--warn); }
.empty { padding: .3rem 0 .4rem; }
p.verdict { background: var(--good-ground); border-radius: 10px; padding: .7rem 1.15rem; margin: 1rem 0; }
section.verdict { border-left: 5px solid var(--bad); }
section.verdict:not(:has(li.bad)) { border-left-color: var(--warn); }
section.verdict ul { list-style: none; margin: .35rem 0 .3rem; padding: 0; }
section.verdict li { padding: .15rem 0 .15rem 1.6em; position: relative; font-weight: 400; }
section.verdict li.hint { color: var(--soft); font-size: .9rem; padding-top: 0; }
.sign { position: absolute; left: .2em; font-weight: 700; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.tiles { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .8rem; margin: 1rem 0; }
.tiles > div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .65rem 1rem; }
dt, .tiles .note { color: var(--soft); font-size: .85rem; margin: 0; } dd { margin: 0; }
.value { font-size: 1.45rem; line-height: 1.35; font-weight: 600; }
table { border-collapse: collapse; width: 100%; margin: .35rem 0 .3rem; font-size: .92rem; }
th, td { text-align: left; font-weight: 400; padding: .38rem .9rem .38rem 0; vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
th, td { overflow-wrap: break-word; } .right { white-space: nowrap; }
thead th { color: var(--soft); font-size: .82rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody th { font-weight: 600; } .right { text-align: right; } .nothing { color: var(--soft); }
time { white-space: nowrap; }
.bars { max-width: 34rem; } .bars .wide { width: 55%; vertical-align: middle; }
.bar { display: block; } .bar rect { fill: var(--bar); }
footer { color: var(--soft); font-size: .87rem; padding: .2rem .2rem 1rem; } footer a { margin-right: .4em; }
#live { position: sticky; top: 0; z-index: 1; margin: 0; padding: .35rem 1.25rem; display: flex; gap: .6em;
  align-items: center; justify-content: center; flex-wrap: wrap; background: var(--card); color: var(--soft);
  border-bottom: 1px solid var(--line); font-size: .87rem; }
.dot { width: .6em; height: .6em; border-radius: 50%; background: var(--soft); flex: none; }
[data-live=live] .dot { background: var(--good); }
[data-live=old] #live, [data-live=gone] #live { background: var(--bad); color: #fff; font-weight: 600;
  font-size: 1rem; padding-block: .7rem; border-color: transparent; }
@media (prefers-color-scheme: dark) { [data-live=old] #live, [data-live=gone] #live { color: #1d0705; } }
[data-live=old] .dot, [data-live=gone] .dot { background: currentColor; border-radius: 1px; }
[data-live=old] main, [data-live=gone] main { filter: grayscale(1); opacity: .55; }
@media (max-width: 46rem) {
  main { padding: 0 .7rem 1.5rem; } section { padding: .8rem .8rem .4rem; }
  #live { justify-content: flex-start; padding-inline: .9rem; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .6rem; }
  table, tbody, th, td { display: block; } th, td { overflow-wrap: anywhere; min-width: 0; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  tbody tr { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 1rem; padding: .45rem 0; }
  tbody tr + tr { border-top: 1px solid var(--line); }
  tbody tr + tr > * { border: 0; }
  tbody th, tbody td { padding: .06rem 0; }
  tbody .right { text-align: left; white-space: normal; } tbody th, .long { grid-column: 1 / -1; }
  tbody th::before, tbody td::before { content: attr(data-of) " "; color: var(--soft); font-weight: 400;
    font-size: .85em; }
  tbody td.nothing { display: none; }
  .bars tr { grid-template-columns: 7rem 4.5rem 1fr; align-items: center; gap: .6rem; padding: .2rem 0; }
  .bars tbody th, .bars .long { grid-column: auto; }
  .bars .right { text-align: right; } .bars tr + tr { border: 0; } .bars th::before, .bars td::before { content: none; }
  .bars td.nothing, .bars .wide { display: block; width: auto; }
}
@media (prefers-reduced-motion: no-preference) { main { transition: opacity .2s; } }
@media print { #live { position: static; } }
"""

SCRIPT = """
(() => {
  "use strict";
  const EVERY = 2000, OLD = 8000, PATIENCE = 5000, PAUSE_MAX = 15000;
  const root = document.documentElement, made = document.body.dataset.made;
  const page = document.getElementById("page"), icon = document.getElementById("icon");
  const words = document.getElementById("words"), age = document.getElementById("age");
  let title = document.title, good = performance.timeOrigin, failures = 0, timer = 0, next = 0, asking = false;

  const span = ms => ms < 99500 ? Math.max(0, Math.round(ms / 1000)) + " s" : Math.round(ms / 60000) + " min";
  const clock = ms => new Date(ms).toISOString().slice(0, 19).replace("T", " ") + " UTC";
  const write = (node, text) => { if (node.textContent !== text) node.textContent = text; };

  function tell() {
    const since = Date.now() - good, wait = next - Date.now();
    const state = failures > 0 ? "gone" : since > OLD || since < -OLD ? "old" : "live";
    root.dataset.live = state;
    write(words, { live: "Live", old: "These figures are old", gone: "No answer from reconsup" }[state]);
    if (state === "live") write(age, "these figures are " + span(since) + " old");
    else write(age, "so it was " + span(since) + " ago, at " + clock(good)
      + (asking || wait <= 0 ? "; asking again" : "; asked again in " + span(wait)));
    const mark = { live: "", old: document.hidden ? "paused – " : "? old – ", gone: "? no answer – " }[state];
    const whole = mark + title;
    if (document.title !== whole) document.title = whole;
  }

  function patch(now, then) {
    if (now.isEqualNode(then)) return;
    if (now.nodeType !== then.nodeType || now.nodeName !== then.nodeName) { now.replaceWith(then); return; }
    if (now.nodeType !== Node.ELEMENT_NODE) { now.data = then.data; return; }
    for (const each of [...now.attributes]) if (!then.hasAttribute(each.name)) now.removeAttribute(each.name);
    for (const each of then.attributes)
      if (now.getAttribute(each.name) !== each.value) now.setAttribute(each.name, each.value);
    const ours = [...now.childNodes], theirs = [...then.childNodes];
    theirs.forEach((each, at) => at < ours.length ? patch(ours[at], each) : now.append(each));
    ours.slice(theirs.length).forEach(each => each.remove());
  }

  function show(told) {
    if (told.made !== made) { location.reload(); return; }
    const fresh = new DOMParser().parseFromString("<main id=page>" + told.main + "</main>", "text/html");
    patch(page, fresh.getElementById("page"));
    title = told.title;
    if (icon.getAttribute("href") !== told.icon) icon.setAttribute("href", told.icon);
  }

  async function ask() {
    clearTimeout(timer);
    if (asking || document.hidden) return;
    asking = true;
    const began = Date.now(), abort = new AbortController(), limit = setTimeout(() => abort.abort(), PATIENCE);
    try {
      const answer = await fetch("page.json", { cache: "no-store", signal: abort.signal });
      if (!answer.ok) throw new Error(answer.status);
      const told = await answer.json();
      if (typeof told.main !== "string") throw new Error("something else answers");
      show(told);
      good = began; failures = 0;
    } catch { failures += 1; }
    clearTimeout(limit);
    asking = false;
    const pause = Math.min(EVERY * 2 ** Math.min(failures, 3), PAUSE_MAX);
    next = Date.now() + pause;
    timer = setTimeout(ask, pause);
    tell();
  }

  document.addEventListener("visibilitychange", () => { tell(); ask(); });
  addEventListener("pageshow", () => { tell(); ask(); });
  addEventListener("online", ask);
  setInterval(tell, 1000);
  tell();
  timer = setTimeout(ask, EVERY);
})();
"""

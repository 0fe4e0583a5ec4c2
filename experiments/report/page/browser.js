"use strict";
// Data: {kbs, sets, passages: [[id, kb, title, text, picture, error]], pictures: [data URL], trajectories, left_out}; experiments/report/browser.py
// fills it. All text goes into the page as text nodes: nothing that a model or a passage says becomes markup.
const $ = id => document.getElementById(id);
const el = (tag, className, text, ...children) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined && text !== null) node.textContent = text;
  node.append(...children.filter(Boolean));
  return node;
};
const ROW = 64, BEYOND = 6;
const MARKS = {right: "✓", partly: "◐", wrong: "✗", failed: "⚠", open: "○"};
const SAID = {right: "right", partly: "partly right", wrong: "wrong", failed: "failed", open: "no gold answer"};
const TABLE_KB = /table/;
let data, all, shown = [], at = -1, siblings = false;
const picked = {outcomes: new Set(), kbs: new Set()};

async function unpack() {
  const bytes = Uint8Array.from(atob($("trajectories").textContent), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return JSON.parse(await new Response(stream).text());
}
const title = kb => kb.replaceAll("_", "-");
function kbClass(kb) {
  if (kb === "stop" || kb === "malformed") return kb;
  const place = data.kbs.indexOf(kb);
  return place < 0 ? "malformed" : "kb" + place % 8;
}
const number = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
const chip = (kb, className = "") => el("span", "chip " + kbClass(kb) + " " + className, title(kb));
const seconds = value => value < 0.0995 ? Math.round(value * 1000) + " ms" : value.toFixed(1) + " s";

// Search: each trajectory's own words, and the numbers of its passages; a passage that many trajectories saw is looked through once.
function index() {
  for (const t of all) {
    const words = [t.id, t.family, t.question, ...t.answers, t.answer, t.thought, t.raw, t.error];
    t.seen = new Set();
    t.asked = new Set();
    for (const step of t.steps) {
      words.push(step.thought, step.query, step.raw, step.read, step.answer, step.raw_answer);
      if (step.choice !== "stop" && step.choice !== "malformed") t.asked.add(step.choice);
      for (const [place] of step.passages) t.seen.add(place);
    }
    t.words = words.join("\n").toLowerCase();
  }
  data.words = data.passages.map(([id, , heading, text]) => (id + "\n" + heading + "\n" + text).toLowerCase());
}
function matcher(query) {
  const tests = query.toLowerCase().split(/\s+/).filter(Boolean).map(word => {
    const hits = new Set();
    data.words.forEach((words, place) => { if (words.includes(word)) hits.add(place); });
    return t => t.words.includes(word) || (hits.size && [...t.seen].some(place => hits.has(place)));
  });
  return t => tests.every(test => test(t));
}

function filter() {
  const found = matcher($("search").value), set = $("set").value, family = $("family").value;
  const current = shown[at];
  const others = all.filter(t => (set === "" || t.set === Number(set)) && (family === "" || t.family === family) && found(t));
  const byKb = t => [...picked.kbs].every(kb => t.asked.has(kb)), byOutcome = t => !picked.outcomes.size || picked.outcomes.has(t.outcome);
  shown = others.filter(t => byKb(t) && byOutcome(t));
  for (const button of $("outcomes").children) button.lastChild.textContent = others.filter(t => byKb(t) && t.outcome === button.value).length;
  for (const button of $("kbs").children) button.lastChild.textContent = others.filter(t => byOutcome(t) && t.asked.has(button.value)).length;
  const narrowed = set !== "" || family !== "" || $("search").value || picked.kbs.size || picked.outcomes.size;
  $("found").textContent = shown.length.toLocaleString("en") + " of " + all.length.toLocaleString("en") +
    (data.left_out ? ", " + data.left_out.toLocaleString("en") + " more in the run's folder" : "");
  $("reset").hidden = !narrowed;
  $("rows").style.height = shown.length * ROW + "px";
  const kept = shown.indexOf(current);
  if (kept < 0) $("list").scrollTop = 0;
  select(kept >= 0 ? kept : shown.length ? 0 : -1, kept >= 0);
}

// The list: only the rows in sight are elements.
function draw() {
  const top = $("list").scrollTop, height = $("list").clientHeight;
  const first = Math.max(0, Math.floor(top / ROW) - BEYOND), last = Math.min(shown.length, Math.ceil((top + height) / ROW) + BEYOND);
  const rows = [];
  for (let place = first; place < last; place++) rows.push(row(shown[place], place));
  if (!shown.length) rows.push(el("p", "none", "No trajectory is like that."));
  $("rows").replaceChildren(...rows);
  if (at >= first && at < last) $("list").setAttribute("aria-activedescendant", "row" + at); else $("list").removeAttribute("aria-activedescendant");
}
function row(t, place) {
  const path = el("span", "dots");
  for (const step of t.steps) path.append(el("i", kbClass(step.choice)));
  const said = t.error ? "broken off" : t.answer || (t.raw ? "malformed" : "");
  const node = el("div", "row" + (place === at ? " at" : ""), null,
    el("span", "mark " + t.outcome, MARKS[t.outcome]),
    el("span", "two", null, el("b", "", t.question || t.id), el("span", "under", null, path, el("span", "said", said), el("em", "", data.sets[t.set]))));
  node.id = "row" + place; node.style.top = place * ROW + "px";
  node.setAttribute("role", "option"); node.setAttribute("aria-selected", place === at);
  node.setAttribute("aria-setsize", shown.length); node.setAttribute("aria-posinset", place + 1);
  node.setAttribute("aria-label", SAID[t.outcome] + ": " + t.question);
  node.onclick = () => { select(place); open(true); };
  return node;
}
function select(place, stay = false) {
  at = place;
  if (place >= 0 && !stay) {
    const list = $("list"), top = place * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  }
  draw();
  if (!stay || !$("detail").childElementCount) detail(shown[at]);
}

// One trajectory.
function detail(t) {
  const box = $("detail");
  box.scrollTop = 0;
  if (!t) { box.replaceChildren(); return; }
  const bar = el("nav", "steer", null, button("← list", () => open(false), "back"),
    el("span", "place", (at + 1).toLocaleString("en") + " of " + shown.length.toLocaleString("en")), button("previous", () => move(-1)), button("next", () => move(1)));
  const more = t.more_answers ? " … and " + t.more_answers + " more" : "";
  const facts = [data.sets[t.set], t.family.replaceAll("_", " "), t.version >= 0 && "policy version " + t.version, seconds(t.seconds), t.id].filter(Boolean).join(" · ");
  const head = el("header", "", null, t.picture >= 0 && picture(t.picture, "the picture of the question"),
    el("div", "", null, el("h3", "", t.question || t.id), t.answers.length ? el("p", "", "gold: " + t.answers.join(" / ") + more) : null, el("p", "meta", facts)),
    el("span", "verdict " + t.outcome, MARKS[t.outcome] + " " + SAID[t.outcome]));
  const path = el("ol", "path", null, ...t.steps.map(step), last(t));
  box.replaceChildren(...[bar, head, elsewhere(t), goldSteps(t), path].filter(Boolean));
}
function button(text, does, className = "") {
  const node = el("button", className, text);
  node.type = "button"; node.onclick = does;
  return node;
}
function elsewhere(t) {
  const others = all.filter(other => other.id === t.id && other !== t).slice(0, 12);
  return others.length > 0 && el("p", "elsewhere", null, "the same question: ", ...others.map(other =>
    button(data.sets[other.set] + " " + MARKS[other.outcome] + " " + (other.answer || "–"), () => go(other), other.outcome)));
}
function go(t) {
  if (!shown.includes(t)) reset();
  select(shown.indexOf(t));
}
function goldSteps(t) {
  if (!t.gold) return null;
  if (!t.gold.length) return el("p", "meta", "nothing has to be looked up for this question");
  return el("details", "", null, el("summary", "", "gold steps: " + t.gold.map(([kbs]) => kbs.map(title).join(" or ")).join(" → ")),
    el("ol", "gold", null, ...t.gold.map(([kbs, query, answer]) => el("li", "", null, ...kbs.map(chip), " " + query + " → ", el("b", "", answer)))));
}
function step(s) {
  const asked = s.choice !== "stop" && s.choice !== "malformed";
  const node = el("li", kbClass(s.choice)), card = el("div", "turns");
  card.append(el("div", "turn", null, chip(s.choice), routed(s), reward(s.plan)));
  if (s.thought) card.append(el("p", "thought", s.thought));
  if (s.raw) card.append(el("p", "raw", s.raw));
  if (asked) card.append(el("p", "query", s.query));
  card.append(routes(s) || "", group(s.plan) || "");
  if (s.passages.length) {
    const list = el("details", "passages", null, el("summary", "", s.passages.length + (s.passages.length === 1 ? " passage" : " passages")));
    list.addEventListener("toggle", () => { if (list.childElementCount === 1) list.append(el("ul", "", null, ...s.passages.map(passage))); });
    card.append(list);
  }
  if (s.read) card.append(el("p", "thought", s.read));
  if (asked) card.append(el("div", "turn", null, el("span", "", null, "found: ", el("b", "", s.answer || (s.raw_answer ? "malformed: " + s.raw_answer : "nothing"))), reward(s.reading)));
  card.append(group(s.reading) || "");
  node.append(card);
  return node;
}
function routed(s) {
  if (!s.gold || (s.choice === "malformed" && !s.gold.length)) return null;
  const wanted = s.gold.length ? s.gold : ["stop"], right = wanted.includes(s.choice);
  return el("span", "routed " + (right ? "right" : "wrong"), right ? "✓ right place" : "✗ " + wanted.map(title).join(" or ") + " was right");
}
function last(t) {
  const node = el("li", "answer"), card = el("div", "turns"), judged = t.groups.find(g => g.kind === "final") || t.groups[0];
  const lone = !t.steps.length && judged && judged.kind === "plan" ? trunk(judged) : null; // a recorded plan turn, which nothing follows
  if (t.thought) card.append(el("p", "thought", t.thought));
  if (lone && lone[2] !== "malformed") card.append(el("div", "turn", null, chip(lone[2]), el("b", "", lone[2] === "stop" ? "" : lone[1]), reward(judged)));
  else card.append(el("div", "turn", null, el("b", "said", t.error ? "broken off: " + t.error : t.answer || "malformed: " + t.raw), reward(judged)));
  for (const each of t.groups) card.append(group(each) || "");
  node.append(card);
  return node;
}
const trunk = g => g && g.siblings[g.trunk];
function reward(g) {
  const mine = trunk(g);
  if (!mine || mine[4] === null) return null;
  const node = el("span", "reward", "reward " + number(mine[4]) + (mine[5] ? " · advantage " + signed(mine[5]) : ""));
  node.title = mine[6].map(([name, value]) => name + " " + number(value)).join(", ");
  return node;
}
const signed = value => (value > 0 ? "+" : "") + number(value);
function group(g) {
  const count = g ? g.siblings.reduce((sum, sibling) => sum + sibling[3], 0) : 0;
  if (count < 2) return null;
  const rewards = g.siblings.map(sibling => sibling[4]).filter(value => value !== null);
  const low = Math.min(...rewards), high = Math.max(...rewards);
  const equal = !rewards.length || high - low < 1e-6;
  const summary = count + " siblings" + (!rewards.length ? ", not judged" : equal ? ", all " + number(high) + ": nothing to learn here" : ", rewards " + number(low) + " to " + number(high));
  const box = el("details", "siblings", null, el("summary", "", summary));
  const fill = () => { if (box.open && box.childElementCount === 1) box.append(el("div", "side", null, ...g.siblings.map((sibling, place) => oneOf(sibling, place === g.trunk)))); };
  box.addEventListener("toggle", fill);
  box.open = siblings || !equal;
  fill();
  return box;
}
function routes(s) {
  const found = s.plan && s.plan.values;
  if (!found) return null;
  const values = [found.stop, ...found.queries.flatMap(([, , routes]) => routes.map(route => route[2]))], best = Math.max(...values);
  const line = (first, read, value, taken, isRoute = true) => {
    const meter = el("i", "meter", null, el("i", ""));
    meter.firstChild.style.width = Math.max(0, Math.min(1, value)) * 100 + "%";
    return el("li", isRoute && value === best ? "best" : "", null, first, el("span", "", read), meter, el("b", "", number(value)), taken && el("span", "here", "went on"));
  };
  const box = el("details", "routes", null, el("summary", "", "what each route would have brought: " + number(Math.min(...values)) + " to " + number(best)),
    ...found.queries.map(([query, unknown, routes]) => el("ul", "", null, query !== s.query && el("li", "asked", query),
      ...routes.map(([kb, answer, value]) => line(chip(kb), answer, value, s.choice === kb && s.query === query)),
      line(el("span", "meta", "no answer"), "", unknown, false, false))),
    el("ul", "", null, line(chip("stop"), "", found.stop, s.choice === "stop")),
    el("p", "meta", "share of right final answers from there on, less the price of the searches"));
  box.open = siblings || best - Math.min(...values) >= 0.1;
  return box;
}
function oneOf([thought, said, kb, times, earned, advantage, parts], isTrunk) {
  const card = el("div", "sibling" + (isTrunk ? " trunk" : ""));
  card.append(el("div", "turn", null, kb && chip(kb), times > 1 && el("span", "times", "× " + times), isTrunk && el("span", "here", "went on")));
  if (thought) card.append(el("p", "thought", thought));
  if (said && !(kb === "stop")) card.append(el("p", kb === "malformed" ? "raw" : "query", said));
  if (earned !== null) {
    const meter = el("i", "meter", null, el("i", ""));
    meter.firstChild.style.width = Math.max(0, Math.min(1, earned)) * 100 + "%";
    card.append(meter, el("div", "earned", null, el("span", "", "reward " + number(earned)),
      advantage !== null && el("b", advantage > 0 ? "right" : advantage < 0 ? "wrong" : "", "advantage " + signed(advantage))));
    if (parts.length) card.append(el("p", "meta", parts.map(([name, value]) => name.replaceAll("_", " ") + " " + number(value)).join(" · ")));
  } else card.append(el("p", "meta", "this turn is not judged"));
  return card;
}
function picture(place, alt) {
  const node = el("img");
  const url = data.pictures[place];
  if (!/^data:image\/(png|jpeg);base64,[A-Za-z0-9+/=]+$/.test(url)) return null;
  node.src = url; node.alt = alt; node.loading = "lazy";
  return node;
}
function passage([place, score]) {
  const [id, kb, heading, text, shot, error] = data.passages[place];
  const isTable = TABLE_KB.test(kb) && text.includes(" | "), body = el("div");
  if (heading && !isTable && !text.startsWith(heading)) body.append(el("b", "", heading + " "));
  body.append(error ? el("span", "wrong", "search failed: " + error) : isTable ? asTable(heading, text) : el("span", "", text));
  body.append(el("div", "meta", id + " · score " + number(score, 3)));
  return el("li", "", null, shot >= 0 && picture(shot, "picture of the passage"), body);
}
function asTable(heading, text) {
  const parts = text.split(" | "), head = parts.findIndex(part => part.startsWith("header: ")), rows = [], top = el("tr");
  const name = head >= 0 ? parts.slice(0, head).join(" · ") : parts.shift();
  if (head >= 0) {
    for (const cell of parts[head].slice(8).split(" ; ")) top.append(el("th", "", cell));
    for (const part of parts.slice(head + 1)) rows.push(el("tr", "", null, ...part.replace(/^row: /, "").split(" ; ").map(cell => el("td", "", cell))));
  } else {
    const line = el("tr");
    for (const cell of parts) {
      const cut = cell.lastIndexOf(" ");
      top.append(el("th", "", cut > 0 ? cell.slice(0, cut) : ""));
      line.append(el("td", "", cell.slice(cut + 1)));
    }
    rows.push(line);
  }
  const caption = el("caption", "", heading && !name.startsWith(heading) ? heading + (name ? " · " + name : "") : name);
  return el("div", "scroll", null, el("table", "", null, caption, el("thead", "", null, top), el("tbody", "", null, ...rows)));
}

// On a narrow screen a trajectory lies over the list, and going back closes it.
const narrow = matchMedia("(max-width: 46rem)");
let from = null;
function open(yes, byHistory = false) {
  if (!narrow.matches) yes = false;
  const is = document.body.classList.contains("reading");
  if (yes === is) return;
  if (yes) { from = scrollY; history.pushState({reading: true}, ""); } else if (!byHistory && history.state && history.state.reading) { history.back(); return; }
  document.body.classList.toggle("reading", yes);
  if (yes) $("detail").focus(); else if (from !== null) { scrollTo(0, from); $("list").focus({preventScroll: true}); }
}
function move(by) { if (shown.length) select(Math.min(shown.length - 1, Math.max(0, at + by))); }
function reset() {
  $("search").value = $("set").value = $("family").value = "";
  for (const name of ["outcomes", "kbs"]) { picked[name].clear(); for (const node of $(name).children) node.setAttribute("aria-pressed", "false"); }
  filter();
}
function pick(name, value, label, className) {
  const node = el("button", className, null, el("span", "", label), el("small", ""));
  node.type = "button"; node.value = value; node.setAttribute("aria-pressed", "false");
  node.onclick = () => {
    const set = picked[name];
    if (!set.delete(value)) set.add(value);
    node.setAttribute("aria-pressed", set.has(value));
    filter();
  };
  return node;
}
function options(id, first, found) {
  const nodes = found.map(([value, label]) => { const node = el("option", "", label); node.value = value; return node; });
  const every = el("option", "", first);
  every.value = "";
  $(id).replaceChildren(every, ...nodes);
  $(id).hidden = found.length < 2;
  $(id).onchange = filter;
}

function start() {
  all = data.trajectories;
  index();
  const outcomes = Object.keys(MARKS).filter(name => all.some(t => t.outcome === name));
  $("outcomes").replaceChildren(...outcomes.map(name => pick("outcomes", name, MARKS[name] + " " + SAID[name], name)));
  const used = data.kbs.filter(kb => all.some(t => t.asked.has(kb)));
  $("kbs").replaceChildren(...used.map(kb => pick("kbs", kb, title(kb), "chip " + kbClass(kb))));
  const sets = new Set(all.map(t => t.set));
  options("set", "any time", data.sets.map((name, place) => [place, name]).filter(([place]) => sets.has(place)));
  options("family", "any kind", [...new Set(all.map(t => t.family).filter(Boolean))].sort().map(name => [name, name.replaceAll("_", " ")]));
  $("unpacking").hidden = true; $("browser").hidden = false;
  let waiting = 0;
  $("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 60); });
  $("list").addEventListener("scroll", () => requestAnimationFrame(draw), {passive: true});
  addEventListener("resize", draw);
  $("reset").onclick = reset;
  addEventListener("popstate", () => open(false, true));
  $("list").addEventListener("keydown", event => {
    const by = {ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -shown.length, End: shown.length}[event.key];
    if (by) { event.preventDefault(); move(by); }
    if (event.key === "Enter") { open(true); if (!narrow.matches) $("detail").focus(); }
  });
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") { if (document.body.classList.contains("reading")) open(false); else if (event.target.id === "search" || $("detail").contains(event.target)) $("list").focus(); return; }
    if (/INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) return;
    if (event.key === "/") { event.preventDefault(); $("search").focus(); $("search").select(); }
    if (event.key === "j") move(1);
    if (event.key === "k") move(-1);
    if (event.key === "b" && shown[at]) { const same = all.filter(t => t.id === shown[at].id); if (same.length > 1) go(same[(same.indexOf(shown[at]) + 1) % same.length]); }
    if (event.key === "s") { siblings = !siblings; detail(shown[at]); }
  });
  filter();
  performance.mark("unpacked");
}
unpack().then(found => { data = found; start(); }).catch(error => {
  $("unpacking").textContent = "The trajectories could not be unpacked: " + (globalThis.DecompressionStream ? error.message :
    "this browser has no DecompressionStream (Chrome 103, Firefox 113, Safari 16.4 or later have it)") + ". They are in the folder trajectories/ of the run.";
});

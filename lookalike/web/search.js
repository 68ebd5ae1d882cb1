// The search view: one question at a time, its answers, and the basket of examples.

import * as api from "./api.js";
import { filters } from "./filters.js";
import { stage } from "./region.js";
import { $, announce, complain, el, icon, nameOf, picture, plural, settled, thumbnail, walkable } from "./ui.js";

const PAGE = 30;
// What is asked: {kind: "none" | "picture" | "key" | "text" | "url" | "examples" | "beside", …}
let question = { kind: "none" };
let region = null;
let cursor = null; // of the next page: an offset, or a key where all pictures are listed
let recorded = null; // the number of this search in the feedback store
let abilities = {};
let limits = {};
let running = null;
let marked = null; // the stage of the query's picture
const basket = { liked: new Map(), disliked: new Map() };
const judged = new Map();
const filter = filters(() => run());
const grid = $("results");
const walk = walkable(grid, {
  "+": (card) => like(card.item, "liked"),
  "-": (card) => like(card.item, "disliked"),
  w: (card) => why(card.item),
});

const least = () => (Number($("least").value) > Number($("least").min) ? Number($("least").value) : undefined);
export const last = { items: [] };

// ── asking ──

/** Ask, and let the browser's back button return to what was asked before. */
export function ask(next, { push = true } = {}) {
  if (push) history.pushState(kept(next), "", "#/search");
  question = next;
  region = next.region ?? null;
  if (push) document.dispatchEvent(new Event("asked"));
  // Cosines between words and pictures are small and may be below zero.
  $("least").min = next.kind === "text" ? -0.5 : 0;
  $("least").value = $("least").min;
  showLeast();
  drawQuery();
  return run();
}

// The browser's history keeps no files: what was asked with one is remembered here, until the page is left.
const remembered = new Map();

function kept(next) {
  const id = `${performance.timeOrigin}-${remembered.size}`;
  remembered.set(id, next);
  return { id, question: next.kind === "picture" ? { kind: "none" } : next };
}

export function restore(state) {
  ask(remembered.get(state.id) ?? state.question, { push: false });
}

function options() {
  const asked = { k: PAGE, where: filter.where() };
  if (question.kind !== "none" && question.kind !== "beside") asked.min_score = least();
  if (question.kind === "key") asked.key = question.item.key;
  if (question.kind === "text") asked.text = question.text;
  if (question.kind === "url") asked.url = question.url;
  if (question.kind === "examples") Object.assign(asked, { liked: question.liked, disliked: question.disliked });
  if (region && ["picture", "key", "url"].includes(question.kind)) asked.region = region;
  if (abilities.feedback && $("remember").checked && question.kind !== "url") asked.record = { person: person() };
  return asked;
}

async function page() {
  const asked = options();
  const signal = running.signal;
  if (question.kind === "none") {
    const found = await api.list({ limit: PAGE, where: asked.where, after: cursor ?? undefined }, signal);
    return { hits: found.items, next: found.next };
  }
  if (question.kind === "beside") {
    return api.recommend({ keys: question.liked, unlike: question.disliked, k: PAGE, where: asked.where }, signal);
  }
  return api.search({ ...asked, offset: cursor ?? 0 }, question.kind === "picture" ? question.blob : null, signal);
}

async function run({ more = false } = {}) {
  running?.abort();
  running = new AbortController();
  const mine = running;
  if (!more) cursor = null;
  grid.setAttribute("aria-busy", "true");
  try {
    const found = await page();
    if (mine !== running) return;
    recorded = found.search ?? null;
    cursor = found.next ?? null;
    if (!more) {
      judged.clear();
      grid.replaceChildren();
      last.items = [];
    }
    last.items.push(...found.hits);
    const from = grid.children.length;
    const cards = found.hits.map((item) => card(item, { search: recorded }));
    grid.append(...cards);
    if (more) grid.children[from]?.querySelector(".pic").focus();
    walk.reset();
    $("more").hidden = cursor === null;
    $("none").hidden = grid.children.length > 0;
    $("none").textContent =
      question.kind === "none" ? "There is no picture that fits." : "Nothing is close enough. Lower the minimum score, or drop a filter.";
    $("results-title").textContent = question.kind === "none" ? "Pictures" : question.kind === "beside" ? "Beside these" : "Lookalikes";
    $("least-row").hidden = question.kind === "none" || question.kind === "beside";
    if (!more && question.kind !== "none" && narrow.matches) $("results-title").scrollIntoView({ block: "start" });
    announce(found.hits.length ? `${plural(grid.children.length, "picture")} found.` : "Nothing found.");
  } catch (error) {
    if (mine === running) complain(error);
  } finally {
    if (mine === running) grid.removeAttribute("aria-busy");
  }
}

// ── the query ──

function drawQuery() {
  const shown = question.kind !== "none" && question.kind !== "examples" && question.kind !== "beside";
  $("query").hidden = !shown;
  $("whole").hidden = !region;
  marked = null;
  if (!shown) return;
  const asked = $("asked");
  $("region-hint").hidden = true;
  if (question.kind === "text") {
    asked.replaceChildren(el("p", {}, `“${question.text}”`));
    return;
  }
  const source = question.kind === "picture" ? URL.createObjectURL(question.blob) : question.kind === "key" ? thumbnail(question.item, 640) : null;
  if (!source) {
    asked.replaceChildren(el("p", {}, question.kind === "url" ? question.url : nameOf(question.item)));
    return;
  }
  const image = el("img", {
    src: source,
    alt: question.kind === "key" ? nameOf(question.item) : "Your picture",
    draggable: false,
    onload: () => ($("region-hint").hidden = false),
    onerror: () => asked.replaceChildren(el("p", { className: "soft" }, "This browser cannot show the picture. The search works all the same.")),
  });
  marked = stage(image, {
    onchange: (next) => {
      region = next;
      $("whole").hidden = !next;
      run();
    },
  });
  if (region) marked.show(region);
  asked.replaceChildren(marked.frame);
}

/** Search with a file. One that is larger than the server takes is made smaller here. */
export async function askFile(file) {
  try {
    if (!file) return;
    let blob = file;
    if (limits.upload_bytes && file.size > limits.upload_bytes) {
      const bitmap = await createImageBitmap(file);
      const scale = Math.min(1, 2048 / Math.max(bitmap.width, bitmap.height));
      const canvas = el("canvas", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
      canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
      blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
    }
    await ask({ kind: "picture", blob });
  } catch (error) {
    complain(error);
  }
}

// ── answers ──

/** A picture with what one may do with it. */
function card(item, { search = null } = {}) {
  const name = nameOf(item);
  const score = item.score === undefined ? null : item.score.toFixed(3);
  const act = (kind, told, does, pressed) =>
    el(
      "button",
      { type: "button", className: kind, title: told, "aria-label": `${told}: ${name}`, "aria-pressed": pressed === undefined ? null : String(pressed), onclick: does },
      icon(kind),
    );
  const made = el(
    "li",
    { className: "card" },
    el(
      "button",
      {
        type: "button",
        className: "pic",
        title: name,
        "aria-label": `${name}${score ? `, score ${score}` : ""}${item.copies?.length ? `, ${plural(item.copies.length, "identical file")}` : ""}. Search by it.`,
        onclick: () => {
          if (search) api.react({ search, key: item.key, clicked: true }).catch(complain);
          ask({ kind: "key", item });
          $("results-title").scrollIntoView({ block: "nearest" });
        },
      },
      picture(item),
    ),
    el("div", { className: "about" }, score ? el("b", {}, score) : null, el("span", {}, name, item.copies?.length ? ` · +${item.copies.length}` : "")),
    el(
      "div",
      { className: "acts" },
      act("like", "Like", () => like(item, "liked"), basket.liked.has(item.key)),
      act("dislike", "Dislike", () => like(item, "disliked"), basket.disliked.has(item.key)),
      item.score !== undefined && ["key", "picture"].includes(question.kind) ? act("why", "Why alike", () => why(item)) : null,
      el("span", { className: "gap" }),
      search ? act("alike", "Judge alike", () => judge(made, true), false) : null,
      search ? act("unlike", "Judge not alike", () => judge(made, false), false) : null,
    ),
  );
  made.item = item;
  made.search = search;
  made.classList.toggle("liked", basket.liked.has(item.key));
  made.classList.toggle("disliked", basket.disliked.has(item.key));
  return made;
}

async function judge(made, alike) {
  const key = made.item.key;
  const next = judged.get(key) === alike ? null : alike;
  try {
    await api.react({ search: made.search, key, alike: next });
    judged.set(key, next);
    made.querySelector(".alike").setAttribute("aria-pressed", String(next === true));
    made.querySelector(".unlike").setAttribute("aria-pressed", String(next === false));
    announce(next === null ? "Judgement taken back." : next ? "Judged alike." : "Judged not alike.");
  } catch (error) {
    complain(error);
  }
}

async function why(item) {
  if (!["key", "picture"].includes(question.kind)) return;
  const dialog = $("why");
  const body = $("why-body");
  body.replaceChildren(el("p", { className: "soft" }, "Looking closely …"));
  if (!dialog.open) dialog.showModal();
  try {
    const asked = { key: item.key, region: region ?? undefined };
    if (question.kind === "key") asked.query = question.item.key;
    const found = await api.explain(asked, question.kind === "picture" ? question.blob : null);
    const side = (source, told) => el("figure", {}, el("img", { src: source, alt: `Heat map of ${told}` }), el("figcaption", {}, told));
    body.replaceChildren(
      el("p", {}, "Score ", el("b", {}, found.score.toFixed(3)), ". ", el("span", { className: "swatch for" }), " speaks for it, ", el("span", { className: "swatch against" }), " against it."),
      el("div", { className: "pair" }, side(found.left, "what you look for"), side(found.right, nameOf(item))),
      found.method === "occlusion" ? el("p", { className: "soft small" }, `Told by covering parts: ${found.why}`) : el("p", { className: "soft small" }, "The score is the sum of what the places add."),
    );
    announce(`Explained. Score ${found.score.toFixed(3)}.`);
  } catch (error) {
    dialog.close();
    complain(error);
  }
}

// ── the basket ──

export function like(item, side) {
  const other = side === "liked" ? "disliked" : "liked";
  if (basket[side].has(item.key)) basket[side].delete(item.key);
  else {
    basket[side].set(item.key, item);
    basket[other].delete(item.key);
  }
  drawBasket();
  announce(`${nameOf(item)} ${basket[side].has(item.key) ? side : "no longer an example"}. ${plural(basket.liked.size + basket.disliked.size, "example")}.`);
}

function drawBasket() {
  $("basket").hidden = !basket.liked.size && !basket.disliked.size;
  $("by-basket").disabled = $("beside-basket").disabled = !basket.liked.size;
  for (const side of ["liked", "disliked"]) {
    $(side).replaceChildren(
      ...[...basket[side].values()].map((item) =>
        el("li", {}, el("button", { type: "button", title: `${nameOf(item)}: take out`, "aria-label": `Take out ${nameOf(item)}, ${side}`, onclick: () => like(item, side) }, picture(item, 128))),
      ),
    );
  }
  for (const made of grid.querySelectorAll(".card")) {
    for (const [side, kind] of [["liked", "like"], ["disliked", "dislike"]]) {
      const inside = basket[side].has(made.item.key);
      made.classList.toggle(side, inside);
      made.querySelector(`.${kind}`).setAttribute("aria-pressed", String(inside));
    }
  }
}

// ── memory ──

function person() {
  let name = localStorage.getItem("lookalike-person");
  if (!name) {
    const bytes = crypto.getRandomValues(new Uint8Array(12));
    name = "page-" + [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    localStorage.setItem("lookalike-person", name);
  }
  return name;
}

function showLeast() {
  $("least-out").textContent = least() === undefined ? "any" : least().toFixed(2);
}

// ── wiring ──

const narrow = matchMedia("(max-width: 860px)");

export async function open(info) {
  $("filters").open = !narrow.matches;
  abilities = info.can;
  limits = info.limits;
  $("words-row").hidden = !abilities.text;
  $("url-row").hidden = !abilities.url;
  $("memory").hidden = !abilities.feedback;
  $("remember").checked = localStorage.getItem("lookalike-remember") === "yes";

  $("choose").onclick = () => $("file").click();
  $("photograph").onclick = () => $("camera").click();
  for (const name of ["file", "camera"]) {
    $(name).onchange = (event) => {
      askFile(event.target.files[0]);
      event.target.value = "";
    };
  }
  $("ask").onsubmit = (event) => {
    event.preventDefault();
    const text = $("words").value.trim();
    if (text) ask({ kind: "text", text });
  };
  $("by-url").onclick = () => {
    const url = $("url").value.trim();
    if (url) ask({ kind: "url", url });
  };
  $("clear-query").onclick = () => {
    ask({ kind: "none" });
    $("choose").focus();
  };
  $("whole").onclick = () => {
    marked?.clear();
    $("whole").hidden = true;
    marked?.frame.focus();
  };
  const again = settled(() => run(), 250);
  $("least").oninput = () => {
    showLeast();
    for (const made of grid.children) made.hidden = least() !== undefined && made.item.score < least();
    again();
  };
  $("more").onclick = () => run({ more: true });
  $("clear-basket").onclick = () => {
    basket.liked.clear();
    basket.disliked.clear();
    drawBasket();
    announce("No examples.");
  };
  const examples = () => ({ liked: [...basket.liked.keys()], disliked: [...basket.disliked.keys()] });
  $("by-basket").onclick = () => ask({ kind: "examples", ...examples() });
  $("beside-basket").onclick = () => ask({ kind: "beside", ...examples() });
  $("remember").onchange = (event) => {
    localStorage.setItem("lookalike-remember", event.target.checked ? "yes" : "no");
    if (question.kind !== "none") run();
  };
  $("forget").onclick = async () => {
    try {
      const { forgotten } = await api.forget(person());
      announce(`${plural(forgotten, "search", "searches")} forgotten.`);
      $("forget").textContent = `Forgot ${forgotten}`;
    } catch (error) {
      complain(error);
    }
  };
  history.replaceState(kept({ kind: "none" }), "", location.hash || "#/search");
  await Promise.all([filter.load().catch(complain), ask({ kind: "none" }, { push: false })]);
}

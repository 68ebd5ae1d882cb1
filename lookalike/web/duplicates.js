// Groups of pictures that are all but the same.

import * as api from "./api.js";
import { ask } from "./search.js";
import { $, announce, complain, el, nameOf, picture, plural, settled, walkable } from "./ui.js";

let next = null;
let running = null;

function group(hits, number) {
  const title = `Group ${number}: ${plural(hits.length, "picture")}`;
  const grid = el(
    "ul",
    { className: "grid tight", "aria-label": title },
    hits.map((hit, place) =>
      el(
        "li",
        { className: "card" },
        el(
          "button",
          {
            type: "button",
            className: "pic",
            title: hit.payload.path ?? hit.key,
            "aria-label": `${nameOf(hit)}, ${place ? `score ${hit.score.toFixed(3)}` : "the largest"}. Search by it.`,
            onclick: () => ask({ kind: "key", item: hit }),
          },
          picture(hit),
          place ? null : el("span", { className: "tag" }, "largest"),
        ),
        el("div", { className: "about" }, place ? el("b", {}, hit.score.toFixed(3)) : null, el("span", {}, nameOf(hit))),
      ),
    ),
  );
  walkable(grid).reset();
  return el("li", {}, el("h2", {}, title), grid);
}

async function load(offset = 0) {
  running?.abort();
  running = new AbortController();
  const mine = running;
  const list = $("groups");
  list.setAttribute("aria-busy", "true");
  if (!offset) $("duplicates-count").textContent = "Comparing …";
  try {
    const chosen = $("threshold").dataset.chosen;
    const found = await api.duplicates({ threshold: chosen ? Number(chosen) : undefined, offset, limit: 20 }, mine.signal);
    if (!chosen) $("threshold").value = found.threshold;
    $("threshold-out").textContent = found.threshold.toFixed(3);
    if (!offset) list.replaceChildren();
    list.append(...found.groups.map((hits, place) => group(hits, offset + place + 1)));
    next = found.next;
    $("more-groups").hidden = next === null;
    const told = found.count ? `${plural(found.count, "group")}, ${plural(found.extra, "picture")} more than needed.` : "No picture is there twice.";
    $("duplicates-count").textContent = told;
    announce(told);
  } catch (error) {
    if (error.status === 400 && !$("threshold").dataset.chosen) {
      // This bundle has no threshold of its own.
      $("threshold").dataset.chosen = $("threshold").value = "0.97";
      return load();
    }
    if (mine === running) $("duplicates-count").textContent = "";
    complain(error);
  } finally {
    if (mine === running) list.removeAttribute("aria-busy");
  }
}

export function open() {
  const again = settled(() => load(), 400);
  $("threshold").oninput = (event) => {
    event.target.dataset.chosen = event.target.value;
    $("threshold-out").textContent = Number(event.target.value).toFixed(3);
    again();
  };
  $("more-groups").onclick = () => load(next);
  return load();
}

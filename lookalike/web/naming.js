// Named baskets with a few examples each; the rest gets their names, or none.

import * as api from "./api.js";
import { last } from "./search.js";
import { $, announce, complain, el, nameOf, picture, plural, walkable } from "./ui.js";

const baskets = new Map(); // name → Map(key → item)
let active = null;
let pool = [];
const picker = $("picker");
const walk = walkable(picker);
const SHOWN = 48;

const holder = (key) => [...baskets].find(([, items]) => items.has(key))?.[0];

function drawBaskets() {
  $("baskets").replaceChildren(
    ...[...baskets].map(([name, items]) =>
      el(
        "div",
        { className: "basket" },
        el(
          "label",
          {},
          el("input", { type: "radio", name: "basket", value: name, checked: name === active, onchange: () => ((active = name), drawPicker()) }),
          `${name} (${items.size})`,
        ),
        el("button", {
          type: "button",
          className: "quiet",
          textContent: "✕",
          "aria-label": `Drop basket ${name}`,
          onclick: () => {
            baskets.delete(name);
            if (active === name) active = baskets.keys().next().value ?? null;
            drawBaskets();
            drawPicker();
          },
        }),
        el("ul", { className: "chips", "aria-label": `Examples of ${name}` }, [...items.values()].map((item) => el("li", {}, el("button", { type: "button", "aria-label": `Take out ${nameOf(item)}`, title: nameOf(item), onclick: () => put(item, name) }, picture(item, 128))))),
      ),
    ),
  );
  $("name-rest").disabled = ![...baskets.values()].some((items) => items.size);
}

/** Put an item into a basket, or take it out; it lies in one basket at most. */
function put(item, name = active) {
  if (!name) {
    announce("Make a basket first.");
    $("basket-name").focus();
    return;
  }
  const before = holder(item.key);
  if (before) baskets.get(before).delete(item.key);
  if (before !== name) baskets.get(name).set(item.key, item);
  announce(before === name ? `${nameOf(item)} taken out of ${name}.` : `${nameOf(item)} is an example of ${name}.`);
  drawBaskets();
  marks();
}

function marks() {
  for (const card of picker.children) {
    const name = holder(card.item.key);
    card.querySelector(".pic").setAttribute("aria-pressed", String(Boolean(name)));
    card.querySelector(".tag").textContent = name ?? "";
    card.querySelector(".tag").hidden = !name;
  }
}

function small(item, onclick, told) {
  const card = el(
    "li",
    { className: "card" },
    el("button", { type: "button", className: "pic", title: nameOf(item), "aria-label": told, onclick }, picture(item), el("span", { className: "tag", hidden: true })),
  );
  card.item = item;
  return card;
}

function drawPicker() {
  picker.replaceChildren(...pool.map((item) => small(item, () => put(item), nameOf(item))));
  marks();
  walk.reset();
}

async function fill() {
  try {
    // A few of everywhere: the map's points are an even sample of the index.
    const { points } = await api.map();
    const chosen = [...points].sort(() => Math.random() - 0.5).slice(0, SHOWN);
    const { items } = await api.get(chosen.map((point) => point.key));
    pool = items.filter(Boolean);
    drawPicker();
  } catch (error) {
    complain(error);
  }
}

async function name() {
  const asked = Object.fromEntries([...baskets].filter(([, items]) => items.size).map(([given, items]) => [given, [...items.keys()]]));
  $("name-rest").disabled = true;
  announce("Naming …");
  try {
    const found = await api.label({ baskets: asked, limit: 600, unknown: $("allow-none").checked });
    const groups = new Map(Object.keys(asked).map((given) => [given, []]));
    groups.set(null, []);
    for (const one of found.labels) groups.get(one.label)?.push(one);
    $("named").replaceChildren(
      ...[...groups].filter(([given, items]) => given !== null || items.length).map(([given, items]) => {
        const title = `${given ?? "None of them"} (${items.length.toLocaleString("en")})`;
        const sorted = items.sort((a, b) => (b.probability ?? 0) - (a.probability ?? 0));
        const grid = el("ul", { className: "grid tight", "aria-label": title }, sorted.slice(0, 36).map((item) => {
          const sure = item.probability === null ? "" : `, ${Math.round(item.probability * 100)} %`;
          const card = small(item, () => put(item, given ?? active), `${nameOf(item)}${given ? sure : ""}. Make it an example.`);
          if (given && sure) {
            card.querySelector(".tag").textContent = sure.slice(2);
            card.querySelector(".tag").hidden = false;
          }
          return card;
        }));
        walkable(grid).reset();
        return el("section", { className: "named" }, el("h3", {}, title), grid);
      }),
    );
    $("named-section").hidden = false;
    const told = [...groups].map(([given, items]) => `${given ?? "none of them"} ${items.length}`).join(", ");
    announce(`Named ${plural(found.labels.length, "picture")}${found.more ? ", the first of more" : ""}: ${told}.`);
    $("named-title").textContent = found.more ? `Named: the first ${found.labels.length}` : "Named";
    $("named-title").focus();
  } catch (error) {
    complain(error);
  } finally {
    drawBaskets();
  }
}

export function open() {
  $("new-basket").onsubmit = (event) => {
    event.preventDefault();
    const given = $("basket-name").value.trim();
    if (!given) return;
    if (!baskets.has(given)) baskets.set(given, new Map());
    active = given;
    $("basket-name").value = "";
    drawBaskets();
    announce(`Basket ${given} takes what you choose.`);
  };
  $("name-rest").onclick = name;
  $("more-picker").onclick = fill;
  if (last.items.length && last.items[0].score !== undefined) {
    pool = last.items.slice(0, SHOWN); // what was just found is what somebody has in mind
    drawPicker();
    return null;
  }
  return fill();
}

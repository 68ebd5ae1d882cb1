// Facets as filters: values to tick, ranges to bound. `where()` is what the server takes.

import { facets } from "./api.js";
import { $, complain, el, settled } from "./ui.js";

export function filters(onchange) {
  const ticked = new Map(); // field → Set of values
  const bounds = new Map(); // field → {gte, lte}
  const changed = settled(() => {
    $("clear-filters").hidden = !where();
    onchange();
  }, 200);

  function where() {
    const found = {};
    for (const [field, values] of ticked) if (values.size) found[field] = { any_of: [...values] };
    for (const [field, range] of bounds) {
      const given = Object.fromEntries(Object.entries(range).filter(([, value]) => Number.isFinite(value)));
      if (Object.keys(given).length) found[field] = { range: given };
    }
    return Object.keys(found).length ? found : undefined;
  }

  function values(facet) {
    const chosen = ticked.get(facet.field) ?? new Set();
    ticked.set(facet.field, chosen);
    return el(
      "ul",
      {},
      facet.values.map(({ value, count }) =>
        el(
          "li",
          {},
          el(
            "label",
            { className: "check" },
            el("input", {
              type: "checkbox",
              checked: chosen.has(value),
              onchange: (event) => {
                if (event.target.checked) chosen.add(value);
                else chosen.delete(value);
                changed();
              },
            }),
            el("span", {}, String(value)),
            el("small", {}, count.toLocaleString("en")),
          ),
        ),
      ),
    );
  }

  function range(facet) {
    const given = bounds.get(facet.field) ?? {};
    bounds.set(facet.field, given);
    const input = (name, hint, value) =>
      el("input", {
        type: "number",
        step: "any",
        placeholder: String(Number(value.toFixed(2))),
        "aria-label": `${facet.field} ${hint}`,
        oninput: (event) => {
          given[name] = event.target.value === "" ? NaN : Number(event.target.value);
          changed();
        },
      });
    return el(
      "div",
      { className: "between" },
      input("gte", "from", facet.least),
      el("span", { className: "soft" }, "to"),
      input("lte", "to", facet.most),
    );
  }

  function draw(found) {
    const useful = found.facets.filter((facet) => facet.kind === "range" || facet.values.length > 1);
    $("filters").hidden = !useful.length;
    $("facets").replaceChildren(
      ...useful.map((facet, place) =>
        el(
          "details",
          { className: "facet", open: useful.length < 3 && place === 0 },
          el("summary", {}, facet.field),
          facet.kind === "range" ? range(facet) : values(facet),
        ),
      ),
    );
    return found.facets;
  }

  $("clear-filters").addEventListener("click", () => {
    ticked.clear();
    bounds.clear();
    $("clear-filters").hidden = true;
    load().then(onchange, complain);
  });

  const load = () => facets().then(draw);
  return { where, load };
}

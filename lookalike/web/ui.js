// Small things every view needs: elements, announcements, dialogs, cards, a grid one walks through with arrow keys.

export const $ = (id) => document.getElementById(id);

/** An element: properties, listeners as on…, attributes as anything with a dash or `role`; children as text or nodes. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

const PATHS = {
  like: "M7 10.5v9M7 10.5l4-7c1.7 0 2.6 1.3 2.3 2.9L12.6 10H18a2 2 0 0 1 2 2.4l-1.2 5.6a2 2 0 0 1-2 1.5H7M7 10.5H4.5a.5.5 0 0 0-.5.5v8a.5.5 0 0 0 .5.5H7",
  dislike: "M17 13.5v-9M17 13.5l-4 7c-1.7 0-2.6-1.3-2.3-2.9l.7-3.6H6a2 2 0 0 1-2-2.4L5.2 6a2 2 0 0 1 2-1.5H17M17 13.5h2.5a.5.5 0 0 0 .5-.5V5a.5.5 0 0 0-.5-.5H17",
  why: "M2.5 12s3.5-6.5 9.5-6.5 9.5 6.5 9.5 6.5-3.5 6.5-9.5 6.5S2.5 12 2.5 12zM12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6z",
  alike: "M5 13l4.5 4.5L19 7",
  unlike: "M6 6l12 12M18 6L6 18",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** Tell a screen reader; the same words twice are told twice. */
export function announce(text) {
  const status = $("status");
  status.textContent = "";
  setTimeout(() => (status.textContent = text), 60);
}

let toastTimer;

export function complain(error) {
  if (error?.name === "AbortError") return;
  if (!("code" in error)) console.error(error); // not a refusal of the server, but a defect here
  const toast = $("toast");
  toast.textContent = error.hint ? `${error.message}. ${error.hint}` : error.message;
  toast.classList.add("on");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => {
    toast.classList.remove("on");
    toast.textContent = "";
  }, 9000);
}

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => {
    if (event.target.closest("[data-close]") || (event.target === dialog && dialog.id !== "door")) dialog.close();
  });
}

export const nameOf = (item) => {
  const told = ["productDisplayName", "title", "name", "caption"].map((field) => item.payload?.[field]);
  return String(told.find((value) => typeof value === "string" && value) ?? (item.payload?.path ?? item.key).split("/").pop());
};

export const thumbnail = (item, size = 256) => (item.thumbnail ? `${item.thumbnail}&size=${size}` : null);

export function picture(item, size = 256) {
  const address = thumbnail(item, size);
  const gone = () => el("span", { className: "gone" }, "no picture");
  if (!address) return gone();
  return el("img", {
    src: address,
    alt: "",
    loading: "lazy",
    decoding: "async",
    draggable: false,
    onerror: (event) => event.target.replaceWith(gone()),
  });
}

/**
 * One tab stop for a grid: arrow keys walk among its pictures, Tab goes on to the buttons of the current one.
 * `keys` maps other keys to functions of the card.
 */
export function walkable(grid, keys = {}) {
  const cards = () => [...grid.querySelectorAll(".card")];
  const choose = (card) => {
    for (const other of cards()) {
      const mine = other === card;
      for (const button of other.querySelectorAll("button")) button.tabIndex = mine ? 0 : -1;
    }
  };
  grid.addEventListener("focusin", (event) => {
    const card = event.target.closest(".card");
    if (card) choose(card);
  });
  grid.addEventListener("keydown", (event) => {
    const card = event.target.closest(".card");
    if (!card || event.ctrlKey || event.metaKey || event.altKey) return;
    const all = cards();
    const place = all.indexOf(card);
    const columns = Math.max(1, all.filter((one) => one.offsetTop === all[0].offsetTop).length);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    if (event.key in steps || event.key === "Home" || event.key === "End") {
      const goal = event.key === "Home" ? 0 : event.key === "End" ? all.length - 1 : place + steps[event.key];
      event.preventDefault();
      all[goal]?.querySelector(".pic").focus();
    } else if (event.key in keys) {
      event.preventDefault();
      keys[event.key](card);
    }
  });
  return { reset: () => cards().length && choose(cards()[0]) };
}

/** The same function, once its calls have paused for `wait` ms. */
export function settled(act, wait = 250) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...given), wait);
  };
}

export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

// The index in a plane: pan, zoom, and search by what lies there.

import * as api from "./api.js";
import { ask } from "./search.js";
import { $, announce, complain, el, nameOf, picture, plural } from "./ui.js";

// Told apart by people who see colours differently, too (Okabe and Ito 2008), on light and dark.
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b8a800", "#7f6bd6", "#8a8a8a"];
const canvas = $("map");
const pen = canvas.getContext("2d");
let points = [];
let colours = new Map();
const look = { x: 0, y: 0, scale: 1 }; // the middle, and pixels per unit
const images = new Map();
let pending = 0;
let hovered = null;

const width = () => canvas.clientWidth;
const height = () => canvas.clientHeight;
const toScreen = (point) => [(point.x - look.x) * look.scale + width() / 2, (look.y - point.y) * look.scale + height() / 2];

function soon() {
  if (!pending) pending = requestAnimationFrame(draw);
}

function whole() {
  const xs = points.map((point) => point.x);
  const ys = points.map((point) => point.y);
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  look.x = (left + right) / 2;
  look.y = (low + high) / 2;
  look.scale = 0.92 * Math.min(width() / (right - left || 1), height() / (high - low || 1));
  soon();
}

function draw() {
  pending = 0;
  const ratio = devicePixelRatio || 1;
  canvas.width = width() * ratio;
  canvas.height = height() * ratio;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width(), height());
  const seen = points.filter((point) => {
    const [x, y] = toScreen(point);
    return x > -40 && y > -40 && x < width() + 40 && y < height() + 40;
  });
  // Few enough to tell apart: show the pictures themselves.
  const shown = seen.length <= 220;
  const size = shown ? Math.min(72, Math.max(34, Math.sqrt((width() * height()) / (seen.length + 1)) * 0.55)) : 0;
  for (const point of seen) {
    const [x, y] = toScreen(point);
    const colour = colours.get(point.value) ?? COLOURS.at(-1);
    const image = shown ? imageOf(point) : null;
    if (image?.complete && image.naturalWidth) {
      const scale = size / Math.max(image.naturalWidth, image.naturalHeight);
      const [w, h] = [image.naturalWidth * scale, image.naturalHeight * scale];
      pen.drawImage(image, x - w / 2, y - h / 2, w, h);
      pen.strokeStyle = colour;
      pen.lineWidth = 2;
      pen.strokeRect(x - w / 2, y - h / 2, w, h);
    } else {
      pen.globalAlpha = 0.82;
      pen.fillStyle = colour;
      pen.beginPath();
      pen.arc(x, y, Math.min(7, 2.6 + look.scale / 900), 0, 7);
      pen.fill();
      pen.globalAlpha = 1;
    }
  }
  const ink = getComputedStyle(document.documentElement).getPropertyValue("--mark");
  if (hovered) {
    const [x, y] = toScreen(hovered);
    pen.strokeStyle = ink;
    pen.lineWidth = 3;
    pen.beginPath();
    pen.arc(x, y, size ? size / 2 + 6 : 9, 0, 7);
    pen.stroke();
  }
  if (document.activeElement === canvas) {
    pen.strokeStyle = ink;
    pen.lineWidth = 1.5;
    const [x, y] = [width() / 2, height() / 2];
    pen.strokeRect(x - 8, y - 8, 16, 16);
  }
}

function imageOf(point) {
  if (!point.thumbnail) return null;
  if (!images.has(point.key)) {
    if (images.size > 600) images.delete(images.keys().next().value);
    images.set(point.key, el("img", { src: `${point.thumbnail}&size=128`, onload: soon }));
  }
  return images.get(point.key);
}

function nearest(x, y, reach) {
  let best = null;
  let least = reach * reach;
  for (const point of points) {
    const [px, py] = toScreen(point);
    const far = (px - x) ** 2 + (py - y) ** 2;
    if (far < least) [best, least] = [point, far];
  }
  return best;
}

function zoom(by, x = width() / 2, y = height() / 2) {
  const scale = Math.min(2e5, Math.max(20, look.scale * by));
  const [dx, dy] = [x - width() / 2, y - height() / 2];
  look.x += dx / look.scale - dx / scale;
  look.y -= dy / look.scale - dy / scale;
  look.scale = scale;
  soon();
}

let tipped = null;

async function tip(point) {
  const box = $("map-tip");
  hovered = point;
  soon();
  if (!point) {
    box.hidden = true;
    tipped = null;
    return;
  }
  if (tipped !== point) {
    tipped = point;
    box.replaceChildren(picture(point, 256), el("div", {}, point.value ?? "", " ", el("span", { className: "soft" }, nameOf(point))));
  }
  const [x, y] = toScreen(point);
  box.hidden = false;
  box.style.left = `${Math.min(Math.max(8, x + 16), width() - 184)}px`;
  box.style.top = `${Math.min(Math.max(8, y + 16), height() - 220)}px`;
}

async function go(point) {
  try {
    const { items } = await api.get([point.key]);
    if (items[0]) ask({ kind: "key", item: items[0] });
  } catch (error) {
    complain(error);
  }
}

const fingers = new Map();
let moved = 0;

function wire() {
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
    moved = 0;
  };
  canvas.onpointermove = (event) => {
    const [x, y] = [event.offsetX, event.offsetY];
    const before = fingers.get(event.pointerId);
    if (!before) {
      if (event.pointerType === "mouse") tip(nearest(x, y, 18));
      return;
    }
    moved += Math.abs(x - before[0]) + Math.abs(y - before[1]);
    if (fingers.size === 2) {
      const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      const far = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]) || 1;
      zoom(far([x, y]) / far(before), (x + other[0]) / 2, (y + other[1]) / 2);
    } else {
      look.x -= (x - before[0]) / look.scale;
      look.y += (y - before[1]) / look.scale;
      soon();
    }
    fingers.set(event.pointerId, [x, y]);
  };
  canvas.onpointerup = (event) => {
    fingers.delete(event.pointerId);
    const point = moved < 6 ? nearest(event.offsetX, event.offsetY, 26) : null;
    if (point && event.pointerType !== "mouse" && hovered !== point) tip(point); // a first touch shows, a second goes
    else if (point) go(point);
  };
  canvas.onpointercancel = (event) => fingers.delete(event.pointerId);
  canvas.onpointerleave = (event) => event.pointerType === "mouse" && tip(null);
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
  }, { passive: false });
  canvas.onkeydown = (event) => {
    const step = 60 / look.scale;
    const acts = {
      ArrowLeft: () => (look.x -= step),
      ArrowRight: () => (look.x += step),
      ArrowUp: () => (look.y += step),
      ArrowDown: () => (look.y -= step),
      "+": () => zoom(1.4),
      "=": () => zoom(1.4),
      "-": () => zoom(1 / 1.4),
      0: whole,
    };
    if (event.key === "Enter") {
      const point = nearest(width() / 2, height() / 2, 1e9);
      if (point) go(point);
    } else if (event.key in acts) {
      event.preventDefault();
      acts[event.key]();
      const point = nearest(width() / 2, height() / 2, 80);
      tip(point);
      announce(point ? `${point.value ?? ""} ${nameOf(point)}` : "Nothing here.");
    }
  };
  canvas.onfocus = canvas.onblur = soon;
  $("map-in").onclick = () => {
    // A button cannot say where to: rather towards the pictures than into the void between them.
    const near = nearest(width() / 2, height() / 2, 1e9);
    const [x, y] = near ? toScreen(near) : [0, 0];
    if (near && Math.hypot(x - width() / 2, y - height() / 2) > 60) [look.x, look.y] = [near.x, near.y];
    zoom(1.6);
  };
  $("map-out").onclick = () => zoom(1 / 1.6);
  $("map-all").onclick = whole;
  $("map-field").onchange = load;
  new ResizeObserver(soon).observe(canvas);
}

async function load() {
  try {
    const found = await api.map($("map-field").value);
    points = found.points;
    const counts = new Map();
    for (const { value } of points) if (value !== null) counts.set(value, (counts.get(value) ?? 0) + 1);
    const common = [...counts].sort((a, b) => b[1] - a[1]).slice(0, COLOURS.length - 1);
    colours = new Map(common.map(([value], place) => [value, COLOURS[place]]));
    const entry = (value, colour, count) => {
      const dot = el("canvas", { width: 1, height: 1, "aria-hidden": "true" });
      const ink = dot.getContext("2d");
      ink.fillStyle = colour;
      ink.fillRect(0, 0, 1, 1);
      return el("li", {}, dot, `${value} ${count.toLocaleString("en")}`);
    };
    const rest = points.length - common.reduce((sum, [, count]) => sum + count, 0);
    $("map-legend").replaceChildren(
      ...common.map(([value, count]) => entry(value, colours.get(value), count)),
      ...(rest && common.length ? [entry("other", COLOURS.at(-1), rest)] : []),
    );
    canvas.setAttribute("aria-label", `Map of ${plural(points.length, "picture")}`);
    announce(`Map of ${plural(points.length, "picture")}${found.sampled ? ` of ${found.count.toLocaleString("en")}` : ""}.`);
    whole();
  } catch (error) {
    complain(error);
  }
}

export async function open() {
  wire();
  try {
    const { facets } = await api.facets();
    const fields = facets.filter((facet) => facet.kind === "values" && facet.values.length > 1);
    const few = (facet) => Math.abs(facet.values.length - 8);
    const favourite = fields.find((facet) => /categor|class|kind|type/i.test(facet.field)) ?? [...fields].sort((a, b) => few(a) - few(b))[0];
    $("map-field").replaceChildren(
      el("option", { value: "" }, "none"),
      ...fields.map((facet) => el("option", { value: facet.field, selected: facet === favourite }, facet.field)),
    );
  } catch (error) {
    complain(error);
  }
  return load();
}

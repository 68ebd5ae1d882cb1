// A part of a picture, marked by mouse, finger or keyboard. Told as shares: [left, top, right, bottom].

import { announce, el } from "./ui.js";

const LEAST = 0.04; // of a side: less is a slip of the hand

export function stage(image, { onchange }) {
  const frame = el(
    "div",
    {
      className: "stage",
      tabIndex: 0,
      role: "group",
      "aria-roledescription": "picture with a selection",
      "aria-label": "The picture you look for. Enter marks a part of it; arrows move the mark, Shift and arrows resize it, Escape drops it.",
    },
    image,
  );
  const box = el("div", { className: "box", hidden: true }, el("i"));
  frame.append(box);
  let region = null;
  let tell;

  const clamp = (value, least = 0, most = 1) => Math.min(most, Math.max(least, value));
  const draw = () => {
    box.hidden = !region;
    if (!region) return;
    const [left, top, right, bottom] = region;
    Object.assign(box.style, {
      left: `${left * 100}%`,
      top: `${top * 100}%`,
      width: `${(right - left) * 100}%`,
      height: `${(bottom - top) * 100}%`,
    });
  };
  const set = (next, told = true) => {
    region = next && next.map((value) => Number(value.toFixed(4)));
    draw();
    clearTimeout(tell);
    if (told) tell = setTimeout(() => onchange(region), 350);
  };

  let drag = null;
  const at = (event) => {
    const where = frame.getBoundingClientRect();
    return [clamp((event.clientX - where.left) / where.width), clamp((event.clientY - where.top) / where.height)];
  };
  frame.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    frame.focus({ preventScroll: true });
    frame.setPointerCapture(event.pointerId);
    const kind = event.target.tagName === "I" ? "size" : event.target === box ? "move" : "new";
    drag = { kind, from: at(event), region: region && [...region] };
  });
  frame.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const [x, y] = at(event);
    const [x0, y0] = drag.from;
    if (drag.kind === "new") {
      set([Math.min(x, x0), Math.min(y, y0), Math.max(x, x0), Math.max(y, y0)], false);
    } else if (drag.kind === "move") {
      const [left, top, right, bottom] = drag.region;
      const dx = clamp(x - x0, -left, 1 - right);
      const dy = clamp(y - y0, -top, 1 - bottom);
      set([left + dx, top + dy, right + dx, bottom + dy], false);
    } else {
      const [left, top] = drag.region;
      set([left, top, Math.max(left + LEAST, x), Math.max(top + LEAST, y)], false);
    }
  });
  const drop = () => {
    if (!drag) return;
    const before = drag.region;
    drag = null;
    if (region && (region[2] - region[0] < LEAST || region[3] - region[1] < LEAST)) set(before, false);
    if (JSON.stringify(region) !== JSON.stringify(before)) set(region);
  };
  frame.addEventListener("pointerup", drop);
  frame.addEventListener("pointercancel", drop);

  frame.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      set(region ?? [0.25, 0.25, 0.75, 0.75]);
      announce("The middle of the picture is marked.");
    } else if (event.key === "Escape" && region) {
      event.preventDefault();
      set(null);
      announce("The whole picture is searched.");
    } else if (event.key.startsWith("Arrow") && region) {
      event.preventDefault();
      const step = 0.03;
      const dx = { ArrowLeft: -step, ArrowRight: step }[event.key] ?? 0;
      const dy = { ArrowUp: -step, ArrowDown: step }[event.key] ?? 0;
      const [left, top, right, bottom] = region;
      if (event.shiftKey) {
        set([left, top, clamp(right + dx, left + LEAST), clamp(bottom + dy, top + LEAST)]);
      } else {
        const x = clamp(dx, -left, 1 - right);
        const y = clamp(dy, -top, 1 - bottom);
        set([left + x, top + y, right + x, bottom + y]);
      }
    }
  });
  return { frame, clear: () => set(null), show: (next) => set(next, false) };
}

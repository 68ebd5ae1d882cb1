// Start: the token where one is wanted, the views, the keys that work everywhere.

import * as api from "./api.js";
import * as duplicates from "./duplicates.js";
import * as map from "./map.js";
import * as naming from "./naming.js";
import * as search from "./search.js";
import { $, announce, complain } from "./ui.js";

const VIEWS = { search: "Search", duplicates: "Near-duplicates", name: "Name by example", map: "Map" };
const opened = new Set();

function show(view, focus = true) {
  for (const name of Object.keys(VIEWS)) {
    $(`view-${name}`).hidden = name !== view;
    const link = document.querySelector(`nav [data-view=${name}]`);
    if (name === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = view === "search" ? "Lookalike" : `${VIEWS[view]} · Lookalike`;
  if (!opened.has(view)) {
    opened.add(view);
    ({ duplicates, name: naming, map })[view]?.open();
  }
  if (focus) {
    announce(VIEWS[view]);
    $("main").focus({ preventScroll: true });
    scrollTo(0, 0);
  }
}

const wanted = () => {
  const name = location.hash.replace(/^#\/?/, "").split("?")[0];
  return name in VIEWS ? name : "search";
};

let asking = null;

/** One dialog for however many requests were refused. */
function askToken() {
  asking ??= new Promise((done) => {
    const dialog = $("door");
    $("door-form").onsubmit = async (event) => {
      event.preventDefault();
      try {
        await api.session($("door-token").value.trim());
        $("door-token").value = "";
        dialog.close();
        asking = null;
        done();
      } catch (error) {
        complain(error);
        $("door-token").select();
      }
    };
    dialog.oncancel = (event) => event.preventDefault();
    dialog.showModal();
  });
  return asking;
}

function theme(next) {
  if (next) document.documentElement.dataset.theme = next;
}

async function start() {
  theme(localStorage.getItem("lookalike-theme"));
  $("theme").onclick = () => {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    theme(dark ? "light" : "dark");
    localStorage.setItem("lookalike-theme", dark ? "light" : "dark");
    announce(dark ? "Light" : "Dark");
  };
  $("help-button").onclick = () => $("help").showModal();

  // The address that the server prints carries the token behind the #, which no server and no log ever sees.
  const carried = location.hash.match(/^#token=(.+)$/);
  if (carried) {
    history.replaceState(null, "", "#/search");
    await api.session(decodeURIComponent(carried[1])).catch(complain);
  }
  api.onLocked(askToken);
  while (!(await api.ready())) {
    if (!$("which").textContent) announce(($("which").textContent = "The server is starting."));
    await new Promise((done) => setTimeout(done, 500));
  }
  $("which").textContent = "";

  show(wanted(), false);
  addEventListener("hashchange", () => show(wanted()));
  addEventListener("popstate", (event) => {
    if (event.state?.question) {
      show("search", false);
      search.restore(event.state);
    }
  });

  document.addEventListener("asked", () => show("search", false));

  // Drop and paste work wherever one is.
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dragging"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    const file = [...event.dataTransfer.files][0];
    if (file) {
      search.askFile(file);
    }
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (file) {
      event.preventDefault();
      search.askFile(file);
    }
  });
  addEventListener("keydown", (event) => {
    const typing = event.target.matches?.("input, select, textarea");
    if (event.key === "/" && !typing && !document.querySelector("dialog[open]")) {
      event.preventDefault();
      show("search", false);
      ($("words-row").hidden ? $("choose") : $("words")).focus();
    } else if (event.key === "?" && !typing) $("help").showModal();
  });

  try {
    const info = await api.info();
    $("which").textContent = `${info.name} · ${info.items.toLocaleString("en")} pictures`;
    await search.open(info);
    document.body.dataset.ready = "yes";
  } catch (error) {
    complain(error);
  }
}

start();

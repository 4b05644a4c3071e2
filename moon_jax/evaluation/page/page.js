"use strict";
// Everything is readable without this script; it adds values on hover, sorting, choosing and the switch of the theme.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const main = document.querySelector("main");

// Tooltip: lines of "name<tab>value"; on hover, on focus and on a tap.
const tip = document.getElementById("tip");
function line(left, right, style) {
  const row = document.createElement("div"), name = document.createElement("span");
  if (style) {
    const swatch = document.createElement("i");
    swatch.className = "swatch";
    swatch.style.cssText = style;
    name.append(swatch);
  }
  name.append(left);
  row.append(name);
  if (right !== undefined) {
    const value = document.createElement("span");
    value.textContent = right;
    row.append(value);
  }
  return row;
}
let follow = null; // where a tip of the keyboard stands: focus scrolls the page, smoothly, after it was shown
function place([x, y]) {
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(6, Math.min(x + 14, innerWidth - box.width - 6))}px`;
  tip.style.top = `${y + box.height + 20 > innerHeight ? Math.max(6, y - box.height - 12) : y + 16}px`;
}
function show(rows, at, byKeyboard) {
  tip.replaceChildren(...rows);
  tip.hidden = false;
  follow = byKeyboard ? at : null;
  place(at());
}
const hide = () => { tip.hidden = true; follow = null; };
const rowsOf = (element) => element.dataset.tip.split("\n").map((text) => line(...text.split("\t")));
document.addEventListener("pointermove", (event) => {
  const element = event.target.closest?.("[data-tip]");
  if (element) show(rowsOf(element), () => [event.clientX, event.clientY], false);
  else if (!event.target.closest?.(".lines")) hide();
});
document.addEventListener("focusin", (event) => {
  if (!event.target.matches("[data-tip]:focus-visible")) return;
  const beside = () => {
    const box = event.target.getBoundingClientRect();
    return [box.left + box.width / 3, box.bottom - 8];
  };
  show(rowsOf(event.target), beside, true);
});
document.addEventListener("focusout", hide);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
addEventListener("scroll", () => { if (follow) place(follow()); else hide(); }, { passive: true });

// Line charts: a cross hair with the values of all lines at one place.
for (const svg of all("svg.lines")) {
  const data = JSON.parse(svg.dataset.hover), cross = svg.querySelector(".cross"), width = svg.viewBox.baseVal.width;
  let index = 0;
  const put = (next, y) => {
    index = Math.max(0, Math.min(next, data.x.length - 1));
    cross.setAttribute("x1", data.x[index]);
    cross.setAttribute("x2", data.x[index]);
    cross.setAttribute("visibility", "visible");
    const rows = data.rows.filter((row) => row.values[index] !== "");
    const lines = rows.map((row) => line(row.name, row.values[index], row.style));
    const beside = () => {
      const box = svg.getBoundingClientRect();
      return [box.left + (data.x[index] / width) * box.width, y ?? box.top + box.height / 3];
    };
    show([line(data.at[index]), ...lines], beside, y === undefined);
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * width;
    const distance = data.x.map((at) => Math.abs(at - x));
    put(distance.indexOf(Math.min(...distance)), event.clientY);
  });
  const leave = () => { cross.setAttribute("visibility", "hidden"); hide(); };
  svg.addEventListener("pointerleave", () => { if (!follow) leave(); });
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const next = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: data.x.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    put(next);
  });
}

// Legends: a pressed key brings its marks out, in its figure or on the whole page.
for (const button of all(".key")) {
  button.addEventListener("click", () => {
    const root = button.closest(".map-figure") ?? main, on = button.getAttribute("aria-pressed") !== "true";
    const keys = root === main ? all(".key").filter((key) => !key.closest(".map-figure")) : all(".key", root);
    for (const key of keys) key.setAttribute("aria-pressed", String(on && key.dataset.key === button.dataset.key));
    for (const mark of all(".out", root)) if (root !== main || !mark.closest(".map-figure")) mark.classList.remove("out");
    if (on) {
      root.dataset.focus = button.dataset.key;
      for (const mark of all(`.${button.dataset.key}:not(.swatch)`, root)) mark.classList.add("out");
    } else delete root.dataset.focus;
  });
}

// Tables: a click on a head sorts, numbers from large to small first; what has no value goes last.
for (const table of all("table")) {
  const heads = all("thead .heads th", table), body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const text = head.classList.contains("text"), was = head.getAttribute("aria-sort");
    const up = was === "none" ? text : was !== "ascending";
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.v;
    const compare = text ? (a, b) => a.localeCompare(b, undefined, { numeric: true }) : (a, b) => a - b;
    const rows = [...body.rows].map((row) => [key(row), row]);
    rows.sort(([a], [b]) => {
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      return up ? compare(a, b) : compare(b, a);
    });
    body.replaceChildren(...rows.map(([, row]) => row));
  }));
}

// Queries: one set, one modality, one outcome or all.
for (const bar of all("[data-filters]")) {
  const rows = all(".asked-row", document.getElementById(bar.dataset.filters)), buttons = all("button", bar), chosen = {};
  const apply = () => {
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(chosen[button.dataset.field] === button.dataset.value));
    }
    for (const row of rows) {
      row.hidden = Object.entries(chosen).some(([field, value]) => value !== "all" && row.dataset[field] !== value);
    }
  };
  for (const button of buttons) {
    chosen[button.dataset.field] ??= button.dataset.value;
    button.addEventListener("click", () => { chosen[button.dataset.field] = button.dataset.value; apply(); });
  }
  apply();
}

// Theme: what the system says until the button is pressed.
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
});

// Navigation: the section that is read.
const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
const seen = new Set();
const watch = new IntersectionObserver((entries) => {
  for (const entry of entries) seen[entry.isIntersecting ? "add" : "delete"](entry.target.id);
  const first = [...links.keys()].find((id) => seen.has(id));
  if (!first) return;
  for (const [id, link] of links) {
    if (id === first) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  const bar = links.get(first).parentElement;
  bar.scrollTo({ left: links.get(first).offsetLeft - bar.offsetLeft - 24 });
}, { rootMargin: "-80px 0px -55% 0px" });
for (const section of all("main > section")) watch.observe(section);

"use strict";
// The list of trajectories. Only what is on the screen is in the document, so its length does not matter.

fate.list = (() => {
  const { el, text, pip, kind, words, GLYPHS } = fate.dom;
  const HEIGHT = 58, SPARE = 8; // pixels per row, as in viewer.css; rows kept above and below the screen
  let box = null, canvas = null, rows = [], current = -1, pick = () => {};

  /** Build into `place`; `picked(row)` is called when one is clicked. */
  function build(place, picked) {
    box = place;
    pick = picked;
    canvas = el("div", { class: "canvas", role: "presentation" });
    box.append(canvas);
    box.addEventListener("scroll", () => requestAnimationFrame(paint), { passive: true });
    new ResizeObserver(paint).observe(box);
  }

  /** What the letters and glyphs in the boxes stand for. */
  function legend() {
    const { objectives, letters } = fate.data.index, entry = (sign, said) => el("span", {}, el("b", {}, sign), ` ${said}`);
    const glyphs = Object.entries(GLYPHS).map(([result, glyph]) => entry(glyph, result === "n.a." ? "does not apply" : result));
    return [...objectives.map((name, n) => entry(letters[n], words(name))), ...glyphs];
  }

  /** Show these rows; `row` stays selected, also if it is not among them. */
  function show(found, row) {
    rows = found;
    canvas.style.height = `${rows.length * HEIGHT}px`;
    select(row);
    if (current < 0) box.scrollTop = 0;
    paint();
  }

  /** Select a row and bring it into sight. */
  function select(row) {
    current = place(row);
    if (current >= 0) {
      const top = current * HEIGHT, bottom = top + HEIGHT;
      if (top < box.scrollTop) box.scrollTop = top;
      else if (bottom > box.scrollTop + box.clientHeight) box.scrollTop = bottom - box.clientHeight;
    }
    paint();
  }

  /** Where a row stands; rows are in ascending order. */
  function place(row) {
    let low = 0, high = rows.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (rows[middle] < row) low = middle + 1;
      else high = middle;
    }
    return rows[low] === row ? low : -1;
  }

  /** The row that many steps from the selected one; the first if none is selected, undefined if the list is empty. */
  function neighbour(steps) {
    const next = current < 0 ? 0 : Math.min(rows.length - 1, Math.max(0, current + steps));
    return rows[next];
  }

  function paint() {
    const first = Math.max(0, Math.floor(box.scrollTop / HEIGHT) - SPARE);
    const last = Math.min(rows.length, Math.ceil((box.scrollTop + box.clientHeight) / HEIGHT) + SPARE);
    const items = [];
    for (let at = first; at < last; at++) items.push(item(at));
    canvas.replaceChildren(...items);
    const selected = current >= first && current < last ? `row-${rows[current]}` : null;
    if (selected) box.setAttribute("aria-activedescendant", selected);
    else box.removeAttribute("aria-activedescendant");
  }

  function item(at) {
    const { index, result } = fate.data, row = fate.data.row(rows[at]);
    const results = index.objectives.map((name, number) => [name, result(row.number, number)]);
    const said = results.filter(([, r]) => r !== "n.a.").map(([name, r]) => `${words(name)} ${r}`).join(", ");
    const element = el("div", {
      id: `row-${row.number}`, class: "item", role: "option", click: () => pick(row.number),
      "aria-selected": String(at === current), "aria-setsize": rows.length, "aria-posinset": at + 1,
      "aria-label": `${row.kind}: ${row.request || row.id}. ${said}. ${index.runs.length > 1 ? `Run ${row.run}. ` : ""}Round ${row.round}, ${row.stage}. ${row.outcome}`,
    },
      el("div", { class: "line" }, kind(row.kind), text(row.request || row.id, { className: "request" })),
      el("div", { class: "line quiet" },
        el("span", { class: "pips", "aria-hidden": "true" }, results.map(([name, r], n) => pip(name, index.letters[n], r))),
        index.runs.length > 1 && text(row.run, { className: "of" }),
        el("span", { class: "where" }, `r${row.round} ${row.stage}${row.stage === "repair" ? ` ${row.attempt + 1}` : ""}`),
        row.outcome && el("span", { class: `outcome ${row.outcome.replace(" ", "-")}` }, row.outcome),
        text(row.id, { className: "id" })),
    );
    element.style.top = `${at * HEIGHT}px`;
    return element;
  }

  return { build, legend, show, select, neighbour };
})();

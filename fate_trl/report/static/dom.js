"use strict";
// Making elements. Every text of a record goes through `text`: it is shown as it is, and cannot do anything.

fate.dom = (() => {
  const LONG = 20_000; // characters shown at first
  // Characters that nobody sees but that act: controls, formats (directions, no width, tags), lone surrogates, …
  // A zero-width joiner inside an emoji is as it should be.
  const HIDDEN = /(?:(?!(?<=[\p{Extended_Pictographic}\u{fe0f}\p{Emoji_Modifier}])\u200d)[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\ufffe\uffff](?<![\n\t]))+/gu;

  /** An element with attributes (functions are listeners) and children. */
  function el(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (typeof value === "function") element.addEventListener(key, value);
      else if (value === true) element.setAttribute(key, "");
      else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
    }
    element.append(...children.flat().filter((child) => child || child === 0)); // what is false or empty is left out
    return element;
  }

  /** A text from a record, isolated in its direction, hidden characters made visible, `ranges` [from, to) marked. */
  function text(value, { tag = "span", className = "", ranges = [] } = {}) {
    const whole = String(value ?? "");
    const element = el(tag, { class: `text ${className}`.trim(), dir: "auto" });
    fill(element, whole.slice(0, LONG), ranges);
    if (whole.length > LONG) {
      const more = el("button", { type: "button", class: "more", click: () => {
        element.replaceChildren();
        fill(element, whole, ranges);
      } }, `Show all ${whole.length.toLocaleString("en")} characters`);
      element.append(more);
    }
    return element;
  }

  function fill(element, value, ranges) {
    let at = 0;
    for (const [from, to] of ranges.filter(([start]) => start < value.length)) {
      plain(element, value.slice(at, from));
      const mark = el("mark", { class: "injected" });
      plain(mark, value.slice(from, to));
      element.append(mark);
      at = to;
    }
    plain(element, value.slice(at));
  }

  function plain(element, value) {
    let at = 0;
    for (const found of value.matchAll(HIDDEN)) {
      element.append(value.slice(at, found.index));
      element.append(el("span", { class: "hidden-text", "data-name": nameOf(found[0]) }, found[0]));
      at = found.index + found[0].length;
    }
    element.append(value.slice(at));
  }

  /** What stands for hidden characters: the text that tag characters spell, or code points, or their number. */
  function nameOf(characters) {
    const codes = [...characters].map((character) => character.codePointAt(0));
    if (codes.every((code) => code >= 0xe0020 && code <= 0xe007e)) {
      return `hidden: ${String.fromCharCode(...codes.map((code) => code - 0xe0000))}`;
    }
    if (codes.length > 3) return `${codes.length} hidden characters`;
    return codes.map((code) => `U+${code.toString(16).toUpperCase().padStart(4, "0")}`).join(" ");
  }

  const GLYPHS = { passed: "✓", failed: "✕", "n.a.": "–", error: "!" };

  /** A score as a small box: the objective's letters and the result's glyph; colour is never the only sign. */
  function pip(objective, letters, result) {
    const said = `${words(objective)}: ${result}`;
    return el("span", { class: `pip ${result === "n.a." ? "na" : result}`, role: "img", title: said, "aria-label": said },
      letters, el("b", {}, GLYPHS[result]));
  }

  const words = (name) => name.replaceAll("_", " ");

  const kind = (name) => el("span", { class: `kind ${["benign", "attacked", "harmful"].includes(name) ? name : ""}` }, name);

  return { el, text, pip, kind, words, GLYPHS };
})();

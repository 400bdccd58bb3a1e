"use strict";
// What is looked at, in one place: it follows from the address (#…), and every change goes through there.
//
//   #round=1&kind=attacked&result=failed     filters, see filters.js
//   &at=1/collect/0/workbench&id=0a01ed…     the trajectory: round, stage, attempt, suite; its task
//   &of=quickstart-2                         and its run, where there are several
//   &view=pair&candidate=3                   side by side with that candidate
//   &view=learned&candidate=2                the second pair that was learned from with it
//
// An address without any of these opens on the most telling failure, see `_opens` in index.py.

fate.app = (() => {
  const { el } = fate.dom;
  const at = (id) => document.getElementById(id);
  let state = { filters: {}, row: -1, pair: "", candidate: null }; // pair: "repairs", "learned", or ""
  let rows = [], drawn = 0, axes = null, timer = 0;

  const VIEWS = { repairs: "pair", learned: "learned" };

  // ---------------------------------------------------------------- the address

  function address() {
    const query = new URLSearchParams(state.filters);
    if (state.row >= 0) {
      const { run, round, stage, attempt, suite, id } = fate.data.row(state.row);
      query.set("at", [round, stage, attempt, suite].join("/"));
      query.set("id", id);
      if (fate.data.index.runs.length > 1) query.set("of", run);
      if (state.pair) query.set("view", VIEWS[state.pair]);
      if (state.pair && state.candidate !== null) query.set("candidate", state.candidate + 1);
    }
    return `#${query}`;
  }

  function fromAddress() {
    const query = new URLSearchParams(location.hash.slice(1)), filters = {};
    for (const name of fate.filters.NAMES) if (query.get(name)) filters[name] = query.get(name);
    const candidate = Number(query.get("candidate"));
    const row = rowAt(query.get("at"), query.get("id"), query.get("of"));
    const pair = Object.keys(VIEWS).find((name) => VIEWS[name] === query.get("view")) ?? "";
    return { filters, row, pair, candidate: candidate ? candidate - 1 : null };
  }

  function rowAt(place, id, of) {
    if (!place || id === null) return -1;
    const { index } = fate.data, [round, stage, attempt, ...suite] = place.split("/");
    const wanted = [Number(round), index.stages.indexOf(stage), Number(attempt), suite.join("/")];
    const formed = (text) => text.toWellFormed?.() ?? text; // an address cannot hold half a character
    return index.rows.task.findIndex((task, row) => index.rows.round[row] === wanted[0] && index.rows.stage[row] === wanted[1] &&
      index.rows.attempt[row] === wanted[2] && (!of || fate.data.row(row).run === of) && index.suites[index.tasks.suite[task]] === wanted[3] && formed(index.tasks.id[task]) === id);
  }

  /** Change the state, show it, and write the address; a new entry in the history if one would want to come back. */
  function go(change, remember = false) {
    state = { ...state, ...change };
    render(change);
    clearTimeout(timer);
    if (remember) history.pushState(null, "", address());
    else timer = setTimeout(() => history.replaceState(null, "", address()), 200); // `j` held down is one step
  }

  // ---------------------------------------------------------------- showing

  function render(change) {
    if ("filters" in change) {
      const start = performance.now();
      rows = fate.filters.apply(state.filters);
      fate.list.show(rows, state.row);
      performance.measure("filter", { start });
      const total = fate.data.index.rows.task.length;
      at("count").textContent = rows.length === total ? `${total.toLocaleString("en")} trajectories` : `${rows.length.toLocaleString("en")} of ${total.toLocaleString("en")} trajectories`;
    }
    if ("row" in change) fate.list.select(state.row);
    if ("row" in change || "pair" in change || "candidate" in change) detail();
  }

  async function detail() {
    const turn = ++drawn, place = at("detail");
    document.body.classList.toggle("reading", state.row >= 0);
    document.title = state.row < 0 ? `${fate.data.index.run} · fate-trl` : `${fate.data.row(state.row).request || "trajectory"} · fate-trl`;
    if (state.row < 0) {
      place.replaceChildren(el("p", { class: "empty" }, "Choose a trajectory: click one, or move with ", el("kbd", {}, "j"), " and ", el("kbd", {}, "k"), "."));
      return;
    }
    try {
      const parts = await (pages(state.row)[state.pair] ?? singlePage)();
      if (turn !== drawn) return; // another one was opened meanwhile
      place.replaceChildren(...parts.filter(Boolean));
      place.scrollTop = 0;
    } catch (error) {
      if (turn === drawn) place.replaceChildren(el("p", { class: "empty", role: "alert" }, error.message));
    }
  }

  /** The side-by-side pages that a trajectory has. */
  const pages = (row) => ({
    ...(fate.data.selection(row) && { repairs: pairPage }),
    ...(fate.data.pairs(row).length > 0 && { learned: learnedPage }),
  });

  const moves = {
    back: () => escape(),
    pair: () => go({ pair: "repairs", candidate: null }, true),
    learned: () => go({ pair: "learned", candidate: null }, true),
    otherPair: (by) => stepCandidate(by),
    candidate: (number) => go({ candidate: number }),
    plot: (chosen) => { axes = chosen; detail(); },
  };

  async function singlePage() {
    const record = await fate.data.trajectory(state.row);
    return fate.trajectory.page(fate.data.row(state.row), record, moves);
  }

  async function pairPage() {
    const selection = fate.data.selection(state.row);
    const shown = candidate(selection);
    const rows = [selection.failure, selection.candidates[shown]];
    const records = await Promise.all(rows.map(fate.data.trajectory));
    return fate.repairs.page(selection, shown, records, { ...moves, axes });
  }

  async function learnedPage() {
    const pairs = fate.data.pairs(state.row), shown = Math.min(state.candidate ?? 0, pairs.length - 1);
    const records = await Promise.all([pairs[shown].rejected, pairs[shown].chosen].map(fate.data.trajectory));
    return fate.repairs.learnedPage(pairs, shown, records, moves);
  }

  /** The candidate beside the failure: the asked-for one, the opened one, the chosen one, or the first. */
  function candidate(selection) {
    const opened = selection.candidates.indexOf(state.row);
    const wanted = state.candidate ?? (opened >= 0 ? opened : selection.chosen ?? 0);
    return Math.min(Math.max(0, wanted), selection.candidates.length - 1);
  }

  // ---------------------------------------------------------------- moving

  function step(by) {
    const row = fate.list.neighbour(by);
    if (row !== undefined) go({ row, candidate: null, pair: pages(row)[state.pair] ? state.pair : "" });
  }

  function stepCandidate(by) {
    const selection = fate.data.selection(state.row), pairs = fate.data.pairs(state.row);
    const among = (shown, count) => go({ candidate: (shown + by + count) % count });
    if (state.pair === "repairs" && selection) among(candidate(selection), selection.candidates.length);
    if (state.pair === "learned" && pairs.length) among(state.candidate ?? 0, pairs.length);
  }

  function open(row) {
    go({ row, candidate: null, pair: "" }, true);
    if (window.innerWidth <= 760) at("detail").focus();
  }

  function escape() {
    if (document.activeElement?.name === "q") at("list").focus();
    else if (state.pair) go({ pair: "", candidate: null }, true);
    else if (state.row >= 0) { go({ row: -1 }, true); at("list").focus(); }
  }

  const NO_PAGE = { repairs: "This trajectory was not repaired, and is no repair.", learned: "This trajectory was learned from in no pair." };

  function toggle(pair) {
    if (pages(state.row)[pair]) go({ pair: state.pair === pair ? "" : pair, candidate: null }, true);
    else at("count").textContent = NO_PAGE[pair];
  }

  const clear = () => { fate.filters.write({}); go({ filters: {} }); };

  const KEYS = {
    j: () => step(1), k: () => step(-1), ArrowDown: () => step(1), ArrowUp: () => step(-1), PageDown: () => step(10), PageUp: () => step(-10),
    ArrowLeft: () => stepCandidate(-1), ArrowRight: () => stepCandidate(1),
    Enter: () => (state.row >= 0 ? at("detail").focus() : step(0)),
    f: () => toggle("repairs"), p: () => toggle("learned"), o: () => fate.trajectory.toggleFolds(at("detail")), x: clear,
    "/": () => { at("filters").querySelector("details").open = true; at("filters").elements.q.select(); },
    "?": () => at("help").showModal(), Escape: escape,
  };

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || at("help").open) return;
    const { target } = event, typing = target.matches("input, select, textarea");
    const scrolling = at("detail").contains(target) && /^(Page|Arrow)(Up|Down)$/.test(event.key);
    const pressing = target.matches("button, summary, a") && event.key === "Enter";
    if (scrolling || pressing || (typing && event.key !== "Escape" && !(event.key === "Enter" && target.name === "q"))) return;
    if (/^[1-9]$/.test(event.key) && state.pair) {
      const shown = state.pair === "learned" ? fate.data.pairs(state.row) : fate.data.selection(state.row)?.candidates ?? [];
      if (Number(event.key) <= shown.length) go({ candidate: Number(event.key) - 1 });
    } else if (typing && event.key === "Enter") at("list").focus();
    else if (KEYS[event.key]) KEYS[event.key]();
    else return;
    event.preventDefault();
  }

  // ---------------------------------------------------------------- the start

  /** Called by data.js when the index is there. */
  function start() {
    const { index } = fate.data;
    at("run").textContent = index.run;
    const chosen = index.selections.filter((selection) => selection.chosen !== null).length;
    const facts = [`${index.rows.task.length.toLocaleString("en")} trajectories`];
    if (index.selections.length) facts.push(`${chosen.toLocaleString("en")} of ${index.selections.length.toLocaleString("en")} failures repaired`);
    if (index.pairs.length) facts.push(`${index.pairs.length.toLocaleString("en")} pairs learned from`);
    at("total").textContent = facts.join(" · ");
    if (index.missing.length) {
      at("missing").hidden = false;
      at("missing").append(...index.missing.map((line) => fate.dom.text(line, { tag: "span" })));
    }
    fate.filters.build(at("filters"), () => go({ filters: fate.filters.read() }));
    fate.list.build(at("list"), open);
    at("legend").append(...fate.list.legend());
    at("help-button").addEventListener("click", KEYS["?"]);
    document.addEventListener("keydown", key);
    window.addEventListener("popstate", follow);
    follow();
    if (location.hash.length < 2 && window.innerWidth > 760) go({ row: index.opens }); // a phone shows the list first
    performance.mark("painted");
  }

  function follow() {
    state = fromAddress();
    fate.filters.write(state.filters);
    render(state);
  }

  return { start };
})();

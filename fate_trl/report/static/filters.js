"use strict";
// The filters: what can be asked, the form that asks it, and the rows that answer.

fate.filters = (() => {
  const { el, words } = fate.dom;
  const RESULTS = ["failed", "passed", "n.a.", "error"];
  const OUTCOMES = ["repaired", "not repaired", "chosen", "accepted", "rejected"];
  const NAMES = ["q", "run", "round", "stage", "kind", "suite", "objective", "result", "cause", "error", "repair"];
  let form = null;
  let outcomes = null; // row -> what became of it, made when first asked for

  /** Build the form into `place`; `changed` is called after every change. */
  function build(place, changed) {
    form = place;
    const { index } = fate.data, { rows } = index;
    const search = el("input", { type: "search", name: "q", placeholder: "Search task or request  ( / )",
      "aria-label": "Search task or request", autocomplete: "off", spellcheck: "false" });
    const numbers = [...new Set(rows.round)].sort((a, b) => a - b);
    const named = index.errors.filter(Boolean);
    const selects = [
      index.runs.length > 1 && select("run", index.runs.map((name) => [name, name])),
      select("round", numbers.map((round) => [round, `round ${round}`])),
      select("stage", index.stages.map((name) => [name, name])),
      select("kind", index.kinds.map((name) => [name, name])),
      index.suites.length > 1 && select("suite", index.suites.map((name) => [name, name])),
      select("objective", index.objectives.map((name) => [name, words(name)])),
      select("result", RESULTS.map((name) => [name, name])),
      select("cause", index.causes.map((name) => [name, words(name)]), "cause of failure"),
      index.selections.length > 0 && select("repair", OUTCOMES.map((name) => [name, name])),
      named.length > 0 && select("error", [["any", "with an error"], ["none", "without"], ...named.map((name) => [name, name])]),
    ].filter(Boolean);
    const clear = el("button", { type: "button", class: "clear", click: () => { write({}); changed(); } }, "Clear ", el("kbd", {}, "x"));
    form.append(search, el("details", { class: "selects", open: window.innerWidth > 760 },
      el("summary", {}, "Filters"), el("div", { class: "grid" }, ...selects, clear)));
    let timer = 0;
    form.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(changed, 60); });
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  function select(name, options, label = name) {
    return el("label", {}, el("span", {}, label), el("select", { name },
      el("option", { value: "" }, "any"), options.map(([value, shown]) => el("option", { value }, String(shown)))));
  }

  /** What is asked, by name; without what is not. */
  function read() {
    const asked = {};
    for (const name of NAMES) {
      const value = form.elements[name]?.value;
      if (value) asked[name] = value;
    }
    return asked;
  }

  /** Set the form to what is asked. */
  function write(asked) {
    for (const name of NAMES) {
      if (form.elements[name]) form.elements[name].value = asked[name] ?? "";
    }
    for (const field of form.querySelectorAll("select")) field.classList.toggle("set", field.value !== "");
  }

  /** Numbers of the rows that answer, in their order. */
  function apply(asked) {
    for (const field of form.querySelectorAll("select")) field.classList.toggle("set", field.value !== "");
    const tests = testsOf(asked), { rows } = fate.data.index, found = [];
    for (let row = 0; row < rows.task.length; row++) {
      if (tests.every((test) => test(row))) found.push(row);
    }
    return found;
  }

  function testsOf(asked) {
    const { index } = fate.data, { rows, tasks } = index, tests = [];
    const column = (values, names, name) => {
      const wanted = names.indexOf(name);
      tests.push((row) => values[row] === wanted);
    };
    if (asked.run && index.runs.length > 1) column(rows.run, index.runs, asked.run);
    if (asked.round) tests.push((row) => rows.round[row] === Number(asked.round));
    if (asked.stage) column(rows.stage, index.stages, asked.stage);
    const ofTask = taskTests(asked);
    if (ofTask.length) {
      const wanted = tasks.id.map((_, task) => ofTask.every((test) => test(task)));
      tests.push((row) => wanted[rows.task[row]]);
    }
    if (asked.error === "any") tests.push((row) => index.errors[rows.error[row]] !== "");
    else if (asked.error === "none") tests.push((row) => index.errors[rows.error[row]] === "");
    else if (asked.error) column(rows.error, index.errors, asked.error);
    if (asked.cause) {
      const cause = index.causes.indexOf(asked.cause);
      tests.push((row) => rows.causes[row].includes(cause));
    }
    if (asked.objective || asked.result) tests.push(scoreTest(asked.objective, asked.result));
    if (asked.repair) {
      outcomes ??= rows.task.map((_, row) => fate.data.row(row).outcome);
      const wanted = asked.repair === "accepted" ? ["accepted", "chosen"] : [asked.repair];
      tests.push((row) => wanted.includes(outcomes[row]));
    }
    return tests;
  }

  function taskTests(asked) {
    const { index } = fate.data, { tasks } = index, tests = [];
    if (asked.kind) tests.push((task) => index.kinds[tasks.kind[task]] === asked.kind);
    if (asked.suite) tests.push((task) => index.suites[tasks.suite[task]] === asked.suite);
    if (asked.q) {
      const wanted = asked.q.toLowerCase();
      tests.push((task) => tasks.id[task].toLowerCase().includes(wanted) || tasks.request[task].toLowerCase().includes(wanted));
    }
    return tests;
  }

  /** An objective with a result; without an objective, "passed" means all that apply, the others any of them. */
  function scoreTest(objective, result) {
    const { index, result: resultOf } = fate.data;
    const numbers = index.objectives.map((_, number) => number);
    if (objective) {
      const number = index.objectives.indexOf(objective);
      return result ? (row) => resultOf(row, number) === result : (row) => resultOf(row, number) !== "n.a.";
    }
    if (result === "passed") {
      return (row) => numbers.every((n) => ["passed", "n.a."].includes(resultOf(row, n))) && numbers.some((n) => resultOf(row, n) === "passed");
    }
    return (row) => numbers.some((n) => resultOf(row, n) === result);
  }

  return { NAMES, build, read, write, apply };
})();

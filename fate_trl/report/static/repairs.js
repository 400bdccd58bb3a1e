"use strict";
// A failure and its candidates: a table, a small plot of two objectives, and two conversations side by side.

fate.repairs = (() => {
  const { el, text, pip, words } = fate.dom;
  const SIZE = 200, EDGE = 27; // the plot, in its own units

  /** Two objectives to begin with: the failed one, and the one beside it on which the tries differ most. */
  function axes(selection) {
    const { index, result } = fate.data;
    const rows = [selection.failure, ...selection.candidates];
    const spread = index.objectives.map((_, n) => new Set(rows.map((row) => index.rows.scores[n][row])).size);
    const order = index.objectives.map((_, n) => n).filter((n) => result(selection.failure, n) !== "n.a.");
    const rank = (n) => (result(selection.failure, n) === "failed" ? 100 : 0) + spread[n];
    order.sort((a, b) => rank(b) - rank(a) || a - b);
    return [order[0] ?? 0, order[1] ?? order[0] ?? 0];
  }

  /** The page: `records` holds the failure's record, then the shown candidate's; `go` as in trajectory.js. */
  function page(selection, shown, records, go) {
    const failure = fate.data.row(selection.failure), [x, y] = go.axes ?? axes(selection);
    const candidate = fate.data.row(selection.candidates[shown]);
    return [
      el("div", { class: "head" },
        el("button", { type: "button", class: "back", click: go.back }, "‹ Trajectory"),
        fate.trajectory.place(failure),
        el("h2", { tabindex: "-1" }, text(failure.request || failure.id)),
        el("p", { class: "note" }, verdict(selection))),
      el("div", { class: "front" },
        table(selection, shown, go),
        figureOf(selection, shown, x, y, go)),
      el("div", { class: "pair" },
        side("Failure", "failure", failure, records[0]),
        side(title(selection, shown), "candidate", candidate, records[1])),
    ];
  }

  function verdict(selection) {
    const { candidates, accepted, front, chosen, decided_by: by } = selection;
    const counts = `${candidates.length} candidates, ${accepted.length} accepted, ${front.length} on the Pareto front. `;
    if (chosen === null) return `${counts}None was acceptable, so this failure gave no training row.`;
    const how = { only: "the only one accepted", front: "all of the front score alike, the first was taken" }[by] ?? `decided by ${by}`;
    return `${counts}Candidate ${chosen + 1} was chosen: ${how}.`;
  }

  /** The page of a pair that was learned from, the `shown`-th of `pairs`: `records` of its rejected and chosen side. */
  function learnedPage(pairs, shown, records, go) {
    const pair = pairs[shown], rejected = fate.data.row(pair.rejected), chosen = fate.data.row(pair.chosen);
    const counted = (name) => `${pair.tokens[name]} tokens with loss in ${pair.steps[name].length} ${pair.steps[name].length === 1 ? "turn" : "turns"}`;
    const move = (by, label) => pairs.length > 1 && el("button", { type: "button", click: () => go.otherPair(by) }, label);
    const from = (row) => `${row.stage}, round ${row.round}, try ${row.attempt + 1}`;
    return [
      el("div", { class: "head" },
        el("button", { type: "button", class: "back", click: go.back }, "‹ Trajectory"),
        fate.trajectory.place(rejected),
        el("h2", { tabindex: "-1" }, text(rejected.request || rejected.id)),
        el("p", { class: "note" }, `Learned from as a pair${pairs.length > 1 ? ` (${shown + 1} of ${pairs.length})` : ""}: the chosen side scored ${pair.gap.toFixed(2)} more on average. `,
          "Both were learned from under the plain task’s prompt, with loss on the marked turns. ", move(-1, "‹"), " ", move(1, "›"))),
      el("div", { class: "pair" },
        side("Rejected", "failure", rejected, records[0], { steps: pair.steps.rejected, said: `${from(rejected)} · ${counted("rejected")}` }),
        side("Chosen", "candidate", chosen, records[1], { steps: pair.steps.chosen, said: `${from(chosen)} · ${counted("chosen")}` })),
    ];
  }

  const title = (selection, shown) => (selection.chosen === shown ? "Chosen repair" : "Candidate") + ` · ${shown + 1}`;

  function side(name, style, row, record, learned = null) {
    const list = fate.trajectory.conversation(record, learned?.steps);
    return el("section", { class: `side ${style}`, "aria-label": name }, el("h3", {}, name),
      learned && el("p", { class: "quiet" }, learned.said),
      fate.trajectory.scoreCards(record, (step) => fate.trajectory.jumpTo(list, step), (result) => result === "failed" || result === "error"), list);
  }

  // ---------------------------------------------------------------- the table

  function table(selection, shown, go) {
    const { objectives } = fate.data.index;
    const head = el("tr", {}, el("th", { scope: "col" }, "try"),
      objectives.map((name) => el("th", { scope: "col" }, words(name))), el("th", { scope: "col" }, "verdict"));
    const line = (row, name, style, verdict, act) => el("tr", { class: style },
      el("th", { scope: "row" }, act ? el("button", { type: "button", "aria-pressed": String(style.includes("shown")), click: act }, name) : name),
      objectives.map((objective, n) => el("td", {}, cell(row, objective, n))), el("td", {}, verdict));
    return el("div", { class: "tries", tabindex: "0", role: "region", "aria-label": "Scores of the failure and its candidates" },
      el("table", {}, el("thead", {}, head), el("tbody", {},
        line(selection.failure, "failure", "failure", "failed"),
        selection.candidates.map((row, i) => line(row, String(i + 1), i === shown ? "candidate shown" : "candidate", standing(selection, i), () => go.candidate(i))))));
  }

  function cell(row, objective, number) {
    const result = fate.data.result(row, number), value = fate.data.index.rows.scores[number][row];
    return [pip(objective, fate.data.index.letters[number], result), value >= 0 ? ` ${Math.floor(value * 100 + 1e-9) / 100}` : ` ${result}`];
  }

  function standing(selection, i) {
    if (selection.chosen === i) return el("b", {}, "★ chosen");
    if (selection.front.includes(i)) return "on the front";
    return selection.accepted.includes(i) ? "accepted" : "not accepted";
  }

  // ---------------------------------------------------------------- the plot

  function svg(name, attributes, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  function figureOf(selection, shown, x, y, go) {
    const { objectives } = fate.data.index;
    const choose = (label, value, act) => el("label", {}, `${label} `, el("select", { change: (event) => act(Number(event.target.value)) },
      objectives.map((name, n) => el("option", { value: n, selected: n === value }, words(name)))));
    return el("figure", { class: "plot" }, plot(selection, shown, x, y, go),
      el("figcaption", {}, choose("across", x, (n) => go.plot([n, y])), choose("up", y, (n) => go.plot([x, n])),
        el("span", { class: "legend" }, "✕ failure  ★ chosen  ● accepted  ○ not accepted")));
  }

  function plot(selection, shown, x, y, go) {
    const { index } = fate.data, { objectives, pass_at: passAt } = index;
    const to = (value) => EDGE + value * (SIZE - 2 * EDGE), up = (value) => SIZE - to(value);
    const label = `Scores by ${words(objectives[x])} and ${words(objectives[y])}; the table has the same figures`;
    const picture = svg("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, role: "img", "aria-label": label });
    picture.append(svg("rect", { class: "area", x: to(0), y: up(1), width: to(1) - to(0), height: to(1) - to(0) }));
    picture.append(svg("path", { class: "pass", d: `M${to(passAt[x])} ${up(0)}V${up(1)}M${to(0)} ${up(passAt[y])}H${to(1)}` }));
    for (const value of [0, 0.5, 1]) {
      picture.append(svg("text", { x: to(value), y: SIZE - 6, "text-anchor": "middle" }, String(value)));
      picture.append(svg("text", { x: 7, y: up(value) + 3, "text-anchor": "middle" }, String(value)));
    }
    for (const point of points(selection, x, y)) picture.append(mark(point, selection, shown, to(point.x) + point.dx, up(point.y) + point.dy, go));
    return picture;
  }

  /** Tries that have both scores; those that share a place are set around it, so that each can be seen. */
  function points(selection, x, y) {
    const { scores } = fate.data.index.rows, places = new Map(), found = [];
    [selection.failure, ...selection.candidates].forEach((row, i) => {
      const point = { row, number: i - 1, x: scores[x][row], y: scores[y][row], dx: 0, dy: 0 };
      if (point.x < 0 || point.y < 0) return;
      const key = `${point.x} ${point.y}`;
      places.set(key, [...(places.get(key) ?? []), point]);
      found.push(point);
    });
    for (const together of places.values()) {
      together.forEach((point, i) => {
        const turn = i * 2.4, away = together.length > 1 ? 9.5 * Math.sqrt(i + 0.5) : 0; // as seeds stand in a sunflower
        point.dx = away * Math.cos(turn);
        point.dy = away * Math.sin(turn);
      });
    }
    return found;
  }

  function mark(point, selection, shown, x, y, go) {
    const style = ["try"];
    if (point.number < 0) style.push("failure");
    else style.push(selection.accepted.includes(point.number) ? "accepted" : "rejected");
    if (selection.chosen === point.number) style.push("chosen");
    if (shown === point.number) style.push("shown");
    const group = svg("g", { class: style.join(" "), transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})` },
      svg("title", {}, point.number < 0 ? "failure" : `candidate ${point.number + 1}`));
    if (point.number < 0) group.append(svg("path", { d: "M-5-5 5 5M-5 5 5-5" }));
    else {
      group.append(svg("circle", { r: 7.5 }), svg("text", { y: 3.2, "text-anchor": "middle" }, selection.chosen === point.number ? "★" : String(point.number + 1)));
      group.addEventListener("click", () => go.candidate(point.number));
    }
    return group;
  }

  return { page, learnedPage };
})();

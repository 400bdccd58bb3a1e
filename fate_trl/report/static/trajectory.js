"use strict";
// One trajectory: what was asked, how it was scored, and the conversation.

fate.trajectory = (() => {
  const { el, text, kind, words, GLYPHS } = fate.dom;

  // ---------------------------------------------------------------- injected text

  /** Ranges of `value` where an injected text stands. Only letters and digits are compared: tools wrap and escape. */
  function injectedIn(value, injected) {
    const ranges = [];
    const { letters, at } = lettersOf(value);
    for (const planted of injected) {
      const wanted = lettersOf(planted).letters;
      if (!wanted) continue;
      for (let from = letters.indexOf(wanted); from >= 0; from = letters.indexOf(wanted, from + wanted.length)) {
        let end = at[from + wanted.length - 1] + 1;
        while (end < value.length && /[.!?"'>)\]]/.test(value[end])) end += 1;
        ranges.push([at[from], end]);
      }
    }
    ranges.sort((a, b) => a[0] - b[0]);
    return ranges.filter(([from], i) => i === 0 || from >= ranges[i - 1][1]);
  }

  function lettersOf(value) {
    const at = [];
    let letters = "";
    for (const found of value.matchAll(/\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|.)|([\p{L}\p{N}])/giu)) {
      if (found[1] === undefined) continue;
      for (let unit = 0; unit < found[1].length; unit++) at.push(found.index + unit);
      letters += found[1];
    }
    return { letters, at };
  }

  // ---------------------------------------------------------------- the conversation

  function contentOf(message) {
    const { content } = message;
    if (typeof content === "string") return content;
    return Array.isArray(content) ? content.map((block) => block?.text ?? "").join("") : "";
  }

  /** The conversation as a list: the prompt's messages, then the ones that followed, with the faults at their steps.
   *  `learned` holds the steps that a pair's loss falls on; without it nothing is said of loss. */
  function conversation(record, learned = null) {
    const { trajectory, scores } = record;
    const prompt = trajectory.prompt ?? trajectory.task.messages, injected = trajectory.outcome?.injected ?? [];
    const faults = Object.entries(scores).filter(([name, score]) => fails(name, score) && score.step !== undefined);
    const list = el("ol", { class: "conversation" });
    for (const message of prompt) list.append(given(message, injected));
    (trajectory.messages ?? []).forEach((message, step) => {
      list.append(entry(message, injected, faults.filter(([, score]) => score.step === step), step, learned?.includes(step)));
    });
    if (trajectory.error) list.append(el("li", { class: "stop error" }, "Infrastructure error: ", text(trajectory.error)));
    else if ((trajectory.stop ?? "answer") !== "answer") list.append(el("li", { class: "stop" }, STOPS[trajectory.stop] ?? trajectory.stop));
    return list;
  }

  /** A message of the prompt. A long one, such as a repair prompt with its failed try, is folded. */
  function given(message, injected) {
    const content = contentOf(message);
    if (content.length <= 300) return entry(message, injected, []);
    const folded = el("details", { class: "fold" },
      el("summary", {}, el("span", { class: "quiet" }, `prompt of ${content.length.toLocaleString("en")} characters `),
        text(content.slice(0, 160), { className: "preview" })),
      text(content, { tag: "pre", ranges: injectedIn(content, injected) }));
    return el("li", { class: "message prompt" }, el("span", { class: "role" }, roleOf(message)), el("div", { class: "body" }, folded));
  }

  const ROLES = ["system", "user", "assistant", "tool"];
  const roleOf = (message) => (ROLES.includes(message.role) ? message.role : "other");

  const STOPS = { length: "Cut off at the token limit.", calls: "Cut off at the limit on tool calls." };

  function entry(message, injected, faults, step, learned = false) {
    const role = roleOf(message), content = contentOf(message), open = faults.length > 0;
    const parts = [];
    if (role === "tool") parts.push(folded("result of", message.name, content, injected, open));
    else if (content) parts.push(text(content, { tag: "div", className: "said", ranges: injectedIn(content, injected) }));
    for (const call of message.tool_calls ?? []) {
      const { name, arguments: given } = call.function ?? call;
      const shown = typeof given === "string" ? given : JSON.stringify(given ?? {}, null, 1);
      parts.push(folded("calls", name, shown, injected, open));
    }
    if (!parts.length) parts.push(el("p", { class: "quiet" }, "(empty)"));
    return el("li", { class: `message ${role} ${open ? "at-fault" : ""} ${learned ? "learned" : ""}`, "data-step": step, tabindex: open ? "-1" : false },
      el("span", { class: "role" }, role, step !== undefined && el("small", {}, ` ${step + 1}`), learned && el("b", { class: "loss" }, "loss")), el("div", { class: "body" }, parts, faults.map(([name, score]) => fault(name, score))));
  }

  /** A call or a result: one line, unfolded on a click, or at once if it holds what one looks for. */
  function folded(verb, name, content, injected, open) {
    const ranges = injectedIn(content, injected), line = content.slice(0, 400).replace(/\s+/g, " ").slice(0, 160);
    return el("details", { class: "fold", open: open || ranges.length > 0 },
      el("summary", {}, el("span", { class: "quiet" }, `${verb} `), text(name, { tag: "b" }), " ",
        text(line, { className: "preview" }), ranges.length > 0 && el("span", { class: "badge" }, "injected text")),
      text(content, { tag: "pre", ranges }));
  }

  function fault(name, score) {
    return el("div", { class: "fault" }, el("b", {}, `${GLYPHS.failed} ${words(name)}`), " at fault here: ",
      text(score.reason || "no reason given"), score.feedback && el("div", { class: "feedback" }, "Feedback: ", text(score.feedback)));
  }

  // ---------------------------------------------------------------- scores

  function fails(name, score) {
    const number = fate.data.index.objectives.indexOf(name);
    return (score.status ?? "ok") === "ok" && score.value < fate.data.index.pass_at[number];
  }

  function resultOf(name, score) {
    if (score?.status === "error") return "error";
    if (!score || score.status === "not_applicable") return "n.a.";
    return fails(name, score) ? "failed" : "passed";
  }

  const figure = (score) => (score?.value === undefined ? "" : String(Math.floor(score.value * 100 + 1e-9) / 100));

  /** One card per objective: value, verdict, reason, feedback, and the way to the step at fault. `wanted` picks some. */
  function scoreCards(record, jump, wanted = () => true) {
    const names = fate.data.index.objectives.filter((name) => wanted(resultOf(name, record.scores[name])));
    return names.length > 0 && el("ul", { class: "scores", "aria-label": "Scores" }, names.map((name) => {
      const score = record.scores[name], result = resultOf(name, score);
      return el("li", { class: `score ${result === "n.a." ? "na" : result}` },
        el("div", { class: "verdict" }, el("span", { class: "name" }, words(name)),
          el("span", { class: "value" }, `${GLYPHS[result]} ${result}`, figure(score) && el("span", { class: "figure" }, figure(score)))),
        score?.reason && text(score.reason, { tag: "p", className: "reason" }),
        score?.feedback && text(score.feedback, { tag: "p", className: "feedback" }),
        result === "failed" && score.step !== undefined &&
          el("button", { type: "button", class: "link", click: () => jump(score.step) }, `Go to step ${score.step + 1}`));
    }));
  }

  /** Facts of the episode's end, in words. */
  function facts(record) {
    const { outcome, stop } = record.trajectory, found = [];
    if (outcome?.attacked !== undefined) found.push(outcome.attacked ? "attacker’s goal reached" : "attack not successful");
    if (outcome?.exposed !== undefined) found.push(outcome.exposed ? "injection was read" : "injection was not read");
    if (outcome?.harm !== undefined) found.push(`${Math.round(outcome.harm * 100)} % of the harmful work done`);
    if (outcome?.utility !== undefined) found.push(`${Math.round(outcome.utility * 100)} % of the task done`);
    if (record.tokens.sampled) found.push(`${record.tokens.sampled} tokens sampled`);
    if (stop && stop !== "answer") found.push(`ended by ${stop}`);
    return found;
  }

  /** Where a row stands, as chips and words. */
  function place(row) {
    return el("p", { class: "place" }, kind(row.kind), text(row.suite),
      fate.data.index.runs.length > 1 && [" · ", text(row.run)], ` · round ${row.round} · `, text(row.stage),
      row.stage === "repair" ? ` · try ${row.attempt + 1}` : "", " · ", text(row.id, { className: "id" }));
  }

  // ---------------------------------------------------------------- the page

  /** The whole page of a trajectory; `go.pair()` opens the side-by-side view, `go.back()` the list. */
  function page(row, record, go) {
    const { trajectory } = record;
    const list = conversation(record), unmarked = row.kind === "attacked" && !trajectory.outcome?.injected?.length;
    return [
      el("div", { class: "head" },
        el("button", { type: "button", class: "back", click: go.back }, "‹ List"),
        place(row),
        el("h2", { tabindex: "-1" }, text(row.request || row.id)),
        el("p", { class: "quiet" }, facts(record).join(" · ")),
        trajectory.outcome?.fault && el("p", { class: "quiet" }, "The grader stumbled: ", text(trajectory.outcome.fault)),
        repairNote(row, go),
        pairNote(row, go)),
      scoreCards(record, (step) => jumpTo(list, step)),
      el("h3", {}, "Conversation"),
      unmarked && el("p", { class: "quiet" }, "This record does not say what the injected text is, so it is not marked."),
      list,
      el("h3", {}, "Record"),
      raw(`Executed calls (${trajectory.calls?.length ?? 0})`, trajectory.calls ?? []),
      raw("Outcome", trajectory.outcome ?? null),
      raw("Task", trajectory.task),
    ];
  }

  const NOTES = {
    repaired: "A repair was chosen for this failure.", "not repaired": "No candidate was acceptable as a repair.",
    chosen: "The chosen repair.", accepted: "Accepted as a repair, but another one was chosen.", rejected: "Not accepted as a repair.",
  };

  function repairNote(row, go) {
    if (!row.outcome) return null;
    return el("p", { class: "note" }, `${NOTES[row.outcome]} `,
      el("button", { type: "button", class: "primary", click: go.pair }, "Side by side ", el("kbd", {}, "f")));
  }

  function pairNote(row, go) {
    const count = fate.data.pairs(row.number).length;
    return count > 0 && el("p", { class: "note" }, `Learned from in ${count === 1 ? "a pair" : `${count} pairs`}. `,
      el("button", { type: "button", class: "primary", click: go.learned }, "Pair ", el("kbd", {}, "p")));
  }

  function raw(title, value) {
    const shown = JSON.stringify(value, null, 2);
    const place = el("details", { class: "raw" }, el("summary", {}, title));
    place.addEventListener("toggle", () => place.append(text(shown, { tag: "pre" })), { once: true });
    return place;
  }

  function jumpTo(list, step) {
    const entry = list.querySelector(`[data-step="${step}"]`);
    entry?.scrollIntoView({ block: "center" });
    entry?.focus({ preventScroll: true });
  }

  /** Unfold all calls and results of a page, or fold them if all are. */
  function toggleFolds(page) {
    const folds = [...page.querySelectorAll("details.fold")], open = folds.some((fold) => !fold.open);
    for (const fold of folds) fold.open = open;
  }

  return { page, place, conversation, scoreCards, jumpTo, toggleFolds };
})();

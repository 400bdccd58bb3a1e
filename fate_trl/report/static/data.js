"use strict";
// The run's data: the index (columns, one entry per trajectory) and, shard by shard, the trajectories themselves.
// Data files are scripts that call `receive` with a text of JSON; why that is so stands in viewer.py.

const fate = {};

fate.data = (() => {
  const NOT_APPLICABLE = -1, ERROR = -2;
  const KEPT = 40; // shards in memory
  const shards = new Map(); // number -> promise of its trajectories, least recently used first
  const waiting = new Map(); // number -> the resolver of that promise
  const policy = window.trustedTypes?.createPolicy("fate-data", {
    createScriptURL(name) {
      if (!/^data\/shard-\d{5}\.js$/.test(name)) throw new TypeError(`${name} is no data file`);
      return name;
    },
  });
  let index = null;
  let memberships = null; // row -> [selection, ...]
  let learned = null; // row -> [pair, ...]

  /** Called by data files. */
  function receive(name, text) {
    if (name === "index") {
      index = JSON.parse(text);
      fate.app.start();
    } else {
      waiting.get(name)?.(JSON.parse(text));
    }
  }

  /** Promise of a row's trajectory: {trajectory, scores, tokens}, see viewer.py. */
  async function trajectory(row) {
    const number = Math.floor(row / index.shard);
    const promise = shards.get(number) ?? load(number);
    shards.delete(number);
    shards.set(number, promise);
    if (shards.size > KEPT) shards.delete(shards.keys().next().value);
    return (await promise)[row % index.shard];
  }

  function load(number) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      const name = `data/shard-${String(number).padStart(5, "0")}.js`;
      const done = () => { waiting.delete(number); script.remove(); };
      waiting.set(number, resolve);
      script.onload = done;
      script.onerror = () => {
        done();
        shards.delete(number);
        reject(new Error("The trajectory could not be read. Was the run changed, or the viewer stopped? Start it again."));
      };
      script.src = policy ? policy.createScriptURL(name) : name;
      document.head.append(script);
    });
  }

  /** "passed", "failed", "n.a." or "error" of an objective (by number) of a row. */
  function result(row, objective) {
    const value = index.rows.scores[objective][row];
    if (value === NOT_APPLICABLE) return "n.a.";
    if (value === ERROR) return "error";
    return value < index.pass_at[objective] ? "failed" : "passed";
  }

  /** The selection in which a row is the failure or a candidate; undefined if there is none. */
  function selection(row) {
    if (memberships === null) {
      memberships = new Map();
      for (const found of index.selections) {
        memberships.set(found.failure, found);
        for (const candidate of found.candidates) memberships.set(candidate, found);
      }
    }
    return memberships.get(row);
  }

  /** The pairs that were learned from with this row on either side. */
  function pairs(row) {
    if (learned === null) {
      learned = new Map();
      for (const pair of index.pairs) {
        for (const side of [pair.chosen, pair.rejected]) learned.set(side, [...(learned.get(side) ?? []), pair]);
      }
    }
    return learned.get(row) ?? [];
  }

  /** What became of a row in the repair stage; "" if it had no part in it. */
  function fate_(row) {
    const found = selection(row);
    if (!found) return "";
    if (found.failure === row) return found.chosen === null ? "not repaired" : "repaired";
    const place = found.candidates.indexOf(row);
    if (found.chosen === place) return "chosen";
    return found.accepted.includes(place) ? "accepted" : "rejected";
  }

  /** Everything short that is known of a row. */
  function row(number) {
    const { rows, tasks } = index, task = rows.task[number];
    return {
      number,
      run: index.runs[rows.run?.[number] ?? 0],
      round: rows.round[number],
      stage: index.stages[rows.stage[number]],
      attempt: rows.attempt[number],
      error: index.errors[rows.error[number]],
      causes: rows.causes[number].map((cause) => index.causes[cause]),
      id: tasks.id[task],
      suite: index.suites[tasks.suite[task]],
      kind: index.kinds[tasks.kind[task]],
      request: tasks.request[task],
      outcome: fate_(number),
    };
  }

  return { receive, trajectory, result, selection, pairs, row, get index() { return index; } };
})();

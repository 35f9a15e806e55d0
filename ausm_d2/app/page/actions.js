// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
// The actions of the user.

import * as api from "./api.js";
import { S, busy, by, say } from "./store.js";
import { controls, goTo, load, loaded, paint, picture, redraw, refresh } from "./view.js";

let chain = Promise.resolve();
export function edit(path, body) { // one after the other
  chain = chain.then(() => busy(async () => {
    const asked = performance.now();
    const answer = await api.post(path, body);
    if (answer.object !== undefined) {
      S.chosen = answer.object;
      S.another = false;
    }
    await refresh();
    await loaded();
    await load();
    document.body.dataset.latency = Math.round(performance.now() - asked);
    for (const note of answer.notes || []) say(note, { note: true });
  }));
  return chain;
}

export function click(x, y, label) {
  const hit = picture.at(x, y);
  if (x < 0 || y < 0 || x >= S.state.video.width || y >= S.state.video.height) return;
  if (S.chosen === null && hit !== null && !S.another) {
    choose(hit);
    if (label) return;
  }
  if (S.chosen === null && !label) {
    say("Choose an object first: what should be taken away from it?", { note: true });
    return;
  }
  S.playing = S.following = false;
  edit("click", { frame: S.shown, object: S.chosen, x, y, label });
}

export function undone() { // the object whose last click in this frame is taken back
  const here = S.state.prompts[S.frame] || {};
  if (S.chosen !== null && here[S.chosen]) return S.chosen;
  const ids = Object.keys(here).map(Number);
  return ids.length ? Math.max(...ids) : null;
}

export function undo() {
  const object = undone();
  if (object !== null) edit("undo", { frame: S.frame, object });
}

export function choose(id) {
  S.chosen = id;
  S.another = false;
  controls();
  paint();
}

export function fresh() {
  S.chosen = null;
  S.another = true;
  if (S.tool === "take") S.tool = "add";
  controls();
  paint();
}

export function rename(id, name) {
  edit("object", { object: id, name });
}

export function hide(id, hidden) {
  edit("object", { object: id, hidden });
}

export function remove(id) {
  edit("object", { object: id, removed: true });
}

export function find() {
  edit("find", { frame: S.frame, on: !S.state.find });
}

export function run() {
  if (by("run").disabled) return;
  const stop = S.state.doing === "run";
  S.playing = false;
  S.following = !stop;
  busy(() => api.post(stop ? "stop" : "run"));
}

export async function play() {
  S.playing = !S.playing;
  S.following = false;
  controls();
  let last = performance.now();
  if (S.playing && S.frame >= S.state.video.count - 1) goTo(0, { keep: true });
  while (S.playing && S.frame < S.state.video.count - 1) {
    goTo(S.frame + 1, { keep: true });
    await loaded();
    const rest = 1000 / S.state.video.fps - (performance.now() - last);
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, rest)));
    last = performance.now();
  }
  S.playing = false;
  controls();
}

export function use(name) {
  S.tool = name;
  if (S.state.video) {
    controls();
    redraw();
  }
}

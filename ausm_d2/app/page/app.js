// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
// The page: its start, and the events of the server.

import * as api from "./api.js";
import { Chooser } from "./chooser.js";
import "./input.js";
import { S, busy, by, quiet, say, show } from "./store.js";
import { download, goTo, load, opened, progress, refresh, timeline } from "./view.js";

const chooser = new Chooser(opened, (error) => say(error.message));

function heard(event) {
  if (event.type === "changed") {
    refresh().then(() => { if (S.state.video && !S.following) load(); });
  } else if (event.type === "frame" && S.state.video) {
    Object.assign(S.state, { done: event.done, rate: event.rate, doing: "run" });
    progress();
    if (!timeline.add(event.frame, event.done, event.seen)) refresh();
    if (S.following) goTo(event.frame, { keep: true });
  } else if (event.type === "download" && S.state.download) {
    Object.assign(S.state.download, { done: event.done, total: event.total });
    download();
  } else if (event.type === "error") {
    say(event.message);
  } else if (event.type === "end") {
    api.forget();
    show(null);
    by("work").inert = by("choose").disabled = true;
    say("This session has ended. Reload the page to begin a new one.", { kept: true });
  }
}

let silent = false;
function lost(yes) {
  if (yes) say("The server does not answer.", { kept: true });
  if (!yes && silent) quiet();
  silent = yes;
}

const file = (text) => text.split(/[:,] /)[0]; // of "masks/<frame>.png: pixel = object id; ..."

async function begin() {
  const next = await busy(api.begin);
  if (!next) return;
  api.listen(heard, lost);
  const outputs = await chooser.outputs(), about = () => { by("about").textContent = outputs[by("output").value]; };
  const options = Object.entries(outputs).map(([name, text]) => new Option(`${name}: ${file(text)}`, name));
  by("output").replaceChildren(...options);
  by("output").addEventListener("change", about);
  about();
  if (next.video) opened(next);
  else chooser.show();
}

by("choose").addEventListener("click", () => chooser.show());
begin();

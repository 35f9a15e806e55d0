// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
// The pointer on the picture, buttons and keys.

import * as api from "./api.js";
import { choose, click, edit, find, fresh, hide, play, remove, run, undo, use } from "./actions.js";
import { S, busy, by, show } from "./store.js";
import { controls, goTo, paint, picture, redraw } from "./view.js";

const DRAG = 6; // CSS pixels from which a click is a box

let drag = null;
by("picture").addEventListener("contextmenu", (event) => event.preventDefault());
by("picture").addEventListener("pointerdown", (event) => {
  if (!S.state.video || S.shown === null || (event.button !== 0 && event.button !== 2)) return;
  by("picture").focus({ preventScroll: true });
  by("picture").setPointerCapture(event.pointerId);
  drag = { ...picture.place(event), label: event.button === 2 || S.tool === "take" ? 0 : 1, box: false };
});
by("picture").addEventListener("pointermove", (event) => {
  if (!drag || !drag.label) return;
  const { x, y, scale } = picture.place(event);
  drag.box ||= Math.hypot(x - drag.x, y - drag.y) * scale > DRAG;
  if (drag.box) {
    picture.rubber = [drag.x, drag.y, x, y];
    redraw();
  }
});
by("picture").addEventListener("pointerup", (event) => {
  if (!drag) return;
  const { x, y } = picture.place(event), begun = drag;
  drag = null;
  picture.rubber = null;
  redraw();
  if (begun.box) {
    S.playing = S.following = false;
    edit("box", { frame: S.shown, object: S.chosen, box: [begun.x, begun.y, x, y] });
  } else if (S.tool !== "box" || !begun.label) {
    click(begun.x, begun.y, begun.label);
  }
});
by("picture").addEventListener("pointercancel", () => {
  drag = null;
  picture.rubber = null;
  redraw();
});

by("help").addEventListener("click", () => show(by("helper")));
by("undo").addEventListener("click", undo);
by("new").addEventListener("click", fresh);
by("find").addEventListener("click", find);
by("run").addEventListener("click", run);
by("play").addEventListener("click", play);
by("back").addEventListener("click", () => goTo(S.frame - 1));
by("next").addEventListener("click", () => goTo(S.frame + 1));
by("save").addEventListener("click", () => busy(() => (
  S.state.doing === "download" ? api.post("stop") : api.post("download", { output: by("output").value }))));
for (const button of document.querySelectorAll("[data-tool]")) {
  button.addEventListener("click", () => use(button.dataset.tool));
}

const keys = {
  ArrowLeft: (event) => goTo(S.frame - (event.shiftKey ? 10 : 1)),
  ArrowRight: (event) => goTo(S.frame + (event.shiftKey ? 10 : 1)),
  Home: () => goTo(0),
  End: () => goTo(Infinity),
  " ": () => play(),
  a: () => use("add"),
  m: () => use("take"),
  b: () => use("box"),
  n: () => fresh(),
  z: () => undo(),
  f: () => find(),
  r: () => run(),
  h: () => S.chosen !== null && hide(S.chosen, !S.state.objects.find((each) => each.id === S.chosen).hidden),
  Delete: () => S.chosen !== null && remove(S.chosen),
  Escape: () => { S.chosen = null; controls(); paint(); },
};
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, dialog");
  if (!S.state.video || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " " && event.target.closest("button")) return;
  const digit = Number(event.key);
  const action = digit > 0 && digit < 10
    ? () => S.state.objects[digit - 1] && choose(S.state.objects[digit - 1].id)
    : keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action(event);
});

// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
// What is shown: the frame, the timeline, the objects, the buttons.

import * as actions from "./actions.js";
import * as api from "./api.js";
import { ObjectList } from "./objects.js";
import { Picture } from "./picture.js";
import { S, by, say } from "./store.js";
import { Timeline } from "./timeline.js";

const KEPT = 24; // decoded frames

export const picture = new Picture(by("picture"));
export const timeline = new Timeline(by("timeline"), (to) => goTo(to));
const list = new ObjectList(by("objects"), actions);
const frames = new Map();

export function goTo(to, { keep = false } = {}) {
  if (!S.state.video) return;
  if (!keep) {
    S.following = false;
    S.playing = false;
  }
  S.frame = Math.min(S.state.video.count - 1, Math.max(0, to));
  timeline.at(S.frame);
  place();
  load();
}

let loading = null;
export function loaded() { // what is on its way, if anything
  return loading;
}

export function load() { // the newest wish is loaded next; those between are left out
  loading ??= (async () => {
    try {
      do {
        const number = S.frame, video = S.video;
        const [image, masks] = await Promise.all([imageOf(number), api.get(`masks/${number}`).then((r) => r.json())]);
        if (video !== S.video) continue; // another one was opened meanwhile
        picture.image = image;
        S.found = masks;
        S.shown = by("picture").dataset.frame = number;
        paint();
      } while (S.frame !== S.shown);
    } catch (error) {
      S.shown = S.frame;
      say(error.message);
    } finally {
      loading = null;
    }
  })();
  return loading;
}

async function imageOf(number) {
  if (frames.has(number)) return frames.get(number);
  const video = S.video;
  const image = await createImageBitmap(await (await api.get(`frames/${number}`)).blob());
  if (video === S.video) {
    frames.set(number, image);
    if (frames.size > KEPT) frames.delete(frames.keys().next().value); // the oldest
  }
  return image;
}

export function paint() {
  if (!S.state.video) return;
  const colours = new Map(S.state.objects.map((each) => [each.id, each.colour]));
  const hidden = new Set(S.state.objects.filter((each) => each.hidden).map((each) => each.id));
  picture.setMasks(S.found, colours, hidden, S.chosen);
  redraw();
}

export function redraw() {
  const marks = Object.entries(S.state.prompts[S.shown] || {}).flatMap(([id, several]) => {
    const object = S.state.objects.find((each) => each.id === Number(id));
    return object && !object.hidden ? several.map((each) => ({ ...each, colour: object.colour })) : [];
  });
  picture.draw(marks);
  by("hint").textContent = hint();
}

function hint() {
  const { objects, find, start, done, doing } = S.state;
  if (!objects.length && !find) return "Click on an object, or drag a box around it";
  if (S.another) return "Click on another object, or drag a box around it";
  const old = start !== null && S.shown >= done && S.found.length && !doing;
  if (old) return "Older than the last change: Run updates it";
  return "";
}

function place() {
  const seconds = S.frame / S.state.video.fps;
  by("place").textContent = `${S.frame} / ${S.state.video.count - 1}  \u00b7  ${seconds.toFixed(1)} s`;
}

let asking = null, again = false;
export function refresh() { // the state as it is from now on
  again = true;
  asking ??= (async () => {
    try {
      while (again) {
        again = false;
        update(await (await api.get("state")).json());
      }
    } catch (error) {
      say(error.message);
    } finally {
      asking = null;
    }
  })();
  return asking;
}

export function update(next) {
  S.state = { objects: [], prompts: {}, ...next };
  by("work").hidden = !S.state.video;
  if (!S.state.video) return;
  if (S.chosen !== null && !S.state.objects.some((each) => each.id === S.chosen)) S.chosen = null;
  timeline.set(S.state);
  controls();
}

export function controls() {
  const running = S.state.doing === "run";
  list.set(S.state.objects, S.chosen);
  by("title").textContent = S.state.video.name;
  by("none").hidden = S.state.objects.length > 0;
  by("run").textContent = running ? "Stop" : "Run";
  by("run").classList.toggle("stop", running);
  by("run").disabled = !running && (S.state.start === null || S.state.done >= S.state.video.count);
  by("find").setAttribute("aria-pressed", S.state.find);
  by("undo").disabled = actions.undone() === null;
  by("play").textContent = S.playing ? "\u275a\u275a Pause" : "\u25b6 Play";
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("role", "radio");
    button.setAttribute("aria-checked", button.dataset.tool === S.tool);
  }
  by("new").setAttribute("aria-pressed", S.another);
  progress();
  download();
}

export function progress() {
  const { doing, start, done, rate, video } = S.state;
  let text = "";
  if (doing === "run") text = `${done} of ${video.count}, ${rate.toFixed(1)} frames/s`;
  else if (start !== null && done >= video.count) text = "done";
  else if (start !== null) text = `${done} of ${video.count}`;
  by("progress").textContent = text;
}

export function download() {
  const made = S.state.download;
  by("save").textContent = S.state.doing === "download" ? "Cancel" : "Download";
  if (!made) {
    by("saving").textContent = "";
  } else if (!made.name) {
    by("saving").textContent = `${made.output}: ${made.done} of ${made.total} frames`;
  } else {
    const link = document.createElement("a");
    link.href = api.address(`download/${made.number}`);
    link.download = made.name;
    link.textContent = made.name;
    if (S.saved === made.number) return;
    by("saving").replaceChildren(link);
    if (S.saved !== null) link.click();
    S.saved = made.number;
  }
}


// A video was opened: its state.
export function opened(next) {
  frames.clear();
  Object.assign(S, { frame: 0, shown: null, found: [], chosen: null, another: false, saved: null });
  S.video += 1;
  S.playing = S.following = false;
  update(next);
  S.saved ??= 0;
  by("hint").textContent = "";
  picture.begin(S.state.video);
  goTo(0);
  by("picture").focus();
}

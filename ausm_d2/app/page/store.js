// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
// The state of the page, and its messages.

export const by = (id) => document.getElementById(id);

export const S = {
  state: { video: null, objects: [], prompts: {} }, // of the server
  frame: 0, // that is to be shown
  video: 0, // counts those that were opened
  shown: null, // that is shown
  found: [], // its masks
  chosen: null, // id of an object; null: a click begins a new one
  another: false, // "New object" was pressed: a click on an object begins a new one all the same
  tool: "add",
  following: false, // the run: its newest frame is shown
  playing: false,
  saved: null, // number of the download that was fetched last; null: none is to be fetched
};

let fading = 0, saying = false;
// kept: until the next message; others can also be clicked away.
export function say(message, { note = false, kept = false } = {}) {
  by("toast").textContent = message;
  by("toast").classList.toggle("note", note);
  by("toast").onclick = kept ? null : quiet;
  saying = true;
  raise();
  clearTimeout(fading);
  if (!kept) fading = setTimeout(quiet, note ? 5000 : 9000);
}

export function quiet() {
  saying = false;
  by("toast").hidePopover();
}

// Show the message above all else. While a modal dialog is open, what is outside of it lies behind its backdrop and is not read
// out by screen readers, so the message moves into the dialog.
function raise() {
  const open = [...document.querySelectorAll("dialog[open]")].at(-1) || document.body;
  if (by("toast").parentElement !== open) open.append(by("toast")); // which hides it
  if (saying && !by("toast").matches(":popover-open")) by("toast").showPopover();
}

const dialogs = document.querySelectorAll("dialog");
for (const dialog of dialogs) dialog.addEventListener("close", raise);

// Open a modal dialog and close the others; null: only close them.
export function show(dialog) {
  for (const other of dialogs) if (other !== dialog) other.close();
  if (dialog && !dialog.open) dialog.showModal();
  raise();
}

let waiting = 0;
export async function busy(work) {
  waiting += 1;
  const timer = setTimeout(() => { by("busy").hidden = false; }, 150);
  try {
    return await work();
  } catch (error) {
    say(error.message);
    return null;
  } finally {
    clearTimeout(timer);
    waiting -= 1;
    if (!waiting) by("busy").hidden = true;
  }
}

// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
// The dialog in which a video is chosen or uploaded.

import * as api from "./api.js";
import { S, by, quiet, show } from "./store.js";

const mega = (bytes) => `${Math.ceil(bytes / 1048576)} MB`;


export class Chooser {
  // opened(state) is called when the server has opened a video, failed(error) when it has not.
  constructor(opened, failed) {
    this.opened = opened;
    this.failed = failed;
    this.most = Infinity; // bytes of a file
    by("file").addEventListener("change", () => {
      if (by("file").files.length) this.send(by("file").files[0]);
      by("file").value = "";
    });
    for (const name of ["dragover", "dragleave", "drop"]) {
      document.addEventListener(name, (event) => {
        event.preventDefault();
        by("drop").classList.toggle("over", name === "dragover");
        if (name === "drop" && event.dataTransfer.files.length) this.drop(event.dataTransfer.files[0]);
      });
    }
  }

  // What can be downloaded: name -> text.
  async outputs() {
    return (await (await api.get("videos")).json()).outputs;
  }

  async show() {
    by("lost").hidden = !S.state.objects?.length;
    show(by("chooser"));
    try {
      this.fill(await (await api.get("videos")).json());
    } catch (error) {
      this.failed(error);
    }
  }

  fill(videos) {
    this.most = videos.max_bytes;
    by("limit").textContent = `or drop it here, up to ${mega(this.most)}`;
    this.list(by("clips"), videos.clips, "clip");
    this.list(by("folder"), videos.folder, "folder");
    by("inFolder").hidden = !videos.folder.length;
    by("more").hidden = videos.complete;
  }

  list(target, names, source) {
    target.replaceChildren(...names.map((name) => {
      const item = document.createElement("li"), button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.addEventListener("click", () => this.finish(api.post("open", { source, name })));
      item.append(button);
      return item;
    }));
  }

  async drop(file) { // anywhere in the window
    if (by("chooser").inert) {
      this.failed(new Error(`'${file.name}' is not taken: another video is being opened`));
      return;
    }
    if (by("choose").disabled) return; // the session has ended
    await this.show(); // there is the progress of the upload
    if (this.most) this.send(file); // else the list of videos failed, which is said
  }

  send(file) {
    if (file.size > this.most) { // the server would refuse it, but the browser might not show its answer
      this.failed(new Error(`'${file.name}' has ${mega(file.size)}, at most ${mega(this.most)} are taken`));
      return;
    }
    by("sent").hidden = false;
    this.finish(api.upload(file, (part) => { by("sent").value = part; }));
  }

  async finish(work) {
    const dialog = by("chooser");
    dialog.inert = true;
    let failed = null;
    const state = await work.catch((error) => { failed = error; });
    dialog.inert = false; // before a message, which is in it
    by("sent").hidden = true;
    if (failed) {
      this.failed(failed);
    } else {
      dialog.close();
      quiet();
      this.opened(state);
    }
  }
}

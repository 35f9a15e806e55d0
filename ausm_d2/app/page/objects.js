// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
// The list of objects: colour, name, hide, remove. Texts are set as text, never as HTML.

const CROSS = "\u2715";

export class ObjectList {
  // choose(id), rename(id, name), hide(id, hidden), remove(id)
  constructor(list, actions) {
    this.list = list;
    this.actions = actions;
    this.items = new Map();
  }

  set(objects, chosen) {
    for (const [id, item] of this.items) {
      if (!objects.some((object) => object.id === id)) {
        item.remove();
        this.items.delete(id);
      }
    }
    for (const object of objects) {
      if (!this.items.has(object.id)) this.items.set(object.id, this.build(object));
      const item = this.items.get(object.id);
      this.list.append(item);
      item.classList.toggle("chosen", object.id === chosen);
      item.classList.toggle("hidden", object.hidden);
      item.querySelector(".pick").setAttribute("aria-pressed", object.id === chosen);
      const name = item.querySelector("input"), hide = item.querySelector(".hide");
      if (document.activeElement !== name) name.value = object.name;
      hide.textContent = object.hidden ? "Show" : "Hide";
      hide.setAttribute("aria-pressed", object.hidden);
    }
  }

  build({ id, colour }) {
    const item = document.createElement("li");
    item.dataset.id = id;
    const button = (kind, text, label, action) => {
      const made = document.createElement("button");
      made.type = "button";
      made.className = kind;
      made.textContent = text;
      made.setAttribute("aria-label", `${label} object ${id}`);
      made.addEventListener("click", action);
      return made;
    };
    const pick = button("pick", String(id), "Choose", () => this.actions.choose(id));
    const dot = document.createElement("span");
    dot.className = "dot";
    dot.style.background = colour;
    pick.prepend(dot);
    const remove = button("small remove", CROSS, "Remove", () => {
      if (remove.classList.toggle("sure")) { // a second click removes
        remove.textContent = "Remove?";
        remove.focus(); // Safari does not by itself; without it, "blur" would not take it back
      } else this.actions.remove(id);
    });
    remove.addEventListener("blur", () => {
      remove.classList.remove("sure");
      remove.textContent = CROSS;
    });
    const name = document.createElement("input");
    name.type = "text";
    name.maxLength = 60;
    name.setAttribute("aria-label", `Name of object ${id}`);
    name.addEventListener("change", () => this.actions.rename(id, name.value));
    name.addEventListener("keydown", (event) => { if (event.key === "Enter") name.blur(); });
    item.append(
      pick,
      name,
      button("small hide", "Hide", "Hide", () => this.actions.hide(id, !item.classList.contains("hidden"))),
      remove,
    );
    return item;
  }
}

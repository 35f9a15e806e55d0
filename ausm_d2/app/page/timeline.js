// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
// When each object was visible: a row for each, more opaque for higher scores, pale where older than the last change.

const ROW = 12, TOP = 14, SIDE = 8;

export class Timeline {
  constructor(canvas, goTo) {
    this.canvas = canvas;
    this.count = 1;
    this.frame = 0;
    this.rows = []; // {id, colour, hidden}
    this.scores = new Map(); // by id: Uint8Array, 0: not in sight, else 1 + 254 * score
    this.start = null;
    this.done = 0;
    this.given = []; // frames with clicks
    this.asked = false;
    const scrub = (event) => {
      const area = canvas.getBoundingClientRect();
      const part = (event.clientX - area.left - SIDE) / Math.max(1, area.width - 2 * SIDE);
      goTo(Math.round(Math.min(1, Math.max(0, part)) * (this.count - 1)));
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      scrub(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (canvas.hasPointerCapture(event.pointerId)) scrub(event);
    });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  // The server's state.
  set(state) {
    this.count = state.video.count;
    this.start = state.start;
    this.done = state.done;
    this.rows = state.objects;
    this.given = Object.keys(state.prompts).map(Number);
    this.scores = new Map();
    for (const object of state.objects) {
      const row = this.row(object.id);
      for (const [first, last, score] of object.spans) row.fill(1 + 254 * score, first, last + 1);
    }
    this.canvas.style.height = `${Math.min(170, Math.max(52, TOP + 8 + ROW * this.rows.length))}px`;
    this.canvas.setAttribute("aria-valuemax", this.count - 1);
    this.draw();
  }

  row(id) {
    if (!this.scores.has(id)) this.scores.set(id, new Uint8Array(this.count));
    return this.scores.get(id);
  }

  // A frame was processed. Returns false if it shows an object that has no row yet.
  add(frame, done, seen) {
    this.done = done;
    for (const row of this.scores.values()) row[frame] = 0;
    for (const [id, score] of seen) this.row(id)[frame] = 1 + 254 * score;
    this.draw();
    return seen.every(([id]) => this.rows.some((each) => each.id === id));
  }

  at(frame) {
    this.frame = frame;
    this.canvas.setAttribute("aria-valuenow", frame);
    this.draw();
  }

  draw() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => {
      this.asked = false;
      this.paint();
    });
  }

  paint() {
    const ratio = window.devicePixelRatio || 1, pen = this.canvas.getContext("2d");
    const width = this.canvas.clientWidth, height = this.canvas.clientHeight;
    if (!width) return;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    pen.scale(ratio, ratio);
    const span = width - 2 * SIDE, step = span / Math.max(1, this.count - 1);
    const x = (frame) => SIDE + frame * step, half = Math.max(1, step) / 2;
    pen.fillStyle = "#1d232d";
    pen.fillRect(0, 0, width, height);
    if (this.start !== null && this.done > this.start) {
      pen.fillStyle = "#2b3442";
      pen.fillRect(x(this.start) - half, 0, x(this.done - 1) - x(this.start) + 2 * half, height);
    }
    const columns = Math.min(this.count, Math.ceil(span));
    const tall = Math.min(ROW, (height - TOP - 6) / Math.max(1, this.rows.length));
    this.rows.forEach((object, place) => {
      const scores = this.row(object.id);
      pen.fillStyle = object.colour;
      for (let column = 0; column < columns; column++) {
        const first = Math.floor(column * this.count / columns), last = Math.floor((column + 1) * this.count / columns);
        let best = 0;
        for (let frame = first; frame < last; frame++) best = Math.max(best, scores[frame]);
        if (!best) continue;
        pen.globalAlpha = (0.4 + 0.6 * best / 255) * (first >= this.done ? 0.3 : 1) * (object.hidden ? 0.3 : 1);
        const wide = x(last - 1) - x(first) + 2 * half + 0.5;
        pen.fillRect(x(first) - half, TOP + place * tall, wide, Math.max(1, tall - 3));
      }
      pen.globalAlpha = 1;
    });
    pen.fillStyle = "#f5b642";
    for (const frame of this.given) {
      pen.beginPath();
      pen.moveTo(x(frame) - 4, 2);
      pen.lineTo(x(frame) + 4, 2);
      pen.lineTo(x(frame), 10);
      pen.fill();
    }
    pen.fillStyle = "#fff";
    pen.fillRect(x(this.frame) - 1, 0, 2, height);
  }
}

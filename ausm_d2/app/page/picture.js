// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
// The frame with its masks, clicks and boxes on a canvas.

const OPACITY = 0.45;

// COCO's compressed run lengths: numbers of 5 bits a character, the lowest first, from the third on as differences.
function runs(text) {
  const counts = [];
  for (let at = 0; at < text.length;) {
    let value = 0, shift = 0, code;
    do {
      code = text.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift;
    if (counts.length > 2) value += counts[counts.length - 2];
    counts.push(value);
  }
  return counts;
}

const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

export class Picture {
  constructor(canvas) {
    this.canvas = canvas;
    this.masks = document.createElement("canvas");
    this.image = null;
    this.owners = null; // place in `listed` + 1 of every pixel, column by column
    this.listed = [];
    this.inks = []; // their colours: red, green, blue
    this.tops = new Map();
    this.rubber = null; // the box that is being drawn: x0, y0, x1, y1
  }

  // Sizes of a new video: the picture's is `view`, that of coordinates and masks width x height.
  begin(video) {
    this.video = video;
    const [width, height] = video.view;
    const scale = Math.max(1, Math.round(960 / Math.max(width, height))); // lines are sharp on small videos too
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    this.masks.width = width;
    this.masks.height = height;
    this.owners = new Uint16Array(video.width * video.height);
    this.image = null;
    this.listed = [];
    this.tops = new Map();
    this.canvas.parentElement.style.setProperty("--aspect", `${width} / ${height}`);
  }

  // Position of a pointer in pixels of the frame; it may be outside.
  place(event) {
    const area = this.canvas.getBoundingClientRect();
    const scale = Math.min(area.width / this.video.width, area.height / this.video.height);
    const left = area.left + (area.width - scale * this.video.width) / 2;
    const top = area.top + (area.height - scale * this.video.height) / 2;
    return { x: (event.clientX - left) / scale, y: (event.clientY - top) / scale, scale };
  }

  // The object at a position; null: none.
  at(x, y) {
    const { width, height } = this.video;
    if (x < 0 || y < 0 || x >= width || y >= height) return null;
    const owner = this.owners[Math.floor(x) * height + Math.floor(y)];
    return owner ? this.listed[owner - 1].id : null;
  }

  // found: [{id, score, counts}]; colours by id; objects in `hidden` are left out.
  setMasks(found, colours, hidden, chosen) {
    const { width, height } = this.video, [across, down] = this.video.view;
    this.listed = found.filter((each) => !hidden.has(each.id)).sort((a, b) => a.score - b.score);
    this.owners.fill(0);
    this.listed.forEach((each, index) => {
      let at = 0;
      runs(each.counts).forEach((length, turn) => {
        if (turn % 2) this.owners.fill(index + 1, at, at + length);
        at += length;
      });
    });
    const inks = this.inks = this.listed.map((each) => rgb(colours.get(each.id) || "#ffffff"));
    const bold = this.listed.map((each) => each.id === chosen);
    const small = new Uint16Array(across * down);
    for (let x = 0; x < across; x++) {
      const column = Math.min(width - 1, Math.floor((x + 0.5) * width / across)) * height;
      for (let y = 0; y < down; y++) {
        small[y * across + x] = this.owners[column + Math.min(height - 1, Math.floor((y + 0.5) * height / down))];
      }
    }
    const picture = new ImageData(across, down), data = picture.data, reach = Math.max(1, Math.round(across / 640));
    this.tops = new Map(); // of each object: the first pixel from above, where its id is written
    for (let y = 0, at = 0; y < down; y++) {
      for (let x = 0; x < across; x++, at++) {
        const owner = small[at];
        if (!owner) continue;
        if (!this.tops.has(owner)) this.tops.set(owner, [x, y]);
        const far = bold[owner - 1] ? reach + 1 : reach;
        const edge = x < far || y < far || x >= across - far || y >= down - far || small[at - far] !== owner
          || small[at + far] !== owner || small[at - far * across] !== owner || small[at + far * across] !== owner;
        [data[4 * at], data[4 * at + 1], data[4 * at + 2]] = inks[owner - 1];
        data[4 * at + 3] = edge ? 255 : 255 * OPACITY;
      }
    }
    this.masks.getContext("2d").putImageData(picture, 0, 0);
  }

  // marks: [{colour, points: [[x, y]], labels} or {colour, x0, y0, x1, y1}] in the frame's pixels.
  draw(marks) {
    const { width, height } = this.canvas, pen = this.canvas.getContext("2d");
    const scale = width / this.video.width, size = Math.max(4, width / 130);
    pen.clearRect(0, 0, width, height);
    if (this.image) pen.drawImage(this.image, 0, 0, width, height);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(this.masks, 0, 0, width, height);
    pen.imageSmoothingEnabled = true;
    const box = (x0, y0, x1, y1, colour) => {
      pen.setLineDash([size, size]);
      for (const [ink, line] of [["#000", size / 2], [colour, size / 3]]) {
        pen.strokeStyle = ink;
        pen.lineWidth = line;
        pen.strokeRect(x0 * scale, y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale);
      }
      pen.setLineDash([]);
    };
    for (const mark of marks) {
      if (mark.points) mark.points.forEach(([x, y], i) => this.dot(pen, x * scale, y * scale, size, mark.labels[i]));
      else box(mark.x0, mark.y0, mark.x1, mark.y1, mark.colour);
    }
    if (this.rubber) box(...this.rubber, "#ffffff");
    const large = width / this.masks.width;
    for (const [owner, [x, y]] of this.tops) this.tag(pen, owner - 1, x * large, y * large);
  }

  // The id of an object above its mask, where there is room.
  tag(pen, place, x, y) {
    const text = String(this.listed[place].id), size = Math.max(11, this.canvas.width / 70);
    pen.font = `600 ${size}px system-ui, sans-serif`;
    const across = pen.measureText(text).width + size * 0.6, down = size * 1.3;
    const left = Math.max(0, Math.min(x - across / 2, this.canvas.width - across)), top = Math.max(0, y - down);
    const [red, green, blue] = this.inks[place];
    pen.fillStyle = `rgb(${red} ${green} ${blue})`;
    pen.fillRect(left, top, across, down);
    pen.fillStyle = 0.299 * red + 0.587 * green + 0.114 * blue > 110 ? "#000" : "#fff";
    pen.textBaseline = "middle";
    pen.fillText(text, left + size * 0.3, top + down / 2);
  }

  // A click: a plus on green, a minus on red.
  dot(pen, x, y, size, label) {
    pen.beginPath();
    pen.arc(x, y, size, 0, 2 * Math.PI);
    pen.fillStyle = label ? "#1e9e4a" : "#d03c2f";
    pen.fill();
    pen.lineWidth = size / 4;
    pen.strokeStyle = "#fff";
    pen.stroke();
    pen.beginPath();
    pen.moveTo(x - size / 2, y);
    pen.lineTo(x + size / 2, y);
    if (label) {
      pen.moveTo(x, y - size / 2);
      pen.lineTo(x, y + size / 2);
    }
    pen.stroke();
  }
}

/* Loads data without a server: each file is a script that hands over one value by NuClass.receive. */
"use strict";

const NuClass = {
  NONE: 255,
  _waiting: new Map(),

  /** Called by the files of data. */
  receive(key, value) {
    const waiting = this._waiting.get(key);
    if (waiting) waiting.resolve(value);
  },

  /** Load a file of data once; the promise holds its value. */
  load(key, path) {
    const known = this._waiting.get(key);
    if (known) return known.promise;
    const entry = {};
    entry.promise = new Promise((resolve, reject) => {
      entry.resolve = resolve;
      entry.reject = reject;
    });
    this._waiting.set(key, entry);
    const script = document.createElement("script");
    script.src = path;
    script.onload = () => {
      script.remove();
      entry.reject(new Error(`${path} holds no value for ${key}`));
    };
    script.onerror = () => {
      script.remove();
      this._waiting.delete(key);
      entry.reject(new Error(`${path} cannot be read`));
    };
    document.head.append(script);
    return entry.promise;
  },

  /** Forget values, so that they can be collected; loading them again works. */
  forget(prefix) {
    for (const key of this._waiting.keys()) if (key.startsWith(prefix)) this._waiting.delete(key);
  },

  /** Turn base64 of little-endian numbers into a typed array. */
  unpack(text, Type) {
    let bytes;
    if (Uint8Array.fromBase64) {
      bytes = Uint8Array.fromBase64(text);
    } else {
      const raw = atob(text);
      bytes = new Uint8Array(raw.length);
      for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    }
    return new Type(bytes.buffer);
  },
};

/** The cells of one slide: columns of numbers, and the details of single cells when they are asked for. */
NuClass.Slide = class {
  constructor(about, picture, points) {
    Object.assign(this, { about, picture });
    this.name = about.name;
    this.folder = `slides/${about.name}`;
    this.count = points.cells;
    this.unplaced = points.unplaced;
    // Cells of the slide without a prediction; null where the number was not written.
    this.unpredicted = points.unpredicted;
    this.part = points.part;
    this.classes = points.classes;
    this.scored = points.scored;
    this.x = NuClass.unpack(points.x, Float32Array);
    this.y = NuClass.unpack(points.y, Float32Array);
    // A slide of one's own has no labels, and a single model no gate.
    this.labelled = points.labelled;
    this.main = points.main;
    for (const name of ["label", "prediction", "confidence", "gate"]) {
      this[name] = points[name] === null ? null : NuClass.unpack(points[name], Uint8Array);
    }
    this.maps = new Map(points.maps.map((entry) => [entry.cell, entry.pictures]));
    this.verdict = this._judge();
    this.extent = this._extent();
  }

  static async load(about) {
    const folder = `slides/${about.name}`;
    const [picture, points] = await Promise.all([
      about.picture ? NuClass.load(`${about.name}/tiles`, `${folder}/tiles/tiles.js`) : null,
      NuClass.load(`${about.name}/points`, `${folder}/cells/points.js`),
    ]);
    const slide = new NuClass.Slide(about, picture, points);
    NuClass.forget(`${about.name}/points`);
    return slide;
  }

  /** For each cell: 0 right, 1 wrong, 2 not judged (a label that the model does not know, or an empty one). */
  _judge() {
    const verdict = new Uint8Array(this.count);
    for (let i = 0; i < this.count; i++) {
      verdict[i] = this.label[i] >= this.scored ? 2 : this.label[i] === this.prediction[i] ? 0 : 1;
    }
    return verdict;
  }

  /** What there is to see, px: the picture, or the box around the cells with a margin. */
  _extent() {
    if (this.picture) return { x: 0, y: 0, width: this.picture.width, height: this.picture.height };
    let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
    for (let i = 0; i < this.count; i++) {
      left = Math.min(left, this.x[i]);
      right = Math.max(right, this.x[i]);
      top = Math.min(top, this.y[i]);
      bottom = Math.max(bottom, this.y[i]);
    }
    if (!this.count) return { x: 0, y: 0, width: 1000, height: 1000 };
    const margin = 0.03 * Math.max(right - left, bottom - top, 1000);
    const [x, y] = [Math.floor(left - margin), Math.floor(top - margin)];
    return { x, y, width: Math.ceil(right + margin - x), height: Math.ceil(bottom + margin - y) };
  }

  /** The address of a tile of the picture. */
  tile(level, column, row) {
    return `${this.folder}/tiles/slide_files/${level}/${column}_${row}.jpeg`;
  }

  /** What is known of one cell: id, exact gate and probabilities, what each branch says. */
  async details(cell) {
    const part = Math.floor(cell / this.part);
    const raw = await NuClass.load(`${this.name}/details/${part}`, `${this.folder}/cells/details/${part}.js`);
    const at = cell - part * this.part;
    const branch = (name) =>
      raw.models[name] && {
        prediction: NuClass.unpack(raw.models[name].prediction, Uint8Array)[at],
        confidence: NuClass.unpack(raw.models[name].confidence, Float32Array)[at],
      };
    return {
      cell,
      id: raw.ids[at],
      gate: raw.gate === null ? null : NuClass.unpack(raw.gate, Float32Array)[at],
      probabilities: NuClass.unpack(raw.probabilities, Float32Array).slice(at * this.scored, (at + 1) * this.scored),
      models: { local: branch("local"), global: branch("global"), gate: branch("gate") },
    };
  }

  /** The place of a cell by its id, or -1. */
  async find(id) {
    const text = await NuClass.load(`${this.name}/ids`, `${this.folder}/cells/ids.js`);
    this._ids ??= new Map(text ? text.split("\n").map((name, cell) => [name, cell]) : []);
    return this._ids.get(id) ?? -1;
  }
};

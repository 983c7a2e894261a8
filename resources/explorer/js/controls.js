/* The left column: what colours mean, which cells are drawn. */
"use strict";

/** Make an element; properties by name, `aria` and `data` as sections, texts and elements as children. */
NuClass.make = (tag, properties = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "aria") for (const [name, text] of Object.entries(value)) element.setAttribute(`aria-${name}`, text);
    else if (key === "data") Object.assign(element.dataset, value);
    else if (key === "style") Object.assign(element.style, value);
    else element[key] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
};

/** Which cells of a slide have no prediction, so that nobody takes the points for all cells. */
const leftOut = ({ unpredicted, about }) => {
  if (unpredicted === 0) return "";
  if (about.role === "own") return `Not shown: ${unpredicted.toLocaleString("en")} ${unpredicted === 1 ? "cell" : "cells"} that were left out (see predictions.csv).`;
  const cells = unpredicted === null ? "cells" : unpredicted === 1 ? "1 cell" : `${unpredicted.toLocaleString("en")} cells`;
  const why = about.role === "cohort" ? "no label, or failed quality control" : "no label, failed quality control, or in the training part or its buffer";
  return `Not shown: ${cells} of the slide without a prediction (${why}).`;
};

NuClass.Controls = class {
  constructor({ onColour, onFilter }) {
    Object.assign(this, { onColour, onFilter });
    const get = (id) => document.getElementById(id);
    this.parts = Object.fromEntries(
      ["mode", "legend", "by", "classes", "verdict-section", "all", "none", "verdicts", "least", "most", "least-value", "most-value", "count", "unplaced", "only-maps", "only-maps-row"].map((id) => [id, get(id)]),
    );
    const { mode, by, all, none, least, most } = this.parts;
    mode.addEventListener("change", () => {
      // Colours and boxes of the classes speak of the same thing.
      if (["label", "prediction"].includes(mode.value) && by.value !== mode.value) {
        by.value = mode.value;
        this._classes();
        this.onFilter();
      }
      this._legend();
      this.onColour();
    });
    by.addEventListener("change", () => {
      this._classes();
      this.onFilter();
    });
    for (const [button, value] of [[all, true], [none, false]]) {
      button.addEventListener("click", () => {
        for (const box of this.parts.classes.querySelectorAll("input")) box.checked = value;
        this.onFilter();
      });
    }
    for (const slider of [least, most]) slider.addEventListener("input", () => this.onFilter());
    for (const id of ["classes", "verdicts", "only-maps"]) this.parts[id].addEventListener("change", () => this.onFilter());
  }

  get mode() {
    return this.parts.mode.value;
  }

  /** Another slide: its classes, its counts; all cells are drawn. */
  setSlide(slide) {
    this.slide = slide;
    this._offer(slide);
    this.parts.least.value = 0;
    this.parts.most.value = 100;
    this.parts["only-maps"].checked = false;
    this.parts["only-maps-row"].hidden = !slide.maps.size;
    const left = [leftOut(slide), slide.unplaced ? `${slide.unplaced.toLocaleString("en")} predicted cells have no place and are not drawn.` : ""].filter(Boolean);
    this.parts.unplaced.hidden = !left.length;
    this.parts.unplaced.textContent = left.join(" ");
    this._classes();
    this._verdicts();
    this._legend();
  }

  /** Only what is known of the slide can be chosen: labels and what comes of them, and the gate. */
  _offer(slide) {
    const { mode, by } = this.parts;
    const known = { label: slide.labelled, verdict: slide.labelled, gate: slide.gate !== null };
    for (const list of [mode, by]) {
      for (const option of list.options) option.hidden = option.disabled = known[option.value] === false;
      if (list.selectedOptions[0].disabled) list.value = "prediction";
    }
    this.parts["verdict-section"].hidden = !slide.labelled;
  }

  _row(name, colour, count, value) {
    const { make } = NuClass;
    return make(
      "li",
      {},
      make(
        "label",
        {},
        make("input", { type: "checkbox", checked: true, value: String(value) }),
        make("span", { className: "swatch", aria: { hidden: "true" }, style: { background: colour } }),
        make("span", { className: "name" }, name),
        make("span", { className: "number" }, count.toLocaleString("en")),
      ),
    );
  }

  _classes() {
    const { slide } = this;
    const counts = new Uint32Array(256);
    for (const value of slide[this.parts.by.value]) counts[value]++;
    const rows = slide.classes.map((entry, i) => counts[i] && this._row(entry.full, entry.colour, counts[i], i)).filter(Boolean);
    if (counts[NuClass.NONE]) rows.push(this._row(NuClass.colours.nameless(slide), NuClass.colours.NO_CLASS, counts[NuClass.NONE], NuClass.NONE));
    this.parts.classes.replaceChildren(...rows);
  }

  _verdicts() {
    const counts = [0, 0, 0];
    for (const value of this.slide.verdict) counts[value]++;
    const rows = NuClass.colours.VERDICTS.map((verdict, i) => counts[i] && this._row(verdict.name, verdict.colour, counts[i], i));
    this.parts.verdicts.replaceChildren(...rows.filter(Boolean));
  }

  _legend() {
    const { make, colours } = NuClass;
    const { mode } = this;
    document.body.dataset.mode = mode;
    const scale = colours.SCALES[mode];
    const texts = {
      label: "By the class the label gives.",
      prediction: `By the class the ${this.slide.main === "gate" ? "fused" : this.slide.main} model says.`,
      verdict: "Green: the model says what the label says.",
      confidence: ["0", "0.5", "1"],
      gate: ["0 local", "0.5", "1 global"],
    }[mode];
    if (!scale) {
      this.parts.legend.replaceChildren(make("p", { className: "hint" }, texts));
      return;
    }
    const ramp = make("div", { className: "ramp", aria: { hidden: "true" }, style: { background: `linear-gradient(to right, ${scale.join(", ")})` } });
    const ends = make("div", { className: "ends" }, ...texts.map((text) => make("span", {}, text)));
    this.parts.legend.replaceChildren(ramp, ends);
  }

  /** Mark the cells to draw: one byte a cell. */
  filter(shown) {
    const { slide, parts } = this;
    const ticked = (list) => {
      const marks = new Uint8Array(256);
      for (const box of list.querySelectorAll("input:checked")) marks[Number(box.value)] = 1;
      return marks;
    };
    const [classes, verdicts] = [ticked(parts.classes), ticked(parts.verdicts)];
    const [least, most] = [Number(parts.least.value) / 100, Number(parts.most.value) / 100];
    parts["least-value"].textContent = least.toFixed(2);
    parts["most-value"].textContent = most.toFixed(2);
    const [low, high] = [Math.round(least * 255), Math.round(most * 255)];
    const { verdict, confidence, count } = slide;
    const of = slide[parts.by.value];
    let number = 0;
    for (let i = 0; i < count; i++) {
      shown[i] = classes[of[i]] & verdicts[verdict[i]] & (confidence[i] >= low) & (confidence[i] <= high);
      number += shown[i];
    }
    if (parts["only-maps"].checked) {
      number = 0;
      const kept = [...slide.maps.keys()].filter((cell) => shown[cell]);
      shown.fill(0);
      for (const cell of kept) shown[cell] = 1;
      number = kept.length;
    }
    parts.count.textContent = `${number.toLocaleString("en")} of ${count.toLocaleString("en")} predicted cells drawn`;
    return number;
  }
};

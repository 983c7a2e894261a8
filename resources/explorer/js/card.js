/* The right column: all that is known of one cell. */
"use strict";

NuClass.Card = class {
  constructor(element, { mpp, windows, onStep, onClose, onCentre }) {
    Object.assign(this, { element, mpp, windows, turn: 0 });
    const get = (id) => document.getElementById(id);
    this.parts = Object.fromEntries(
      ["cell-title", "cell-facts", "cell-local", "cell-global", "cell-windows", "cell-no-picture", "cell-models", "cell-gate-section", "cell-gate", "cell-bars-title", "cell-bars", "cell-maps", "cell-empty", "cell-body", "cell-problem"].map((id) => [id, get(id)]),
    );
    get("previous").addEventListener("click", () => onStep(-1));
    get("next").addEventListener("click", () => onStep(1));
    get("centre").addEventListener("click", onCentre);
    get("close").addEventListener("click", onClose);
    const side = (name) => `${windows[name]} px, ${Math.round(windows[name] * mpp)} µm`;
    get("local-size").textContent = side("local");
    get("global-size").textContent = side("global");
  }

  clear() {
    // A cell that is still being read must not come back.
    this.turn++;
    this.shown = null;
    this.parts["cell-body"].hidden = true;
    this.parts["cell-empty"].hidden = false;
  }

  /** Show a cell; resolves to its details, or to null when another one, or none, was asked for meanwhile. */
  async show(slide, cell) {
    const turn = ++this.turn;
    const { parts } = this;
    let details;
    try {
      details = await slide.details(cell);
    } catch (error) {
      if (turn !== this.turn) return null;
      this.clear();
      throw error;
    }
    if (turn !== this.turn) return null;
    this.shown = details;
    parts["cell-empty"].hidden = true;
    parts["cell-body"].hidden = false;
    parts["cell-problem"].hidden = true;
    parts["cell-title"].textContent = `Cell ${details.id}`;
    this._facts(slide, cell);
    this._models(slide, details);
    parts["cell-gate-section"].hidden = details.gate === null;
    if (details.gate !== null) this._gate(details.gate);
    parts["cell-bars-title"].textContent = `Probabilities of the ${slide.main === "gate" ? "fused" : slide.main} model`;
    this._bars(slide, details);
    this._maps(slide, cell);
    await this._windows(slide, cell, turn);
    return turn === this.turn ? details : null;
  }

  _className(slide, code) {
    return code === NuClass.NONE ? NuClass.colours.nameless(slide).toLowerCase() : slide.classes[code].full;
  }

  _swatch(slide, code) {
    const background = code === NuClass.NONE ? NuClass.colours.NO_CLASS : slide.classes[code].colour;
    return NuClass.make("span", { className: "swatch", aria: { hidden: "true" }, style: { background } });
  }

  _facts(slide, cell) {
    const { make, colours } = NuClass;
    const verdict = colours.VERDICTS[slide.verdict[cell]];
    const um = (value) => Math.round(value * this.mpp).toLocaleString("en");
    const label = [make("dt", {}, "Label"), make("dd", {}, this._swatch(slide, slide.label[cell]), this._className(slide, slide.label[cell]))];
    this.parts["cell-facts"].replaceChildren(
      ...(slide.labelled ? label : []),
      make("dt", {}, slide.labelled ? "Prediction" : "Class"),
      make(
        "dd",
        {},
        this._swatch(slide, slide.prediction[cell]),
        this._className(slide, slide.prediction[cell]),
        slide.labelled ? make("span", { className: "verdict", style: { color: verdict.colour } }, verdict.name.toLowerCase()) : null,
      ),
      make("dt", {}, "Place"),
      make("dd", {}, `x ${um(slide.x[cell])} µm, y ${um(slide.y[cell])} µm`),
    );
  }

  _models(slide, details) {
    const { make } = NuClass;
    const names = { local: "Local", global: "Global", gate: "Fused" };
    const rows = Object.entries(details.models)
      .filter(([, says]) => says && says.prediction !== NuClass.NONE)
      .map(([model, says]) => {
        const right = slide.verdict[details.cell] === 2 ? "" : says.prediction === slide.label[details.cell] ? "✓" : "✗";
        return make(
          "tr",
          { className: model },
          make("th", { scope: "row" }, names[model]),
          make("td", {}, this._swatch(slide, says.prediction), this._className(slide, says.prediction)),
          make("td", { className: "number" }, says.confidence.toFixed(3)),
          make("td", { aria: { label: { "✓": "right", "✗": "wrong", "": "not judged" }[right] }, className: right === "✓" ? "right" : "wrong" }, right),
        );
      });
    this.parts["cell-models"].replaceChildren(...rows);
  }

  _gate(gate) {
    const { make } = NuClass;
    this.parts["cell-gate"].replaceChildren(
      make("div", { className: "gate-bar", aria: { hidden: "true" } }, make("span", { style: { left: `${100 * gate}%` } })),
      make("p", { className: "hint" }, `g = ${gate.toFixed(3)}: the fused model leans ${Math.round(100 * gate)} % on the global model.`),
    );
  }

  _bars(slide, details) {
    const { make } = NuClass;
    const label = slide.label[details.cell];
    const order = Array.from(details.probabilities.keys()).sort((a, b) => details.probabilities[b] - details.probabilities[a]);
    const rows = order.map((i) => {
      const value = details.probabilities[i];
      const { full, colour } = slide.classes[i];
      const note = i === label ? make("span", { className: "tag" }, "label") : null;
      return make(
        "li",
        { data: { class: slide.classes[i].name, value: String(value) } },
        make("span", { className: "name" }, full, note),
        make("span", { className: "bar", aria: { hidden: "true" } }, make("span", { style: { width: `${100 * value}%`, background: colour } })),
        make("span", { className: "number" }, value.toFixed(3)),
      );
    });
    this.parts["cell-bars"].replaceChildren(...rows);
  }

  _maps(slide, cell) {
    const { make } = NuClass;
    const pictures = slide.maps.get(cell);
    if (!pictures) {
      const text = slide.maps.size ? "No map was computed for this cell. Cells with maps carry a diamond." : "No map was computed on this slide.";
      this.parts["cell-maps"].replaceChildren(make("p", { className: "hint" }, text));
      return;
    }
    const names = new Map(slide.classes.map((entry) => [entry.name, entry.full]));
    const figures = pictures.map((picture) => {
      const what = picture.explains ? `explains ${names.get(picture.explains) ?? picture.explains}` : "both models";
      const alt = `Class activation map. ${picture.title}, window of ${picture.width} px, ${what}`;
      return make("figure", {}, make("img", { src: `${slide.folder}/cells/${picture.file}`, alt }), make("figcaption", {}, make("strong", {}, picture.title), make("br"), what));
    });
    this.parts["cell-maps"].replaceChildren(make("div", { className: "maps" }, ...figures));
  }

  async _windows(slide, cell, turn) {
    const { parts, windows } = this;
    parts["cell-windows"].hidden = !slide.picture;
    parts["cell-no-picture"].hidden = Boolean(slide.picture);
    if (!slide.picture) return;
    try {
      await Promise.all([
        NuClass.windows.draw(parts["cell-local"], slide, cell, windows.local),
        NuClass.windows.draw(parts["cell-global"], slide, cell, windows.global, windows.local),
      ]);
    } catch (error) {
      if (turn === this.turn) this.problem(error.message);
    }
  }

  problem(text) {
    this.parts["cell-problem"].textContent = text;
    this.parts["cell-problem"].hidden = false;
  }
};

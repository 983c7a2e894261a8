/* Puts the parts together: one slide at a time, one cell chosen at most. */
"use strict";

(async () => {
  const get = (id) => document.getElementById(id);
  const say = (text) => {
    get("status").textContent = text;
  };
  const fail = (error) => {
    get("problem").textContent = error.message;
    get("problem").hidden = false;
    console.error(error);
  };

  const succeeded = () => {
    get("problem").hidden = true;
  };

  const app = (NuClass.app = { slide: null, shown: null, drawn: 0, cell: -1, id: null });
  // What is asked for last counts, in whatever order the files come.
  let slideTurn = 0;
  let cellTurn = 0;

  /** Show a slide; resolves to whether it is still the one that is wanted. */
  async function openSlide(name) {
    const turn = ++slideTurn;
    const about = app.study.slides.find((slide) => slide.name === name) ?? app.study.slides[0];
    get("slide").value = about.name;
    get("loading").hidden = false;
    let slide;
    try {
      slide = await NuClass.Slide.load(about);
    } catch (error) {
      if (turn !== slideTurn) return false;
      if (app.slide) get("slide").value = app.slide.name;
      throw error;
    } finally {
      if (turn === slideTurn) get("loading").hidden = true;
    }
    if (turn !== slideTurn) return false;
    cellTurn++;
    Object.assign(app, { slide, cell: -1, id: null });
    app.shown = new Uint8Array(slide.count);
    app.controls.setSlide(slide);
    app.drawn = app.controls.filter(app.shown);
    app.card.clear();
    get("no-picture").hidden = Boolean(slide.picture);
    get("not-found").hidden = true;
    mapLinks(slide);
    remember();
    succeeded();
    await app.view.open(slide, NuClass.colours.of(app.controls.mode, slide), app.shown);
    if (turn !== slideTurn) return false;
    if (app.cell < 0) say(`Slide ${about.name}: ${slide.count.toLocaleString("en")} predicted cells`);
    return true;
  }

  async function choose(cell, { go = false } = {}) {
    cellTurn++;
    Object.assign(app, { cell, id: null });
    app.view.select(cell);
    remember();
    if (cell < 0) {
      app.card.clear();
      return;
    }
    if (go) app.view.goTo(cell);
    const { slide } = app;
    const details = await app.card.show(slide, cell);
    if (!details) return;
    app.id = details.id;
    remember();
    succeeded();
    const name = (code) => (code === NuClass.NONE ? "none" : slide.classes[code].full);
    const { prediction, confidence } = details.models[slide.main];
    const label = slide.labelled ? `Label ${name(slide.label[cell])}, ` : "";
    say(`Cell ${details.id}. ${label}prediction ${name(prediction)}, confidence ${confidence.toFixed(2)}`);
  }

  /** The next or previous cell that is drawn, from the chosen one, around the end; without one the first or the last. */
  function step(by) {
    const { shown, slide } = app;
    if (!app.drawn) return;
    let cell = app.cell >= 0 ? app.cell : Math.min(-by, 0);
    do cell = (cell + by + slide.count) % slide.count;
    while (!shown[cell]);
    choose(cell, { go: true }).catch(fail);
  }

  function mapLinks(slide) {
    const links = [...slide.maps.keys()].map((cell, i) => {
      const entry = slide.classes[slide.label[cell]];
      const button = NuClass.make("button", { type: "button", data: { cell: String(cell) } }, `${i + 1}. ${entry ? entry.full : "no label"}`);
      button.addEventListener("click", () => choose(cell, { go: true }).catch(fail));
      return NuClass.make("li", {}, button);
    });
    get("map-links").replaceChildren(...links);
    get("map-section").hidden = !links.length;
  }

  /** The address of the page tells slide and cell, so that it can be kept and passed on. */
  function remember() {
    const parts = new URLSearchParams({ slide: app.slide.name });
    if (app.cell >= 0 && app.id) parts.set("cell", app.id);
    history.replaceState(null, "", `#${parts}`);
  }

  async function find(event) {
    event.preventDefault();
    const id = get("find").value.trim();
    if (!id || !app.slide) return;
    const turn = ++cellTurn;
    const cell = await app.slide.find(id);
    if (turn !== cellTurn) return;
    get("not-found").hidden = cell >= 0;
    if (cell < 0) say(`No cell ${id} on this slide`);
    else await choose(cell, { go: true });
  }

  function wire() {
    get("slide").addEventListener("change", (event) => openSlide(event.target.value).catch(fail));
    get("find-form").addEventListener("submit", (event) => find(event).catch(fail));
    get("zoom-in").addEventListener("click", () => app.view.zoomBy(1.6));
    get("zoom-out").addEventListener("click", () => app.view.zoomBy(1 / 1.6));
    get("home").addEventListener("click", () => app.view.home());
    get("size").addEventListener("input", (event) => {
      app.view.sizeFactor = Number(event.target.value) / 100;
      app.view.redraw();
    });
    get("opacity").addEventListener("input", (event) => {
      app.view.opacity = Number(event.target.value) / 100;
      app.view.redraw();
    });
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=search], select")) return;
      if (event.key === "Escape") choose(-1).catch(fail);
      else if (event.key === "n") step(1);
      else if (event.key === "p") step(-1);
    });
  }

  try {
    const study = (app.study = await NuClass.load("study", "study.js"));
    const asked = new URLSearchParams(location.hash.slice(1));
    get("study").textContent = study.name;
    get("synthetic").hidden = !study.synthetic;
    get("slide").append(...study.slides.map((slide) => new Option(`${slide.title ?? slide.name} (${slide.organ})`, slide.name)));
    const sides = { mpp: study.mpp, windows: study.windows };
    app.view = new NuClass.View(get("viewer"), { ...sides, how: asked.get("draw"), onPick: (cell) => choose(cell).catch(fail) });
    app.controls = new NuClass.Controls({
      onColour: () => app.view.setColours(NuClass.colours.of(app.controls.mode, app.slide)),
      onFilter: () => {
        app.drawn = app.controls.filter(app.shown);
        app.view.setShown(app.shown);
      },
    });
    app.card = new NuClass.Card(get("card"), {
      ...sides,
      onStep: step,
      onClose: () => choose(-1).catch(fail),
      onCentre: () => app.cell >= 0 && app.view.goTo(app.cell),
    });
    wire();
    const opened = await openSlide(asked.get("slide"));
    if (opened && asked.has("cell")) {
      const turn = ++cellTurn;
      const cell = await app.slide.find(asked.get("cell"));
      if (cell >= 0 && turn === cellTurn) await choose(cell, { go: true });
    }
    app.ready = true;
  } catch (error) {
    fail(error);
  }
})();

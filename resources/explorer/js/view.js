/* The slide with its cells: OpenSeadragon, a layer of points over it, marks, and a scale bar. */
"use strict";

const FRAME_MS = 24;
const SLOW_MS = 500;
const TURNING_KEYS = [..."FR"].map((letter) => letter.charCodeAt(0));

NuClass.View = class {
  constructor(element, { mpp, windows, how, onPick }) {
    Object.assign(this, { element, mpp, windows, how, onPick });
    this.step = 1;
    this.sizeFactor = 1;
    this.opacity = 0.85;
    this.selected = -1;
    this.osd = OpenSeadragon({
      element,
      drawer: "canvas",
      showNavigationControl: false,
      showNavigator: true,
      navigatorPosition: "BOTTOM_RIGHT",
      navigatorSizeRatio: 0.16,
      animationTime: 0.5,
      maxZoomPixelRatio: 6,
      minZoomImageRatio: 0.7,
      visibilityRatio: 0.3,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsTouch: { clickToZoom: false },
      placeholderFillStyle: "#fff",
      silenceMultiImageWarnings: true,
    });
    this.layer = document.createElement("div");
    this.layer.className = "layer";
    this.osd.canvas.append(this.layer);
    this.bar = document.getElementById("scale-bar");
    this._makePoints();
    this.osd.addHandler("animation-start", () => (this.moving = true));
    this.osd.addHandler("animation-finish", () => (this.moving = false));
    for (const event of ["update-viewport", "open", "resize", "animation-finish"]) this.osd.addHandler(event, () => this._follow());
    this.osd.addHandler("canvas-click", (event) => {
      if (event.quick) this._pick(event.position);
    });
    // The points know no turned or mirrored picture, so OpenSeadragon's keys for these (f, r) do nothing.
    this.osd.addHandler("canvas-key", (event) => {
      if (TURNING_KEYS.includes(event.originalEvent.keyCode)) event.preventDefaultAction = true;
    });
    new ResizeObserver(() => this.redraw()).observe(element);
  }

  _makePoints() {
    this.canvas?.remove();
    this.points = NuClass.makePoints(this.how);
    this.canvas = this.points.canvas;
    this.layer.prepend(this.canvas);
    this.canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    this.canvas.addEventListener("webglcontextrestored", () => {
      this._makePoints();
      if (this.slide) this._fillPoints();
    });
  }

  _fillPoints() {
    this.points.setPlaces(this.slide);
    this.points.setColours(this.colours.values, this.colours.table);
    this.points.setShown(this.shown);
    this.redraw();
  }

  /** Show another slide; resolves when it is open. */
  open(slide, colours, shown) {
    Object.assign(this, { slide, colours, shown, selected: -1, drawnAt: null });
    this.grid = new NuClass.Grid(slide);
    this.spacing = Math.sqrt((slide.extent.width * slide.extent.height) / Math.max(slide.count, 1));
    this.osd.navigator.element.hidden = !slide.picture;
    this._marks();
    this._fillPoints();
    const { width, height } = slide.extent;
    const top = Math.ceil(Math.log2(Math.max(width, height)));
    const source = {
      width,
      height,
      tileSize: slide.picture ? slide.picture.tile : 512,
      tileOverlap: 0,
      minLevel: 0,
      maxLevel: slide.picture ? slide.picture.top : top,
      getTileUrl: (level, column, row) => slide.tile(level, column, row),
    };
    // Without a picture there is nothing to ask for.
    if (!slide.picture) source.tileExists = () => false;
    return new Promise((resolve) => {
      this.osd.addOnceHandler("open", () => {
        this._measure();
        resolve();
      });
      this.osd.open(source);
    });
  }

  setColours(colours) {
    this.colours = colours;
    this.points.setColours(colours.values, colours.table);
    this.redraw();
  }

  setShown(shown) {
    this.shown = shown;
    this.points.setShown(shown);
    this.redraw();
  }

  /** Draw in the next frame, however often it is asked for. */
  redraw() {
    this._asked ??= requestAnimationFrame(() => {
      this._asked = null;
      this.draw();
    });
  }

  /** Where the slide lies: its px at the top-left corner of the element, and CSS px a px of the slide. */
  place() {
    const box = this.osd.viewport.getBounds(true);
    const { x, y, width } = this.slide.extent;
    return { x: x + box.x * width, y: y + box.y * width, scale: this.osd.viewport.getContainerSize().x / (box.width * width) };
  }

  /** Diameter of a point, CSS px: half the way to the next cell, within what can be seen and told apart. */
  pointSize(scale) {
    return Math.min(Math.max(0.45 * this.spacing * scale, 2.5), 13) * this.sizeFactor;
  }

  /** How many cells can be drawn in a frame while the view moves: all, or every so manyth on a slow machine. */
  _measure() {
    const start = performance.now();
    this.draw();
    this.points.finish();
    const took = performance.now() - start;
    if (this.points.gl && took > SLOW_MS && !this.how) {
      this.how = "canvas";
      this._makePoints();
      this._fillPoints();
    }
    this.step = Math.min(Math.max(Math.ceil(took / FRAME_MS), 1), 256);
  }

  /** Draw where the view has moved, or come to rest; pictures that arrive meanwhile change nothing here. */
  _follow() {
    if (!this.slide || !this.osd.viewport || !this.osd.world.getItemCount()) return;
    const { x, y, scale } = this.place();
    const size = this.osd.viewport.getContainerSize();
    const now = [x, y, scale, size.x, size.y, this.moving ? this.step : 1].join();
    if (now === this.drawnAt) return;
    this.draw(this.moving ? this.step : 1);
    this.drawnAt = now;
  }

  draw(step = 1) {
    if (!this.slide || !this.osd.viewport || !this.osd.world.getItemCount()) return;
    const ratio = window.devicePixelRatio || 1;
    const size = this.osd.viewport.getContainerSize();
    const [width, height] = [Math.round(size.x * ratio), Math.round(size.y * ratio)];
    if (!width || !height) return;
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const place = this.place();
    const points = this.pointSize(place.scale);
    const rim = points >= 6 ? ratio : 0;
    this.points.draw({ ...place, scale: place.scale * ratio }, points * ratio, this.opacity, rim, step);
    this._moveMarks(place);
    this._scaleBar(place.scale);
    this.frames = (this.frames ?? 0) + 1;
  }

  _marks() {
    for (const old of this.layer.querySelectorAll(".mark")) old.remove();
    const add = (name) => {
      const mark = document.createElement("div");
      mark.className = `mark ${name}`;
      this.layer.append(mark);
      return mark;
    };
    this.marks = [...this.slide.maps.keys()].map((cell) => ({ cell, element: add("has-map") }));
    this.chosen = { ring: add("ring"), local: add("window"), global: add("window") };
  }

  _moveMarks(place) {
    const put = (element, cell, side) => {
      const [x, y] = [(this.slide.x[cell] - place.x) * place.scale, (this.slide.y[cell] - place.y) * place.scale];
      element.style.transform = `translate(${x}px, ${y}px) translate(-50%, -50%)`;
      if (side) element.style.width = element.style.height = `${side * place.scale}px`;
    };
    for (const { cell, element } of this.marks) {
      element.hidden = !this.shown[cell];
      element.style.marginTop = `${-this.pointSize(place.scale) / 2 - 9}px`;
      put(element, cell);
    }
    const { ring, local, global } = this.chosen;
    for (const mark of [ring, local, global]) mark.hidden = this.selected < 0;
    if (this.selected < 0) return;
    put(ring, this.selected, (this.pointSize(place.scale) + 8) / place.scale);
    put(local, this.selected, this.windows.local);
    put(global, this.selected, this.windows.global);
    local.hidden = this.windows.local * place.scale < 24;
    global.hidden = this.windows.global * place.scale < 24;
  }

  _scaleBar(scale) {
    const micrometre = scale / this.mpp;
    const wanted = 130 / micrometre;
    const power = 10 ** Math.floor(Math.log10(wanted));
    const length = [5, 2, 1].map((factor) => factor * power).find((value) => value <= wanted);
    this.bar.style.width = `${length * micrometre}px`;
    this.bar.textContent = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
  }

  _pick(position) {
    const place = this.place();
    const reach = Math.max(this.pointSize(place.scale) / 2 + 3, 8) / place.scale;
    const cell = this.grid.nearest(place.x + position.x / place.scale, place.y + position.y / place.scale, reach, this.shown);
    this.onPick(cell);
  }

  select(cell) {
    this.selected = cell;
    this.redraw();
  }

  /** Bring a cell to the middle, and near enough to see it. */
  goTo(cell) {
    const { extent, x, y } = this.slide;
    const point = new OpenSeadragon.Point((x[cell] - extent.x) / extent.width, (y[cell] - extent.y) / extent.width);
    const viewport = this.osd.viewport;
    const near = viewport.imageToViewportZoom(0.6);
    if (viewport.getZoom() < near) viewport.zoomTo(near);
    viewport.panTo(point);
  }

  zoomBy(factor) {
    this.osd.viewport.zoomBy(factor);
    this.osd.viewport.applyConstraints();
  }

  home() {
    this.osd.viewport.goHome();
  }
};

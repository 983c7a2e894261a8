/* Draws the cells over the picture: one call of WebGL, or pixels on a canvas where there is no graphics processor. */
"use strict";

(() => {
  const VERTEX = `
    attribute vec2 place;
    attribute float value;
    attribute float shown;
    uniform vec2 scale, shift;
    uniform mediump float size;
    varying float number;
    void main() {
      number = value;
      gl_Position = shown > 0.5 ? vec4(place * scale + shift, 0.0, 1.0) : vec4(2.0, 2.0, 2.0, 1.0);
      gl_PointSize = size;
    }`;
  const FRAGMENT = `
    precision mediump float;
    uniform sampler2D colours;
    uniform float size, opacity, rim;
    varying float number;
    void main() {
      float r = length(gl_PointCoord - 0.5) * size;
      float edge = clamp(size * 0.5 - r, 0.0, 1.0);
      vec3 colour = texture2D(colours, vec2((number + 0.5) / 256.0, 0.5)).rgb;
      colour = mix(colour, vec3(1.0), rim * clamp(r - size * 0.5 + rim + 1.0, 0.0, 1.0));
      gl_FragColor = vec4(colour, 1.0) * edge * opacity;
    }`;

  class GLPoints {
    /** `careful`: not where WebGL is made by the processor, which takes a second for what pixels below take 20 ms. */
    constructor(canvas, careful) {
      const gl = canvas.getContext("webgl", { alpha: true, antialias: false, premultipliedAlpha: true, failIfMajorPerformanceCaveat: careful });
      if (!gl) throw new Error("there is no WebGL, or no graphics processor for it");
      const about = gl.getExtension("WEBGL_debug_renderer_info");
      const renderer = about ? gl.getParameter(about.UNMASKED_RENDERER_WEBGL) : "";
      if (careful && /swiftshader|llvmpipe|softpipe|software|basic render/i.test(renderer)) {
        throw new Error(`WebGL is made by the processor (${renderer})`);
      }
      Object.assign(this, { gl, canvas });
      this.kind = "WebGL";
      this.program = this._program();
      gl.useProgram(this.program);
      gl.enable(gl.BLEND);
      gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
      this.buffers = {};
      for (const [name, width, type] of [["place", 2, gl.FLOAT], ["value", 1, gl.UNSIGNED_BYTE], ["shown", 1, gl.UNSIGNED_BYTE]]) {
        const at = gl.getAttribLocation(this.program, name);
        this.buffers[name] = gl.createBuffer();
        gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name]);
        gl.enableVertexAttribArray(at);
        gl.vertexAttribPointer(at, width, type, false, 0, 0);
      }
      this.uniforms = {};
      for (const name of ["scale", "shift", "size", "opacity", "rim"]) {
        this.uniforms[name] = gl.getUniformLocation(this.program, name);
      }
      gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
      for (const edge of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, edge, gl.CLAMP_TO_EDGE);
      for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
    }

    _program() {
      const gl = this.gl;
      const program = gl.createProgram();
      for (const [type, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
        const shader = gl.createShader(type);
        gl.shaderSource(shader, text);
        gl.compileShader(shader);
        gl.attachShader(program, shader);
      }
      gl.linkProgram(program);
      if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
        throw new Error(`The shaders do not work: ${gl.getProgramInfoLog(program)}`);
      }
      return program;
    }

    _fill(name, data) {
      this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.buffers[name]);
      this.gl.bufferData(this.gl.ARRAY_BUFFER, data, this.gl.STATIC_DRAW);
    }

    setPlaces(slide) {
      this.count = slide.count;
      // Relative to the middle, so that single precision is far below a pixel on the largest slide.
      const { x, y, width, height } = slide.extent;
      this.middle = [x + width / 2, y + height / 2];
      // Shuffled, so that the first of them, alone, are an even sample of the slide.
      this.order = shuffled(slide.count);
      const places = new Float32Array(2 * slide.count);
      this.order.forEach((cell, i) => {
        places[2 * i] = slide.x[cell] - this.middle[0];
        places[2 * i + 1] = slide.y[cell] - this.middle[1];
      });
      this._fill("place", places);
    }

    setColours(values, table) {
      const gl = this.gl;
      this._fill("value", this._ordered(values));
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, table);
    }

    setShown(shown) {
      this._fill("shown", this._ordered(shown));
    }

    _ordered(values) {
      const { order } = this;
      const out = new Uint8Array(order.length);
      for (let i = 0; i < order.length; i++) out[i] = values[order[i]];
      return out;
    }

    /** Wait until all is drawn. */
    finish() {
      this.gl.readPixels(0, 0, 1, 1, this.gl.RGBA, this.gl.UNSIGNED_BYTE, new Uint8Array(4));
    }

    /**
     * `view`: x, y of the top-left corner in slide px, `scale` in canvas px a slide px; `size` and `rim` in canvas px.
     * `step`: 1 for all cells, more for every so manyth, evenly over the slide.
     */
    draw(view, size, opacity, rim, step = 1) {
      const { gl, uniforms } = this;
      const { width, height } = gl.canvas;
      gl.viewport(0, 0, width, height);
      gl.clear(gl.COLOR_BUFFER_BIT);
      if (!this.count) return;
      const [sx, sy] = [(2 * view.scale) / width, (-2 * view.scale) / height];
      gl.uniform2f(uniforms.scale, sx, sy);
      gl.uniform2f(uniforms.shift, (this.middle[0] - view.x) * sx - 1, (this.middle[1] - view.y) * sy + 1);
      gl.uniform1f(uniforms.size, size);
      gl.uniform1f(uniforms.opacity, opacity);
      gl.uniform1f(uniforms.rim, rim);
      gl.drawArrays(gl.POINTS, 0, Math.ceil(this.count / step));
    }
  }

  /** Writes pixels: for each cell a small stamp, a disc with a soft edge, at a quarter of a pixel. */
  class PixelPoints {
    constructor(canvas) {
      this.canvas = canvas;
      this.context = canvas.getContext("2d");
      this.kind = "canvas";
    }

    setPlaces(slide) {
      this.slide = slide;
      this.grid = new NuClass.Grid(slide);
    }

    setColours(values, table) {
      this.values = values;
      this.colours = new Uint32Array(table.slice().buffer);
    }

    setShown(shown) {
      this.shown = shown;
    }

    finish() {}

    _pixels(width, height) {
      if (this.image?.width !== width || this.image?.height !== height) {
        this.image = this.context.createImageData(width, height);
        this.pixels = new Uint32Array(this.image.data.buffer);
      }
      this.pixels.fill(0);
      return this.pixels;
    }

    /** Sixteen stamps, for the quarters of a pixel that the centre lies in: dx, dy, alpha, white or not. */
    _stamps(size, rim) {
      const key = `${size},${rim}`;
      if (this.stampsOf === key) return this.stamps;
      this.stampsOf = key;
      const reach = Math.ceil(size / 2) + 1;
      this.stamps = [];
      for (let quarter = 0; quarter < 16; quarter++) {
        const [cx, cy] = [((quarter % 4) + 0.5) / 4, (Math.floor(quarter / 4) + 0.5) / 4];
        const stamp = [];
        for (let dy = -reach; dy <= reach; dy++) {
          for (let dx = -reach; dx <= reach; dx++) {
            const r = Math.hypot(dx + 0.5 - cx, dy + 0.5 - cy);
            const alpha = Math.round(Math.min(Math.max(size / 2 + 0.5 - r, 0), 1) * 255);
            if (alpha) stamp.push(dx, dy, alpha, rim && r > size / 2 - rim ? 1 : 0);
          }
        }
        this.stamps.push(Int16Array.from(stamp));
      }
      return this.stamps;
    }

    draw(view, size, opacity, rim, step = 1) {
      const { context, slide, values, shown, colours } = this;
      const { width, height } = this.canvas;
      const pixels = this._pixels(width, height);
      const stamps = this._stamps(Math.round(size * 4) / 4, rim);
      const reach = (size / 2 + 2) / view.scale;
      this.canvas.style.opacity = opacity;
      this.grid.within(view.x - reach, view.y - reach, view.x + width / view.scale + reach, view.y + height / view.scale + reach, (cell) => {
        if (!shown[cell] || cell % step) return;
        const x = (slide.x[cell] - view.x) * view.scale;
        const y = (slide.y[cell] - view.y) * view.scale;
        const column = Math.floor(x);
        const row = Math.floor(y);
        const stamp = stamps[Math.floor((x - column) * 4) + 4 * Math.floor((y - row) * 4)];
        const colour = colours[values[cell]];
        for (let at = 0; at < stamp.length; at += 4) {
          const px = column + stamp[at];
          const py = row + stamp[at + 1];
          const alpha = stamp[at + 2];
          if (px < 0 || py < 0 || px >= width || py >= height) continue;
          const place = py * width + px;
          // A soft edge does not eat into a neighbour.
          if (alpha >= pixels[place] >>> 24) pixels[place] = (((stamp[at + 3] ? 0xffffff : colour) & 0xffffff) | (alpha << 24)) >>> 0;
        }
      });
      context.putImageData(this.image, 0, 0);
    }
  }

  /** The numbers below `count` in a fixed order that jumps about. */
  function shuffled(count) {
    const order = Uint32Array.from({ length: count }, (_, i) => i);
    let seed = 1;
    for (let i = count - 1; i > 0; i--) {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      const j = Math.floor((seed / 2 ** 32) * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }

  const newCanvas = () => NuClass.make("canvas", { className: "points" });

  /** What draws the points, with the canvas it draws on: WebGL, or where it fails or is slow, pixels. `how` overrules. */
  NuClass.makePoints = (how) => {
    if (how !== "canvas") {
      try {
        return new GLPoints(newCanvas(), how !== "webgl");
      } catch (error) {
        console.info(`Cells are drawn on canvas: ${error.message}`);
      }
    }
    // A canvas that was asked for WebGL gives nothing else, so this one is new.
    return new PixelPoints(newCanvas());
  };
})();

/* Draws the cells over the picture: one draw call of WebGL, or plain canvas where a browser has none. */
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
    constructor(canvas) {
      const gl = canvas.getContext("webgl", { alpha: true, antialias: false, premultipliedAlpha: true });
      if (!gl) throw new Error("WebGL is not available");
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
      const places = new Float32Array(2 * slide.count);
      for (let i = 0; i < slide.count; i++) {
        places[2 * i] = slide.x[i] - this.middle[0];
        places[2 * i + 1] = slide.y[i] - this.middle[1];
      }
      this._fill("place", places);
    }

    setColours(values, table) {
      const gl = this.gl;
      this._fill("value", values);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, table);
    }

    setShown(shown) {
      this._fill("shown", shown);
    }

    /** `view`: x, y of the top-left corner in slide px, `scale` in canvas px a slide px; `size` and `rim` in canvas px. */
    draw(view, size, opacity, rim) {
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
      gl.drawArrays(gl.POINTS, 0, this.count);
    }
  }

  class CanvasPoints {
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
      Object.assign(this, { values, styles: [] });
      for (let i = 0; i < 256; i++) this.styles.push(`rgb(${table[4 * i]},${table[4 * i + 1]},${table[4 * i + 2]})`);
    }

    setShown(shown) {
      this.shown = shown;
    }

    draw(view, size, opacity, rim) {
      const { context, slide, values, shown } = this;
      const { width, height } = context.canvas;
      context.clearRect(0, 0, width, height);
      context.globalAlpha = opacity;
      const reach = size / view.scale;
      const byColour = new Map();
      this.grid.within(view.x - reach, view.y - reach, view.x + width / view.scale + reach, view.y + height / view.scale + reach, (cell) => {
        if (!shown[cell]) return;
        if (!byColour.has(values[cell])) byColour.set(values[cell], []);
        byColour.get(values[cell]).push(cell);
      });
      for (const [value, cells] of byColour) {
        context.fillStyle = this.styles[value];
        if (size < 5) {
          for (const cell of cells) {
            context.fillRect((slide.x[cell] - view.x) * view.scale - size / 2, (slide.y[cell] - view.y) * view.scale - size / 2, size, size);
          }
          continue;
        }
        context.beginPath();
        for (const cell of cells) {
          const [x, y] = [(slide.x[cell] - view.x) * view.scale, (slide.y[cell] - view.y) * view.scale];
          context.moveTo(x + size / 2, y);
          context.arc(x, y, size / 2, 0, 2 * Math.PI);
        }
        context.fill();
        if (rim) {
          context.strokeStyle = "#fff";
          context.lineWidth = rim;
          context.stroke();
        }
      }
    }
  }

  const newCanvas = () => NuClass.make("canvas", { className: "points" });

  /** What draws the points, with the canvas it draws on: WebGL, or where it fails or `plain` asks for it, canvas. */
  NuClass.makePoints = (plain) => {
    if (!plain) {
      try {
        return new GLPoints(newCanvas());
      } catch (error) {
        console.info(`Cells are drawn on canvas: ${error.message}`);
      }
    }
    // A canvas that was asked for WebGL gives nothing else, so this one is new.
    return new CanvasPoints(newCanvas());
  };
})();

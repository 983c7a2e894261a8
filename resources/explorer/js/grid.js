/* Finds the cell under the pointer: cells sorted into squares of the slide. */
"use strict";

NuClass.Grid = class {
  constructor(slide, side = 256) {
    const { x, y, count, extent } = slide;
    Object.assign(this, { slide, side });
    this.columns = Math.max(Math.ceil(extent.width / side), 1);
    this.rows = Math.max(Math.ceil(extent.height / side), 1);
    const square = new Uint32Array(count);
    this.start = new Uint32Array(this.columns * this.rows + 1);
    for (let i = 0; i < count; i++) {
      square[i] = this._row(y[i]) * this.columns + this._column(x[i]);
      this.start[square[i] + 1]++;
    }
    for (let s = 0; s < this.columns * this.rows; s++) this.start[s + 1] += this.start[s];
    this.cells = new Uint32Array(count);
    const next = this.start.slice();
    for (let i = 0; i < count; i++) this.cells[next[square[i]]++] = i;
  }

  _column(x) {
    return Math.min(Math.max(Math.floor((x - this.slide.extent.x) / this.side), 0), this.columns - 1);
  }

  _row(y) {
    return Math.min(Math.max(Math.floor((y - this.slide.extent.y) / this.side), 0), this.rows - 1);
  }

  /** Call `visit(cell)` for the cells of all squares that a box touches. */
  within(left, top, right, bottom, visit) {
    const [c0, c1] = [this._column(left), this._column(right)];
    for (let row = this._row(top); row <= this._row(bottom); row++) {
      const end = this.start[row * this.columns + c1 + 1];
      for (let at = this.start[row * this.columns + c0]; at < end; at++) visit(this.cells[at]);
    }
  }

  /** The nearest cell of those marked in `shown`, at most `reach` px away; -1 if there is none. */
  nearest(x, y, reach, shown) {
    let best = -1;
    let least = reach * reach;
    this.within(x - reach, y - reach, x + reach, y + reach, (cell) => {
      const distance = (this.slide.x[cell] - x) ** 2 + (this.slide.y[cell] - y) ** 2;
      if (shown[cell] && distance <= least) [best, least] = [cell, distance];
    });
    return best;
  }
};

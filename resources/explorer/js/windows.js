/* Cuts a cell's window out of the tiles, as the models saw it. */
"use strict";

NuClass.windows = (() => {
  const loadImage = (address) =>
    new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => resolve(image);
      image.onerror = () => reject(new Error(`${address} cannot be read`));
      image.src = address;
    });

  /** Top-left pixel of the window of `side` px around a point: floor(v - side / 2 + 0.5), as the workflow cuts it. */
  const origin = (value, side) => Math.floor(value - side / 2 + 0.5);

  /** Tiles that a window touches, on the coarsest level that still fills the canvas. */
  function plan(slide, cell, side, pixels) {
    const { width, height, tile, top } = slide.picture;
    const step = 2 ** Math.min(Math.max(Math.floor(Math.log2(side / pixels)), 0), top);
    const [x0, y0] = [origin(slide.x[cell], side), origin(slide.y[cell], side)];
    const span = tile * step;
    const tiles = [];
    const last = { column: Math.ceil(width / span) - 1, row: Math.ceil(height / span) - 1 };
    for (let row = Math.max(Math.floor(y0 / span), 0); row <= Math.min(Math.floor((y0 + side - 1) / span), last.row); row++) {
      for (let column = Math.max(Math.floor(x0 / span), 0); column <= Math.min(Math.floor((x0 + side - 1) / span), last.column); column++) {
        tiles.push({ address: slide.tile(top - Math.log2(step), column, row), x: column * span - x0, y: row * span - y0 });
      }
    }
    return { step, tiles };
  }

  /** Draw the window on a square canvas; outside the slide it is white. Resolves when all tiles are there. */
  async function draw(canvas, slide, cell, side, inner) {
    const scale = canvas.width / side;
    const { step, tiles } = plan(slide, cell, side, canvas.width);
    const turn = (canvas.turn = (canvas.turn ?? 0) + 1);
    const images = await Promise.all(tiles.map((tile) => loadImage(tile.address)));
    // A later cell may have taken the canvas while the tiles came.
    if (canvas.turn !== turn) return;
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    tiles.forEach((tile, i) => {
      const [width, height] = [images[i].naturalWidth * step * scale, images[i].naturalHeight * step * scale];
      context.drawImage(images[i], tile.x * scale, tile.y * scale, width, height);
    });
    if (inner) frame(context, ((side - inner) / 2) * scale, inner * scale);
  }

  function frame(context, corner, side) {
    for (const [colour, width] of [["#fff", 7], ["#111", 3.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.strokeRect(corner, corner, side, side);
    }
  }

  return { origin, plan, draw };
})();

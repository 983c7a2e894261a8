/* How cells are coloured: by class, along a scale, or by whether the model is right. */
"use strict";

NuClass.colours = (() => {
  // Viridis (perceptually even, safe for all colour vision) and the colours of the two branches with grey between.
  const SCALES = {
    confidence: ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"],
    gate: ["#E69F00", "#d9d9d9", "#0072B2"],
  };
  const VERDICTS = [
    { name: "Right", colour: "#009E73" },
    { name: "Wrong", colour: "#D55E00" },
    { name: "Not judged: label unknown to the model", colour: "#8C8C8C" },
  ];
  const NO_CLASS = "#8C8C8C";

  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  /** 256 colours along a scale, RGBA. */
  function along(stops) {
    const table = new Uint8Array(1024);
    for (let i = 0; i < 256; i++) {
      const place = (i / 255) * (stops.length - 1);
      const left = Math.min(Math.floor(place), stops.length - 2);
      const [a, b] = [rgb(stops[left]), rgb(stops[left + 1])];
      for (let c = 0; c < 3; c++) table[4 * i + c] = Math.round(a[c] + (b[c] - a[c]) * (place - left));
      table[4 * i + 3] = 255;
    }
    return table;
  }

  /** One colour a number; numbers beyond the list are grey. */
  function listed(colours) {
    const table = along([NO_CLASS, NO_CLASS]);
    colours.forEach((colour, i) => table.set([...rgb(colour), 255], 4 * i));
    return table;
  }

  /** What a mode draws of a slide: a byte for each cell, and a table of 256 colours for the bytes. */
  function of(mode, slide) {
    if (mode === "verdict") return { values: slide.verdict, table: listed(VERDICTS.map((v) => v.colour)) };
    if (mode in SCALES) return { values: slide[mode], table: along(SCALES[mode]) };
    return { values: slide[mode], table: listed(slide.classes.map((entry) => entry.colour)) };
  }

  /** What stands for a class where there is none: no label, or on a slide without labels a model that is not sure. */
  const nameless = (slide) => (slide.labelled ? "No label" : "Uncertain");

  return { SCALES, VERDICTS, NO_CLASS, nameless, of };
})();

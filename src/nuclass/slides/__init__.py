"""One slide: its frames, its H&E as a store of tiles, its cells, and how well the two are aligned."""

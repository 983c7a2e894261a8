"""The explorer: a slide as deep-zoom tiles, its cells as compact columns, and the page that shows both."""

"""Windows of cells: cut from a slide store, or kept in files of the original's layout."""

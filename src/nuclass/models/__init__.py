"""Plain torch: backbones, the local, global and gate models, losses. No data, no files but weights."""

"""Type the cells of one slide with a trained model, and hand the result over in the formats people use."""

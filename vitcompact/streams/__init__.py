"""The activations of two models side by side, one block at a time, over the calibration images."""

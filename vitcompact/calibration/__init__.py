"""What calibration images say: activations of two models side by side, statistics, least squares, sensitivity."""

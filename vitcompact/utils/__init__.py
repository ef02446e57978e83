"""What several rooms share and none owns: files that are complete or absent, locks, progress, what a device can do."""

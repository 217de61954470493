"""Images at rest to batches on the device. Knows nothing of objectives and never imports `trainer`."""

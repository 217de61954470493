"""What a frozen encoder has learned: probes, nearest neighbours, pictures."""

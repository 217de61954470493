"""`hybrid-infomax env`: versions, machine, engines and recipe, for a question or a bug report."""

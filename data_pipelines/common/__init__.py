"""The ground floor of both packages: errors, files, locks, retries, sections of a recipe."""

"""The typed recipe: its schema, and how one is read, checked and printed. Imports no torch."""
